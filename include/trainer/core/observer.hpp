// How the training loop tells the outside what happened, without knowing who listens.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "trainer/core/time_split.hpp"

namespace trainer {

/// One optimizer step, complete and agreed by all ranks.
struct StepReport {
  std::int64_t step = 0;  // from 1
  std::int64_t total_steps = 0;
  double loss = 0;           // before the update; mean over the global batch's valid targets
  double grad_norm = 0;      // before clipping
  double learning_rate = 0;  // the rate this step used
  double step_seconds = 0;   // without evaluation and saving
  std::int64_t samples = 0;  // seen so far, this step included
  std::int64_t tokens = 0;   // the same for sequence models, else 0
  std::int64_t step_samples = 0;
  std::int64_t step_tokens = 0;
  double exchange_bytes = 0;          // of gradients, sent between replicas by all ranks; 0: they share memory
  double flops = 0;                   // of the step, all ranks
  double peak_flops = 0;              // of the cores in use, all ranks, per second; 0 when not measured
  std::int64_t allocations = -1;      // by our own code during the step, on this rank; -1 when not counted
  std::span<const TimeSplit> splits;  // [rank] of logged steps; empty when not gathered
  std::span<const std::int64_t> micro_batches;  // [replica] that each took, where they differ by speed; else empty
};

/// The first, the last, and every `every_steps`-th (0: none of these), counted from step 1 of the training, so that a
/// resumed run logs what an uninterrupted one would have.
inline bool is_logged(std::int64_t step, std::int64_t total_steps, std::int64_t every_steps) {
  return step == 1 || step == total_steps || (every_steps > 0 && step % every_steps == 0);
}

struct EvaluationReport {
  std::int64_t step = 0;
  double loss = 0;                 // mean over the held-out targets
  std::optional<double> accuracy;  // classification only
  std::int64_t targets = 0;
  double seconds = 0;
};

/// How many micro-batches of a step each replica takes from here on, where that goes by their speed.
struct ShareReport {
  std::int64_t step = 0;                        // the last step before they hold
  std::span<const std::int64_t> micro_batches;  // [replica]
  std::span<const double> seconds;              // [replica] of one micro-batch, as measured; empty: not yet
};

/// Called on rank 0 only. Implementations live in observe; every method may do nothing.
class Observer {
 public:
  virtual ~Observer() = default;
  virtual void step(const StepReport&) {}
  virtual void evaluation(const EvaluationReport&) {}
  virtual void shares(const ShareReport&) {}
  virtual void saved(std::int64_t /*step*/, std::string_view /*directory*/, double /*seconds*/) {}
  virtual void note(std::string_view /*message*/) {}
  virtual void warning(std::string_view /*message*/) {}
};

}  // namespace trainer
