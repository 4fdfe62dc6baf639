// Runs one operator on random operands, with every byte it must not rely on poisoned.
#pragma once

#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "layers.hpp"
#include "trainer/core/random.hpp"
#include "trainer/core/tensor.hpp"
#include "trainer/ops/operator.hpp"

namespace trainer::test {

using Floats = std::vector<float>;

/// An operator and the sizes of what it works on.
struct Case {
  model::Node node;
  std::int64_t positions = 1;  // of a sample
  std::int64_t in = 0;         // features of each input; 0: tokens
  std::int64_t out = 0;
  int inputs = 1;
  std::vector<std::int64_t> parameters;  // elements of each
  std::int64_t table_positions = 0;      // handed to make_operator; 0: positions
  double roundings = 8;                  // on the longest way from an operand to a result
};

struct Operands {
  Floats x[2];
  std::vector<std::int32_t> tokens;
  std::vector<Floats> parameters;
  Floats dy;
};

struct Results {
  Floats y;
  Floats dx[2];
  std::vector<Floats> gradients;
};

inline Floats normals(std::uint64_t seed, const std::string& name, std::int64_t n) {
  const RandomStream stream(seed, name);
  Floats values(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = stream.normal(i);
  return values;
}

inline Operands random_operands(const Case& c, std::int64_t rows, std::uint64_t seed = 1, std::int64_t vocab = 11) {
  Operands operands;
  for (int i = 0; i < c.inputs && c.in > 0; ++i) operands.x[i] = normals(seed, "x" + std::to_string(i), rows * c.in);
  if (c.in == 0) {
    const RandomStream stream(seed, "tokens");
    for (std::int64_t r = 0; r < rows; ++r) {
      const auto word = static_cast<std::int64_t>(stream.bits(static_cast<std::uint64_t>(r)) >> 1);
      operands.tokens.push_back(static_cast<std::int32_t>(word % (vocab + 1) - 1));  // -1 now and then
    }
  }
  for (std::size_t p = 0; p < c.parameters.size(); ++p) {
    operands.parameters.push_back(normals(seed, "parameter" + std::to_string(p), c.parameters[p]));
  }
  operands.dy = normals(seed, "dy", rows * c.out);
  return operands;
}

inline void poison(Buffer& buffer) {
  if (buffer.size() > 0) std::memset(buffer.data(), 0xff, buffer.size());
}

class Runner {
 public:
  Runner(const Case& c, const ops::Operator& op, int threads) : case_(c), op_(op), pool_(threads, false) {}

  /// Forward, I and W. `before` gives what dx and the gradients hold when they are to be accumulated upon.
  Results run(const Operands& operands, const ops::MicroBatch& batch, const Results* before = nullptr) {
    const std::int64_t rows = batch.rows();
    const ops::Needs needs = op_.needs(rows, pool_.threads());
    Buffer saved(needs.saved_bytes);
    Buffer workspace(needs.workspace_bytes);
    poison(saved);
    Results results;
    forward(operands, batch, saved, workspace, results);
    backward_input(operands, batch, needs, saved, workspace, before, results);
    if (!needs.saved_in_backward_weight) poison(saved);
    if (needs.has_weight) backward_weight(operands, batch, needs, saved, workspace, before, results);
    return results;
  }

 private:
  static Floats nans(std::int64_t n) {
    return Floats(static_cast<std::size_t>(n), std::numeric_limits<float>::quiet_NaN());
  }
  ConstMatrix input(const Operands& operands, int i, std::int64_t rows, bool wanted = true) const {
    if (!wanted || operands.x[i].empty()) return {};
    return {operands.x[i].data(), rows, case_.in};
  }

  void forward(const Operands& operands, const ops::MicroBatch& batch, Buffer& saved, Buffer& workspace,
               Results& results) {
    const std::int64_t rows = batch.rows();
    results.y = nans(rows * case_.out);
    poison(workspace);
    ops::ForwardCall call{.pool = pool_, .batch = batch, .saved = saved.data(), .workspace = workspace.data()};
    for (int i = 0; i < case_.inputs; ++i) call.x[i] = input(operands, i, rows);
    call.tokens = {operands.tokens.data(), rows, 1};
    for (std::size_t p = 0; p < operands.parameters.size(); ++p) call.parameters[p] = operands.parameters[p].data();
    call.y = {results.y.data(), rows, case_.out};
    op_.forward(call);
  }

  void backward_input(const Operands& operands, const ops::MicroBatch& batch, const ops::Needs& needs,
                      const Buffer& saved, Buffer& workspace, const Results* before, Results& results) {
    const std::int64_t rows = batch.rows();
    poison(workspace);
    ops::BackwardInputCall call{.pool = pool_, .batch = batch, .saved = saved.data(), .workspace = workspace.data()};
    for (int i = 0; i < case_.inputs; ++i) call.x[i] = input(operands, i, rows, needs.input_in_backward_input);
    if (needs.output_in_backward_input) call.y = {results.y.data(), rows, case_.out};
    call.dy = {operands.dy.data(), rows, case_.out};
    for (std::size_t p = 0; p < operands.parameters.size(); ++p) call.parameters[p] = operands.parameters[p].data();
    for (int i = 0; i < case_.inputs && case_.in > 0; ++i) {
      results.dx[i] = before != nullptr ? before->dx[i] : nans(rows * case_.in);
      call.dx[i] = {results.dx[i].data(), rows, case_.in};
      call.accumulate[i] = before != nullptr;
    }
    op_.backward_input(call);
  }

  void backward_weight(const Operands& operands, const ops::MicroBatch& batch, const ops::Needs& needs,
                       const Buffer& saved, Buffer& workspace, const Results* before, Results& results) {
    const std::int64_t rows = batch.rows();
    poison(workspace);
    ops::BackwardWeightCall call{.pool = pool_, .batch = batch, .saved = saved.data(), .workspace = workspace.data()};
    for (int i = 0; i < case_.inputs; ++i) call.x[i] = input(operands, i, rows, needs.input_in_backward_weight);
    if (needs.input_in_backward_weight) call.tokens = {operands.tokens.data(), rows, 1};
    if (needs.output_gradient_in_backward_weight) call.dy = {operands.dy.data(), rows, case_.out};
    results.gradients.resize(case_.parameters.size());
    for (std::size_t p = 0; p < case_.parameters.size(); ++p) {
      results.gradients[p] = before != nullptr ? before->gradients[p] : nans(case_.parameters[p]);
      call.parameters[p] = operands.parameters[p].data();
      call.gradients[p] = results.gradients[p].data();
    }
    call.accumulate = before != nullptr;
    op_.backward_weight(call);
  }

  const Case& case_;
  const ops::Operator& op_;
  ThreadPool pool_;
};

inline Results run(const Case& c, const Operands& operands, const ops::MicroBatch& batch, int threads = 1,
                   const ops::Kernels& kernels = ops::best_kernels(), const Results* before = nullptr,
                   ops::MatmulPrecision precision = ops::MatmulPrecision::Float32) {
  const auto op =
      ops::make_operator_with(c.node, c.table_positions > 0 ? c.table_positions : c.positions, kernels, precision);
  return Runner(c, *op, threads).run(operands, batch, before);
}

inline Results run_bfloat16(const Case& c, const Operands& operands, const ops::MicroBatch& batch, int threads = 1,
                            const Results* before = nullptr) {
  return run(c, operands, batch, threads, ops::best_kernels(), before, ops::MatmulPrecision::BFloat16);
}

/// The bits are the same (NaN equals NaN of the same bits; +0 differs from -0).
inline bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

inline bool same_bits(const Results& a, const Results& b) {
  if (a.gradients.size() != b.gradients.size()) return false;
  bool same = same_bits(a.y, b.y) && same_bits(a.dx[0], b.dx[0]) && same_bits(a.dx[1], b.dx[1]);
  for (std::size_t p = 0; p < a.gradients.size(); ++p) same = same && same_bits(a.gradients[p], b.gradients[p]);
  return same;
}

/// The worst |computed - expected| / bound; at most 1 where all is well, infinity where something is not finite.
inline double worst_error(const Floats& computed, const std::vector<double>& expected,
                          const std::vector<double>& bounds) {
  double worst = computed.size() == expected.size() ? 0.0 : std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < computed.size() && i < expected.size(); ++i) {
    const double error = std::abs(static_cast<double>(computed[i]) - expected[i]) / bounds[i];
    if (!(error <= worst)) worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
  }
  return worst;
}

}  // namespace trainer::test
