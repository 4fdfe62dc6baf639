// Facts of a run or checkpoint as JSON, for scripts.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "trainer/core/observer.hpp"

namespace trainer::observe {

struct RunSummary {
  struct Memory {
    int rank = 0;
    double predicted = 0, measured = 0;  // bytes, above what the process had when MPI had started
    double live_set = 0;                 // bytes of weights, gradients, optimizer state and activations
    double process = 0;                  // bytes, the peak of the whole process
  };
  std::int64_t first_step = 0, last_step = 0;
  double loss = 0;
  std::optional<double> validation_loss, accuracy;
  double seconds = 0;  // in steps
  int exit_code = 0;
  std::vector<Memory> memory;
  /// Mean seconds of the steps' passes over the schedule, but for the first step: one for each stage of a rank.
  struct Pass {
    int rank = 0;
    std::int64_t stage = 0;
    double forward = 0, backward_input = 0, backward_weight = 0;  // computing, a micro-batch
    double whole = 0;                                             // a step, with waits
  };
  std::vector<Pass> passes;
  std::optional<double> simulated_pass;  // of a pipeline: what `whole` would be without any other loss
};

/// {"first_step", "last_step", "loss", "validation_loss"?, "accuracy"?, "seconds", "exit_code",
///  "peak_memory": [{"rank", "predicted", "measured", "live_set", "process"}, …],
///  "passes": [{"rank", "stage", "forward", "backward_input", "backward_weight", "whole"}, …], "simulated_pass"?}
std::string to_json(const RunSummary& summary);

/// {"step", "validation_loss", "accuracy"?, "validation_targets"}
std::string to_json(const EvaluationReport& report);

/// {"path", "step", "build", "parameters", "config": {…}}; `config` is JSON text.
std::string checkpoint_json(const std::string& path, std::int64_t step, const std::string& build,
                            const std::string& config, std::int64_t parameters);

}  // namespace trainer::observe
