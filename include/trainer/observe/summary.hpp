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
  double seconds = 0;                       // in steps
  double exchange_bytes = 0;                // of gradients, sent between replicas by all ranks; 0: they share memory
  std::vector<std::int64_t> micro_batches;  // [replica] of the last step, where replicas' shares go by their speed
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
  std::vector<TimeSplit> splits;         // [rank] of a step, its mean but for the first one
  /// Before the run and after it.
  struct Promise {
    std::string what;    // "step seconds"
    std::string source;  // "cost model"
    double predicted = 0, measured = 0;
  };
  std::vector<Promise> promises;
};

/// {"first_step", "last_step", "loss", "validation_loss"?, "accuracy"?, "seconds", "exchange_bytes"?, "micro_batches"?,
///  "exit_code",
///  "peak_memory": [{"rank", "predicted", "measured", "live_set", "process"}, …],
///  "passes": [{"rank", "stage", "forward", "backward_input", "backward_weight", "whole"}, …], "simulated_pass"?,
///  "time": [{"rank", "step", "forward", …, "checkpoint"}, …], "predictions": [{"what", "source", "predicted",
///  "measured"}, …]}
std::string to_json(const RunSummary& summary);

/// What is known of a run before its first step, for people who look at it later.
struct RunFacts {
  std::string build, started;  // version and libraries; local time, ISO 8601
  std::int64_t total_steps = 0, resumed_step = 0;
  std::int64_t data = 1, pipeline = 1, tensor = 1;
  std::int64_t micro_batches = 1;
  int threads = 1;  // of rank 0
  std::string schedule;
  std::vector<std::string> stages;  // [stage] its layers
  struct Rank {
    std::string place;  // "stage 1, replica 0, tensor 0"
    double weights = 0, gradients = 0, optimizer = 0, activations = 0, communication = 0, data = 0, process = 0;
  };
  std::vector<Rank> ranks;  // predicted bytes by purpose
  double step_seconds = 0;  // predicted; 0: not
  double bubble = 0;        // predicted
  std::string config;       // JSON text
};
/// {"build", "started", "total_steps", "resumed_step", "data", "pipeline", "tensor", "micro_batches", "threads",
///  "schedule", "stages": […], "memory": [{"rank", "place", "weights", …, "process"}, …],
///  "prediction"?: {"step_seconds", "bubble"}, "config": {…}}
std::string to_json(const RunFacts& facts);

/// {"step", "validation_loss", "accuracy"?, "validation_targets"}
std::string to_json(const EvaluationReport& report);

/// {"path", "step", "build", "parameters", "config": {…}}; `config` is JSON text.
std::string checkpoint_json(const std::string& path, std::int64_t step, const std::string& build,
                            const std::string& config, std::int64_t parameters);

}  // namespace trainer::observe
