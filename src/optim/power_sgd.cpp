// The factors of PowerSGD.
#include <algorithm>
#include <cmath>

#include "trainer/core/random.hpp"
#include "trainer/optim/compression.hpp"

namespace trainer::optim {

namespace {

constexpr std::int64_t kLanes = 16;

// Element i goes to lane i mod 16; lanes are added pairwise at distances 8, 4, 2, 1.
template <class Sum>
Sum dot(const float* a, const float* b, std::int64_t count) {
  Sum lane[kLanes] = {};
  const std::int64_t whole = count / kLanes * kLanes;
  for (std::int64_t i = 0; i < whole; i += kLanes) {
    for (std::int64_t l = 0; l < kLanes; ++l) lane[l] += static_cast<Sum>(a[i + l]) * static_cast<Sum>(b[i + l]);
  }
  for (std::int64_t i = whole; i < count; ++i) lane[i - whole] += static_cast<Sum>(a[i]) * static_cast<Sum>(b[i]);
  for (std::int64_t distance = kLanes / 2; distance > 0; distance /= 2) {
    for (std::int64_t l = 0; l < distance; ++l) lane[l] += lane[l + distance];
  }
  return lane[0];
}

// column −= (its parts along the `before` columns in front of it), twice: once leaves what rounding of the first made.
void remove_parts(float* p, std::int64_t before, std::int64_t rows) {
  float* const column = p + before * rows;
  for (int round = 0; round < 2; ++round) {
    for (std::int64_t c = 0; c < before; ++c) {
      const float* const other = p + c * rows;
      const double part = dot<double>(other, column, rows);
      for (std::int64_t i = 0; i < rows; ++i) {
        column[i] = static_cast<float>(static_cast<double>(column[i]) - part * static_cast<double>(other[i]));
      }
    }
  }
}

double length(const float* column, std::int64_t rows) { return std::sqrt(dot<double>(column, column, rows)); }

// to += factor · from
void add_scaled(float* __restrict to, float factor, const float* __restrict from, std::int64_t count) {
  for (std::int64_t j = 0; j < count; ++j) to[j] += factor * from[j];
}

void divide(float* column, std::int64_t rows, double by) {
  for (std::int64_t i = 0; i < rows; ++i) column[i] = static_cast<float>(static_cast<double>(column[i]) / by);
}

}  // namespace

void first_factor(std::uint64_t seed, std::string_view name, const PowerShape& shape, std::span<float> q) {
  const RandomStream stream(seed, name);
  for (std::int64_t i = 0; i < shape.q_elements(); ++i) {
    q[static_cast<std::size_t>(i)] = stream.normal(static_cast<std::uint64_t>(i));
  }
}

void project(const PowerShape& shape, std::span<const float> m, std::span<const float> q, std::span<float> p) {
  for (std::int64_t c = 0; c < shape.rank; ++c) {
    for (std::int64_t i = 0; i < shape.rows; ++i) {
      p[static_cast<std::size_t>(c * shape.rows + i)] =
          dot<float>(m.data() + i * shape.columns, q.data() + c * shape.columns, shape.columns);
    }
  }
}

void project_back(const PowerShape& shape, std::span<const float> m, std::span<const float> p, std::span<float> q) {
  std::fill_n(q.begin(), shape.q_elements(), 0.0f);
  for (std::int64_t i = 0; i < shape.rows; ++i) {
    const float* const row = m.data() + i * shape.columns;
    for (std::int64_t c = 0; c < shape.rank; ++c) {
      add_scaled(q.data() + c * shape.columns, p[static_cast<std::size_t>(c * shape.rows + i)], row, shape.columns);
    }
  }
}

void orthonormalise(const PowerShape& shape, std::span<float> p) {
  constexpr double kDependent = 1e-5;  // of the column's own length: below, what is left is rounding
  const std::int64_t rows = shape.rows;
  for (std::int64_t c = 0; c < shape.rank; ++c) {
    float* const column = p.data() + c * rows;
    const double whole = length(column, rows);
    // Divided first, so that tiny gradients do not fall below what a float can hold.
    if (whole > 0) divide(column, rows, whole);
    remove_parts(p.data(), c, rows);
    double left = length(column, rows);
    for (std::int64_t unit = 0; left <= kDependent && unit < rows; ++unit) {
      std::fill_n(column, rows, 0.0f);
      column[unit] = 1;
      remove_parts(p.data(), c, rows);
      left = length(column, rows);
      // Some unit vector has at least this much outside a space of c < rows dimensions.
      if (left * left * static_cast<double>(rows) < 0.5) left = 0;
    }
    divide(column, rows, left);
  }
}

void restore(const PowerShape& shape, std::span<const float> p, std::span<const float> q, std::span<float> m) {
  for (std::int64_t i = 0; i < shape.rows; ++i) {
    float* const row = m.data() + i * shape.columns;
    for (std::int64_t c = 0; c < shape.rank; ++c) {
      const float factor = p[static_cast<std::size_t>(c * shape.rows + i)];
      const float* const from = q.data() + c * shape.columns;
      for (std::int64_t j = 0; j < shape.columns; ++j) row[j] = (c == 0 ? 0.0f : row[j]) + factor * from[j];
    }
  }
}

void keep_difference(std::span<const float> values, std::span<const float> result, float scale,
                     std::span<float> error) {
  for (std::size_t i = 0; i < values.size(); ++i) error[i] = values[i] - scale * result[i];
}

}  // namespace trainer::optim
