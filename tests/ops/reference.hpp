// Naive forwards of every layer in double, and the cases that the property tests run through.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>
#include <vector>

#include "operator_runner.hpp"
#include "support/gradient_check.hpp"
#include "trainer/core/random.hpp"

namespace trainer::test {

/// Whether dropout keeps an element, from core's scalar philox: the rule that kernels.hpp states.
inline bool kept(std::uint64_t seed, const std::string& name, std::uint64_t sample, std::uint32_t row,
                 std::int64_t feature, double probability) {
  const auto counter = static_cast<std::uint32_t>(feature / 64 * 16 + feature % 16);
  const auto words =
      philox({counter, row, static_cast<std::uint32_t>(sample), static_cast<std::uint32_t>(sample >> 32)},
             RandomStream(seed, name).key());
  return words[static_cast<std::size_t>(feature / 16 % 4)] >= std::floor(probability * 0x1p32);
}

/// Operands as one flat list: inputs, then parameters; for central differences.
struct Flat {
  const Case& c;
  std::int64_t rows;
  std::int64_t input(int i) const { return i * rows * c.in; }
  std::int64_t parameter(std::size_t p) const {
    std::int64_t at = c.inputs * rows * c.in;
    for (std::size_t q = 0; q < p; ++q) at += c.parameters[q];
    return at;
  }
};

inline Values flatten(const Case& c, const Operands& operands) {
  Values values;
  for (int i = 0; i < c.inputs; ++i) values.insert(values.end(), operands.x[i].begin(), operands.x[i].end());
  for (const Floats& p : operands.parameters) values.insert(values.end(), p.begin(), p.end());
  return values;
}

/// Computes y from the flat operands.
struct Reference {
  const Case& c;
  const std::vector<std::int32_t>& tokens;
  ops::MicroBatch batch;

  Values operator()(const Values& v) const {
    Values y(static_cast<std::size_t>(batch.rows() * c.out));
    const Flat flat{c, batch.rows()};
    std::visit([&](const auto& layer) { forward(layer, flat, v.data(), y.data()); }, c.node.op);
    return y;
  }

  void forward(const model::Embedding& l, const Flat& flat, const double* v, double* y) const {
    for (std::int64_t r = 0; r < flat.rows; ++r) {
      const std::int64_t entry = tokens[static_cast<std::size_t>(r)] - l.vocab_begin;
      if (tokens[static_cast<std::size_t>(r)] < 0 || entry < 0 || entry >= l.vocab) continue;
      for (std::int64_t f = 0; f < l.features; ++f) y[r * l.features + f] = v[entry * l.features + f];
    }
  }
  void forward(const model::PositionEmbedding& l, const Flat& flat, const double* v, double* y) const {
    const double* table = v + flat.parameter(0);
    for (std::int64_t i = 0; i < flat.rows * l.features; ++i) {
      y[i] = v[i] + table[i / l.features % c.positions * l.features + i % l.features];
    }
  }
  void forward(const model::Linear& l, const Flat& flat, const double* v, double* y) const {
    for (std::int64_t r = 0; r < flat.rows; ++r) {
      for (std::int64_t o = 0; o < l.out; ++o) {
        double sum = l.bias && l.add_bias ? v[flat.parameter(1) + o] : 0.0;
        for (std::int64_t i = 0; i < l.in; ++i) sum += v[r * l.in + i] * v[flat.parameter(0) + o * l.in + i];
        y[r * l.out + o] = sum;
      }
    }
  }
  void forward(const model::LayerNorm& l, const Flat& flat, const double* v, double* y) const {
    for (std::int64_t r = 0; r < flat.rows; ++r) {
      const double* x = v + r * l.features;
      double mean = 0;
      double variance = 0;
      for (std::int64_t f = 0; f < l.features; ++f) mean += x[f] / static_cast<double>(l.features);
      for (std::int64_t f = 0; f < l.features; ++f) {
        variance += (x[f] - mean) * (x[f] - mean) / static_cast<double>(l.features);
      }
      for (std::int64_t f = 0; f < l.features; ++f) {
        y[r * l.features + f] =
            (x[f] - mean) / std::sqrt(variance + l.eps) * v[flat.parameter(0) + f] + v[flat.parameter(1) + f];
      }
    }
  }
  void forward(const model::Attention& l, const Flat& flat, const double* v, double* y) const {
    const std::int64_t width = l.heads * l.head_size;
    for (std::int64_t r = 0; r < flat.rows; ++r) {
      const std::int64_t query = r % c.positions;
      const std::int64_t first = r - query;
      for (std::int64_t h = 0; h < l.heads; ++h) {
        const double* q = v + r * 3 * width + h * l.head_size;
        Values p(static_cast<std::size_t>(query + 1));
        double most = -1e300;
        for (std::int64_t k = 0; k <= query; ++k) {
          const double* key = v + (first + k) * 3 * width + width + h * l.head_size;
          double score = 0;
          for (std::int64_t d = 0; d < l.head_size; ++d) score += q[d] * key[d];
          p[static_cast<std::size_t>(k)] = score / std::sqrt(static_cast<double>(l.head_size));
          most = std::max(most, p[static_cast<std::size_t>(k)]);
        }
        double sum = 0;
        for (double& e : p) sum += e = std::exp(e - most);
        for (std::int64_t k = 0; k <= query; ++k) {
          const double* value = v + (first + k) * 3 * width + 2 * width + h * l.head_size;
          double weight = p[static_cast<std::size_t>(k)] / sum;
          if (l.dropout > 0 && batch.training) {
            const auto row = static_cast<std::uint32_t>((l.head_begin + h) << 20 | query);
            const auto sample = batch.first_sample + static_cast<std::uint64_t>(r / c.positions);
            weight *= kept(batch.seed, c.node.name, sample, row, k, l.dropout) ? 1 / (1 - l.dropout) : 0;
          }
          for (std::int64_t d = 0; d < l.head_size; ++d) y[r * width + h * l.head_size + d] += weight * value[d];
        }
      }
    }
  }
  void forward(const model::Unary& l, const Flat& flat, const double* v, double* y) const {
    for (std::int64_t i = 0; i < flat.rows * l.features; ++i) y[i] = unary(l.kind, v[i]);
  }
  void forward(const model::Dropout& l, const Flat& flat, const double* v, double* y) const {
    for (std::int64_t i = 0; i < flat.rows * l.features; ++i) {
      const std::int64_t r = i / l.features;
      const bool keep =
          !batch.training ||
          kept(batch.seed, c.node.name, batch.first_sample + static_cast<std::uint64_t>(r / c.positions),
               static_cast<std::uint32_t>(r % c.positions), l.feature_begin + i % l.features, l.probability);
      y[i] = keep ? v[i] / (batch.training ? 1 - l.probability : 1.0) : 0.0;
    }
  }
  void forward(const model::Delay& l, const Flat& flat, const double* v, double* y) const {
    for (std::int64_t i = 0; i < flat.rows * l.features; ++i) y[i] = v[i];
  }
  void forward(const model::Add& l, const Flat& flat, const double* v, double* y) const {
    for (std::int64_t i = 0; i < flat.rows * l.features; ++i) y[i] = v[i] + v[flat.input(1) + i];
  }
  void forward(const model::Flatten& l, const Flat& flat, const double* v, double* y) const {
    for (std::int64_t i = 0; i < flat.rows * l.features; ++i) y[i] = v[i];
  }
  void forward(const model::CrossEntropy&, const Flat&, const double*, double*) const {}
  void forward(const model::MeanSquaredError&, const Flat&, const double*, double*) const {}

  static double unary(model::UnaryKind kind, double x) {
    switch (kind) {
      case model::UnaryKind::Gelu:
        return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
      case model::UnaryKind::Relu:
        return std::max(x, 0.0);
      case model::UnaryKind::Tanh:
        return std::tanh(x);
      case model::UnaryKind::Sigmoid:
        return 1 / (1 + std::exp(-x));
    }
    return 0;
  }
};

inline Case make_case(const std::string& name, model::Op op, std::int64_t positions, std::int64_t in, std::int64_t out,
                      std::vector<std::int64_t> parameters, double roundings) {
  Case c;
  c.node.name = name;
  c.node.op = op;
  c.positions = positions;
  c.in = in;
  c.out = out;
  c.parameters = std::move(parameters);
  c.roundings = roundings;
  return c;
}

/// One case a layer and variant. Roundings: of a sum of n products 2n; of the exponential 8, of a division 1.
inline std::vector<Case> all_cases() {
  std::vector<Case> cases;
  cases.push_back(make_case("embedding", model::Embedding{11, 0, 21}, 3, 0, 21, {11 * 21}, 12));
  cases.push_back(make_case("embedding shard", model::Embedding{4, 3, 70}, 3, 0, 70, {4 * 70}, 12));
  cases.push_back(make_case("position", model::PositionEmbedding{5, 7}, 3, 7, 7, {5 * 7}, 6));
  cases.push_back(make_case("linear", model::Linear{7, 19, true, true}, 3, 7, 19, {19 * 7, 19}, 40));
  cases.push_back(make_case("linear, bias elsewhere", model::Linear{7, 5, true, false}, 3, 7, 5, {5 * 7, 5}, 24));
  cases.push_back(make_case("linear without bias", model::Linear{3, 5, false, true}, 3, 3, 5, {5 * 3}, 24));
  // Three sums of 37 in 32 lanes (7 roundings each), square root, divisions, the maps.
  cases.push_back(make_case("norm", model::LayerNorm{37, 1e-5}, 3, 37, 37, {37, 37}, 48));
  // Scores, softmax, its backward and the products: sums of 4 and 5, two exponentials.
  cases.push_back(make_case("attention", model::Attention{2, 0, 2, 4, 0}, 5, 24, 8, {}, 60));
  cases.push_back(make_case("attention with dropout", model::Attention{2, 1, 4, 4, 0.3}, 5, 24, 8, {}, 60));
  // An error of u·|2u| in the exponent of gelu counts as |2u| ≤ 8 roundings for |x| ≤ 3.5.
  cases.push_back(make_case("gelu", model::Unary{model::UnaryKind::Gelu, 23}, 3, 23, 23, {}, 32));
  cases.push_back(make_case("relu", model::Unary{model::UnaryKind::Relu, 23}, 3, 23, 23, {}, 4));
  cases.push_back(make_case("tanh", model::Unary{model::UnaryKind::Tanh, 23}, 3, 23, 23, {}, 16));
  cases.push_back(make_case("sigmoid", model::Unary{model::UnaryKind::Sigmoid, 23}, 3, 23, 23, {}, 16));
  cases.push_back(make_case("dropout", model::Dropout{21, 50, 90, 0.4}, 3, 21, 21, {}, 4));
  cases.push_back(make_case("dropout of nothing", model::Dropout{21, 0, 21, 0.0}, 3, 21, 21, {}, 4));
  cases.push_back(make_case("delay", model::Delay{21, 0.5, 0.01, 0.02}, 3, 21, 21, {}, 1));
  cases.push_back(make_case("add", model::Add{9}, 3, 9, 9, {}, 4));
  cases.back().inputs = 2;
  cases.push_back(make_case("flatten", model::Flatten{3, 9}, 3, 9, 9, {}, 4));
  for (Case& c : cases) {
    if (std::holds_alternative<model::PositionEmbedding>(c.node.op)) c.table_positions = 5;
  }
  return cases;
}

}  // namespace trainer::test
