// One differentiable operation on local matrices. Operators are immutable, hold no activations and know no ranks;
// what a backward needs is handed in again. A backward is split: backward_input (I) and backward_weight (W).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "trainer/core/tensor.hpp"
#include "trainer/core/thread_pool.hpp"
#include "trainer/model/graph.hpp"
#include "trainer/ops/matmul.hpp"

namespace trainer::ops {

/// Which piece of the data a call works on; what random masks are keyed by.
struct MicroBatch {
  std::int64_t samples = 0;
  std::int64_t positions = 1;      // rows = samples · positions
  std::uint64_t first_sample = 0;  // number of the first sample in the whole training; the others follow it
  std::uint64_t seed = 0;
  bool training = true;  // false: dropout is the identity
  std::int64_t rows() const { return samples * positions; }
};

/// What an operator needs and permits, for `rows` rows and `threads` threads; fixed at construction of the stage.
struct Needs {
  // Who reads what in the backward; what nobody reads is freed after the forward.
  bool input_in_backward_input = false;
  bool output_in_backward_input = false;
  bool input_in_backward_weight = false;
  bool saved_in_backward_weight = false;            // saved bytes must live until W, else until I
  bool output_gradient_in_backward_weight = false;  // dy must live until W
  bool has_weight = false;                          // backward_weight exists
  bool always_backward_input = false;               // called (with dx null) even when nobody wants a gradient
  std::size_t saved_bytes = 0;                      // written by forward (row statistics, …), read by I and W
  std::size_t workspace_bytes = 0;                  // scratch of any one call
};

inline constexpr int kMaxInputs = 2;
inline constexpr int kMaxParameters = 2;

struct ForwardCall {
  ThreadPool& pool;
  MicroBatch batch;
  ConstMatrix x[kMaxInputs] = {};  // [rows, in features]
  ConstTokens tokens = {};         // [rows, 1] in place of x[0] where the input is tokens
  const float* parameters[kMaxParameters] = {};
  Matrix y = {};               // [rows, out features], overwritten
  std::byte* saved = nullptr;  // Needs::saved_bytes
  std::byte* workspace = nullptr;
};
struct BackwardInputCall {
  ThreadPool& pool;
  MicroBatch batch;
  ConstMatrix x[kMaxInputs] = {};  // where Needs asks for it
  ConstMatrix y = {};              // where Needs asks for it
  ConstMatrix dy = {};             // [rows, out features]
  const float* parameters[kMaxParameters] = {};
  const std::byte* saved = nullptr;
  Matrix dx[kMaxInputs] = {};        // null where nobody wants it
  bool accumulate[kMaxInputs] = {};  // dx += instead of dx =
  std::byte* workspace = nullptr;
};
struct BackwardWeightCall {
  ThreadPool& pool;
  MicroBatch batch;
  ConstMatrix x[kMaxInputs] = {};
  ConstTokens tokens = {};
  ConstMatrix dy = {};
  const float* parameters[kMaxParameters] = {};
  const std::byte* saved = nullptr;
  float* gradients[kMaxParameters] = {};  // same shapes as the parameters
  bool accumulate = false;                // false for a step's first micro-batch: overwrite, no zeroing pass before
  std::byte* workspace = nullptr;
};

/// Bits of every result are a function of the operands and sizes only: not of the number of threads, and not of the
/// number of rows or features beside the element (one chain in ascending order, restarted at fixed block bounds).
class Operator {
 public:
  virtual ~Operator() = default;
  virtual Needs needs(std::int64_t rows, int threads) const = 0;
  virtual void forward(const ForwardCall& call) const = 0;
  virtual void backward_input(const BackwardInputCall& call) const = 0;
  virtual void backward_weight(const BackwardWeightCall& call) const;  // default: none
};

/// The operator of a node with local sizes, for samples of up to `positions` rows; the node's name keys its random
/// masks, and `precision` is that of its matrix products; everything else is float32. One row a kind in
/// src/ops/registry.cpp. Losses are not operators (see loss.hpp).
std::unique_ptr<Operator> make_operator(const model::Node& node, std::int64_t positions,
                                        MatmulPrecision precision = MatmulPrecision::Float32);

}  // namespace trainer::ops
