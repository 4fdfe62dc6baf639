// A whole run: directory, resume, steps, evaluations, checkpoints, and how it ends.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "trainer/comm/communicator.hpp"
#include "trainer/core/error.hpp"
#include "trainer/core/observer.hpp"
#include "trainer/observe/timeline.hpp"
#include "trainer/runtime/run_plan.hpp"
#include "trainer/runtime/timeline.hpp"
#include "trainer/storage/dataset.hpp"
#include "trainer/storage/file_system.hpp"

namespace trainer::runtime {

struct TrainOptions {
  bool resume = false;
  bool overwrite = false;
  bool evaluate = true;  // on held-out samples, where there are any
  int threads = 1;
  bool spin = true;                           // idle threads may spin: there is a core for each
  double peak_flops = 0;                      // of all cores in use; 0: not measured
  std::int64_t base_memory = 0;               // VmHWM of this process after MPI had started
  std::string build;                          // for the checkpoint's record
  const std::atomic<bool>* stop = nullptr;    // set by a signal
  std::function<std::int64_t()> allocations;  // of our own code so far; may be empty
  std::optional<TraceWindow> trace;           // TrainResult::timeline has these steps, not the typical one only
  /// Makes rank 0's observers once the resumed step (0: a fresh run) and total steps are known.
  std::function<std::unique_ptr<Observer>(std::int64_t resumed_step, std::int64_t total_steps)> observers;
};

struct RankMemory {
  double predicted = 0;  // bytes
  double measured = 0;   // VmHWM less its value after MPI had started
  double live_set = 0;   // MemoryPrediction::live_set
  double process = 0;    // VmHWM
};
/// Seconds of one rank's passes over the schedule, a step's mean without the first step: what the simulator takes, and
/// what there was.
struct RankPass {
  std::vector<schedule::StageTimes> compute;  // [stage of the rank] of one micro-batch; B is in backward_input
  double busy = 0;                            // of a step, in actions that compute
  double whole = 0;                           // of a step, with waits
};

struct TrainResult {
  ExitCode code = ExitCode::Done;
  std::int64_t first_step = 1;  // of this run
  std::int64_t last_step = 0;
  double loss = 0;            // of the last step
  double seconds = 0;         // in steps
  double exchange_bytes = 0;  // of gradients, sent between replicas by all ranks
  std::optional<double> validation_loss;
  std::optional<double> accuracy;
  std::string checkpoint;          // path of the last one written; empty: none
  std::vector<RankMemory> memory;  // [rank], on rank 0
  std::vector<TimeSplit> splits;   // [rank], on rank 0: means of the steps but the first (unless it is the only one)
  observe::Timeline timeline;      // on rank 0
  std::vector<RankPass> passes;    // [rank], on rank 0; empty after a single step
  std::vector<std::int64_t> micro_batches;  // [replica] that each took last, with balance "auto"; else empty
  std::int64_t balance_changes = 0;
  std::int64_t optimistic_updates = 0, updates_taken_back = 0;
  std::string message;  // why the run ended other than Done
};

/// Collective over `world` (plan.mesh.size() ranks). Throws Error, the same on every rank, for what ends the run early.
TrainResult train(comm::Communicator& world, const RunPlan& plan, const storage::Dataset& data,
                  storage::FileSystem& files, const TrainOptions& options);

}  // namespace trainer::runtime
