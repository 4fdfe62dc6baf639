// Optimizers on flat spans, learning-rate curves, norms and clipping. Element-wise and rank-free.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "trainer/config/config.hpp"
#include "trainer/core/thread_pool.hpp"

namespace trainer::optim {

inline constexpr int kMaxState = 2;

/// One contiguous run of a parameter and what belongs to it; all of `count` elements.
struct Segment {
  float* weight = nullptr;
  const float* gradient = nullptr;
  float* state[kMaxState] = {};
  float* before = nullptr;  // [1 + states][count]: where update keeps weight and states as they were, when asked to
  std::int64_t count = 0;
  bool decay = true;
};

class Optimizer {
 public:
  virtual ~Optimizer() = default;
  /// State tensors of the parameter's size, zero at the start; names are those in checkpoints.
  virtual int state_count() const = 0;
  virtual std::string_view state_name(int index) const = 0;  // "exp_avg", "exp_avg_sq", "momentum"
  /// Update `step` (from 1) with this rate; each gradient element is first multiplied by gradient_scale (the clip).
  /// With `keep_before` every segment's weight and states are first copied to its `before`, for take_back.
  /// Bits do not depend on how elements are cut into segments or on the number of threads. Allocates nothing.
  virtual void update(ThreadPool& pool, std::span<const Segment> segments, std::int64_t step, double learning_rate,
                      float gradient_scale, bool keep_before = false) const = 0;
  /// Puts back, bit for bit, what the last update with `keep_before` has changed.
  void take_back(ThreadPool& pool, std::span<const Segment> segments) const;
};

/// As PyTorch's SGD (momentum, Nesterov, decay added to the gradient) and AdamW (decoupled decay, bias correction).
std::unique_ptr<Optimizer> make_optimizer(const config::Optimizer& config);

/// The rate of step (from 1) of total_steps, over config.learning_rate, with w = warmup_steps and r = final_ratio:
///   step ≤ w   step / w: the first step is not 0, step w has the whole rate
///   step > w   with t = (step − w) / (total_steps − w), so that the last step has t = 1 and exactly r:
///              constant 1; linear 1 − t + r·t; cosine r + (1 − r)·(1 + cos πt) / 2
/// A run of total_steps ≤ w ends in warm-up. A step past both w and total_steps stays at t = 1.
double learning_rate(const config::Optimizer& config, std::int64_t step, std::int64_t total_steps);

/// Σ x² in double over fixed blocks of 4096 elements, block sums added in ascending order; any number of threads gives
/// the same bits on every machine. A value that is not finite makes the sum so. `block_sums` is scratch of
/// norm_scratch(count) doubles, which holds the blocks' sums afterwards.
double sum_of_squares(ThreadPool& pool, std::span<const float> values, double* block_sums);
std::int64_t norm_scratch(std::int64_t count);
inline constexpr std::int64_t kNormBlockElements = 4096;

/// min(1, limit / norm) as PyTorch's clip_grad_norm_ has it (limit / (norm + 1e-6)); 1 when limit is 0. NaN for a NaN
/// norm.
float clip_scale(double norm, double limit);

}  // namespace trainer::optim
