// The element-wise kernels: accuracy of the functions, and the same bits from every instruction set, at every tail.
#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "reference.hpp"
#include "trainer/ops/matmul.hpp"

using namespace trainer;
using namespace trainer::test;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// |computed - exact| in units of the last place of the exact value's float.
double ulps(float computed, double exact) {
  if (std::isnan(exact)) return std::isnan(computed) ? 0 : kInfinity;
  if (std::isinf(static_cast<float>(exact))) return computed == static_cast<float>(exact) ? 0 : kInfinity;
  const int exponent = std::max(std::ilogb(exact == 0 ? 1e-40 : exact), -126);
  return std::abs(static_cast<double>(computed) - exact) / std::ldexp(1.0, exponent - 23);
}

/// Every `step`-th float between two of one sign, by bits.
Floats floats_between(float low, float high, std::uint32_t step) {
  Floats values;
  std::uint32_t begin = std::bit_cast<std::uint32_t>(low);
  std::uint32_t end = std::bit_cast<std::uint32_t>(high);
  if (begin > end) std::swap(begin, end);
  for (std::uint32_t bits = begin; bits < end; bits += step) values.push_back(std::bit_cast<float>(bits));
  return values;
}

template <class Computed, class Exact>
double worst_ulps(const Floats& x, Computed computed, Exact exact) {
  Floats y(x.size());
  computed(x, y);
  double worst = 0;
  for (std::size_t i = 0; i < x.size(); ++i) worst = std::max(worst, ulps(y[i], exact(static_cast<double>(x[i]))));
  return worst;
}

std::vector<const ops::Kernels*> all_kernels() {
  std::vector<const ops::Kernels*> all;
  for (const auto set : {ops::InstructionSet::Portable, ops::InstructionSet::Avx2, ops::InstructionSet::Avx512}) {
    if (const ops::Kernels* kernels = ops::kernels_of(set)) all.push_back(kernels);
  }
  return all;
}

std::int64_t size(const Floats& values) { return static_cast<std::int64_t>(values.size()); }

}  // namespace

TEST_CASE("the exponential is good to 2 ulp from -87.33 to overflow, and 0 below") {
  const ops::Kernels& kernels = ops::best_kernels();
  const auto computed = [&](const Floats& x, Floats& y) { kernels.exponentials(x.data(), 1, 0, y.data(), size(x)); };
  const auto exact = [](double x) { return std::exp(x); };
  CHECK(worst_ulps(floats_between(-1e-30f, -87.33f, 997), computed, exact) <= 2);
  CHECK(worst_ulps(floats_between(1e-30f, 88.72f, 997), computed, exact) <= 2);
  const Floats x{0.0f, -0.0f, -87.34f, -1e30f, -kInfinity, 88.8f, 1e30f, kInfinity, kNan};
  Floats y(x.size());
  computed(x, y);
  CHECK(same_bits(Floats(y.begin(), y.end() - 1), Floats{1, 1, 0, 0, 0, kInfinity, kInfinity, kInfinity}));
  CHECK(std::isnan(y.back()));
}

TEST_CASE("tanh is good to 2 ulp and the logistic function to 3, for all magnitudes") {
  const ops::Kernels& kernels = ops::best_kernels();
  const auto map = [&](model::UnaryKind kind) {
    return [&kernels, kind](const Floats& x, Floats& y) {
      kernels.unary[static_cast<int>(kind)](x.data(), y.data(), size(x));
    };
  };
  for (const float sign : {1.0f, -1.0f}) {
    CHECK(worst_ulps(floats_between(sign * 1e-30f, sign * 1e10f, 1499), map(model::UnaryKind::Tanh),
                     [](double x) { return std::tanh(x); }) <= 2);
    // One rounding each of 1 + e and of the division, and 2 ulp of e. Below -87 e overflows soon: not asked.
    CHECK(worst_ulps(floats_between(sign * 1e-30f, sign * 87.0f, 997), map(model::UnaryKind::Sigmoid),
                     [](double x) { return 1 / (1 + std::exp(-x)); }) <= 3);
  }
  const Floats x{kInfinity, -kInfinity, kNan};
  Floats y(3);
  map(model::UnaryKind::Tanh)(x, y);
  CHECK(y[0] == 1.0f);
  CHECK(y[1] == -1.0f);
  CHECK(std::isnan(y[2]));
  map(model::UnaryKind::Sigmoid)(x, y);
  CHECK(y[0] == 1.0f);
  CHECK(y[1] == 0.0f);
  CHECK(std::isnan(y[2]));
}

TEST_CASE("gelu's error is that of its exponent: (6 + 4·|2u|) roundings; huge arguments stay finite") {
  const ops::Kernels& kernels = ops::best_kernels();
  const auto gelu = static_cast<int>(model::UnaryKind::Gelu);
  for (const float sign : {1.0f, -1.0f}) {
    const Floats x = floats_between(sign * 1e-20f, sign * 9.0f, 997);
    Floats y(x.size());
    kernels.unary[gelu](x.data(), y.data(), size(x));
    double worst = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double v = x[i];
      // x / (1 + e^-2u), free of the cancellation in 1 + tanh.
      const double twice_u = 2 * std::sqrt(2 / std::numbers::pi) * (v + 0.044715 * v * v * v);
      const double exact = v / (1 + std::exp(-twice_u));
      const double bound = (6 + 4 * std::abs(twice_u)) * kUnitRoundoff * std::abs(exact) + 1e-37;
      worst = std::max(worst, std::abs(static_cast<double>(y[i]) - exact) / bound);
    }
    CHECK(worst <= 1);
  }
  const Floats x{-3e38f, -100.0f, 100.0f, 3e38f, kNan};
  const Floats ones(x.size(), 1.0f);
  Floats y(x.size());
  Floats slope(x.size());
  kernels.unary[gelu](x.data(), y.data(), size(x));
  kernels.unary_backward[gelu](x.data(), ones.data(), slope.data(), size(x), false);
  CHECK(y[0] == 0.0f);
  CHECK(y[1] == 0.0f);
  CHECK(y[2] == 100.0f);
  CHECK(y[3] == 3e38f);
  CHECK(slope[0] == 0.0f);
  CHECK(slope[3] == 1.0f);
  CHECK(std::isnan(y[4]));
  CHECK(std::isnan(slope[4]));
}

TEST_CASE("relu passes NaN on") {
  const Floats x{kNan, -1.0f, 2.0f};
  Floats y(3);
  ops::best_kernels().unary[static_cast<int>(model::UnaryKind::Relu)](x.data(), y.data(), 3);
  CHECK(std::isnan(y[0]));
  CHECK(y[1] == 0.0f);
  CHECK(y[2] == 2.0f);
}

TEST_CASE("maps: every instruction set gives the same bits, whatever the length and the alignment") {
  const Floats wide = normals(1, "x", 200);
  const Floats dy = normals(1, "dy", 200);
  ops::DropoutMask mask{.key = {3, 4}, .row = 5, .sample = (std::uint64_t{7} << 32) + 8, .first = 37};
  ops::set_probability(mask, 0.3);
  // What element i of 130 becomes under each map, from a call over [begin, end) of an array shifted by `shift`.
  const auto outcome = [&](const ops::Kernels& k, std::size_t map, std::int64_t begin, std::int64_t end,
                           std::size_t shift) {
    Floats x(200), d(200), y(200, 0.5f);
    std::copy(wide.begin(), wide.end() - 60, x.begin() + static_cast<std::ptrdiff_t>(shift));
    std::copy(dy.begin(), dy.end() - 60, d.begin() + static_cast<std::ptrdiff_t>(shift));
    const float* xs = x.data() + shift + begin;
    const float* ds = d.data() + shift + begin;
    float* ys = y.data() + shift + begin;
    const std::int64_t n = end - begin;
    ops::DropoutMask part = mask;
    part.first += begin;
    if (map < 4) k.unary[map](xs, ys, n);
    if (map >= 4 && map < 8) k.unary_backward[map - 4](xs, ds, ys, n, map % 2 == 0);
    if (map == 8) k.add(xs, ds, ys, n);
    if (map == 9) k.scale(xs, 0.7f, ys, n);
    if (map == 10) k.dropout(part, xs, ys, n, true);
    if (map == 11) k.dropout(part, xs, ys, n, false);
    return Floats(ys, ys + n);
  };
  for (std::size_t map = 0; map < 12; ++map) {
    CAPTURE(map);
    const Floats whole = outcome(*all_kernels().front(), map, 0, 130, 0);
    for (const ops::Kernels* kernels : all_kernels()) {
      CAPTURE(kernels->name);
      CHECK(same_bits(outcome(*kernels, map, 0, 130, 0), whole));
      bool same = true;
      for (std::int64_t begin : {0, 1, 5, 63, 64, 129}) {
        for (std::int64_t n : {1, 2, 7, 15, 16, 17, 33, 63, 64, 65, 130}) {
          const std::int64_t end = std::min<std::int64_t>(130, begin + n);
          same = same && same_bits(outcome(*kernels, map, begin, end, static_cast<std::size_t>(n % 5)),
                                   Floats(whole.begin() + begin, whole.begin() + end));
        }
      }
      CHECK(same);
    }
  }
}

TEST_CASE("rows: every instruction set gives the same bits, and agrees with a sum in double") {
  for (const std::int64_t n : {1, 3, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 100, 1000}) {
    CAPTURE(n);
    const Floats a = normals(2, "a", n);
    const Floats b = normals(2, "b", n);
    double dot = 0;
    double terms = 0;
    double exponentials = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      dot += static_cast<double>(a[i]) * b[i];
      terms += std::abs(static_cast<double>(a[i]) * b[i]);
      exponentials += std::exp(0.5 * a[i] - 1);
    }
    // A lane adds n / 32 + 1 terms, the tree five more; the exponential is good to 2 ulp = 4 u, its argument to 2 u
    // · 4.
    const double roundings = static_cast<double>(n) / 32 + 6;
    ops::DropoutMask mask{.key = {3, 4}, .row = 5, .sample = 6};
    ops::set_probability(mask, 0.3);
    struct Outcome {
      Floats sums;
      Floats maps;
    };
    const auto outcome = [&](const ops::Kernels& k) {
      Outcome result;
      Floats e(a.size());
      Floats p = a;
      result.sums = {k.dot(a.data(), b.data(), n), k.exponentials(a.data(), 0.5f, 1.0f, e.data(), n),
                     k.squared_difference(p.data(), b.data(), 0.25f, n), k.maximum(a.data(), n)};
      CHECK(k.exponentials(a.data(), 0.5f, 1.0f, nullptr, n) == result.sums[1]);
      Floats s = a;
      Floats d = b;
      k.softmax_backward(s.data(), d.data(), 0.5f, 1.0f, 0.1f, 0.2f, n, nullptr);
      Floats masked_s = a;
      Floats masked_d = b;
      k.softmax_backward(masked_s.data(), masked_d.data(), 0.5f, 1.0f, 0.1f, 0.2f, n, &mask);
      for (const Floats& part : {e, p, s, d, masked_s, masked_d}) {
        result.maps.insert(result.maps.end(), part.begin(), part.end());
      }
      return result;
    };
    const Outcome first = outcome(*all_kernels().front());
    for (const ops::Kernels* kernels : all_kernels()) {
      CAPTURE(kernels->name);
      const Outcome result = outcome(*kernels);
      CHECK(same_bits(result.sums, first.sums));
      CHECK(same_bits(result.maps, first.maps));
    }
    CHECK(std::abs(first.sums[0] - dot) <= (roundings + 1) * kUnitRoundoff * terms);
    CHECK(std::abs(first.sums[1] - exponentials) <= (roundings + 12) * kUnitRoundoff * exponentials);
    CHECK(first.sums[3] == *std::max_element(a.begin(), a.end()));
  }
}

TEST_CASE("the maximum of a row is NaN if any element is, wherever it stands") {
  for (const ops::Kernels* kernels : all_kernels()) {
    CAPTURE(kernels->name);
    bool all = true;
    for (std::size_t i = 0; i < 70; ++i) {
      Floats row(70, 1.0f);
      row[i] = kNan;
      all = all && std::isnan(kernels->maximum(row.data(), 70));
      row[i] = 2.0f;
      all = all && kernels->maximum(row.data(), 70) == 2.0f;
    }
    CHECK(all);
    CHECK(kernels->maximum(nullptr, 0) == -kInfinity);
  }
}

TEST_CASE("column sums are one ascending chain a column within blocks of kBlockK rows") {
  const std::int64_t rows = 2 * ops::kBlockK + 5;
  for (const std::int64_t columns : {1, 7, 16, 63, 64, 65, 100}) {
    CAPTURE(columns);
    const std::int64_t stride = columns + 3;
    const Floats x = normals(3, "x", rows * stride);
    for (const bool accumulate : {false, true}) {
      Floats expected(static_cast<std::size_t>(columns), accumulate ? 0.75f : 0.0f);
      for (std::size_t c = 0; c < expected.size(); ++c) {
        for (std::int64_t begin = 0; begin < rows; begin += ops::kBlockK) {
          float block = 0;
          for (std::int64_t r = begin; r < std::min(rows, begin + ops::kBlockK); ++r) {
            block += x[static_cast<std::size_t>(r * stride) + c];
          }
          expected[c] += block;
        }
      }
      for (const ops::Kernels* kernels : all_kernels()) {
        CAPTURE(kernels->name);
        Floats sums(static_cast<std::size_t>(columns), accumulate ? 0.75f : kNan);
        kernels->column_sums(x.data(), rows, stride, columns, sums.data(), accumulate);
        CHECK(same_bits(sums, expected));
      }
    }
  }
}

TEST_CASE("masks are core's philox, and keep the stated share") {
  for (const double probability : {0.1, 0.5, 0.9}) {
    ops::DropoutMask mask{.sample = 12345678901234ull, .first = 77};
    const auto key = RandomStream(5, "some.node").key();
    mask.key[0] = key[0];
    mask.key[1] = key[1];
    mask.row = 3;
    ops::set_probability(mask, probability);
    const std::int64_t n = 20000;
    const Floats ones(static_cast<std::size_t>(n), 1.0f);
    Floats y(ones.size());
    ops::best_kernels().dropout(mask, ones.data(), y.data(), n, false);
    std::int64_t keeps = 0;
    bool as_stated = true;
    for (std::int64_t i = 0; i < n; ++i) {
      const bool keep = kept(5, "some.node", mask.sample, mask.row, mask.first + i, probability);
      as_stated = as_stated && y[static_cast<std::size_t>(i)] == (keep ? mask.scale : 0.0f);
      keeps += keep;
    }
    CHECK(as_stated);
    // Five standard deviations of a binomial count.
    const double deviation = std::sqrt(static_cast<double>(n) * probability * (1 - probability));
    CHECK(std::abs(static_cast<double>(keeps) - static_cast<double>(n) * (1 - probability)) <= 5 * deviation);
  }
}
