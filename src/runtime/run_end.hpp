// What stepped and served runs have in common: what is due when, what is said before there is somebody to hear it, and
// the account at the end.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "saver.hpp"
#include "trainer/comm/clock.hpp"
#include "trainer/runtime/time_split.hpp"
#include "trainer/runtime/train.hpp"

namespace trainer::runtime {

/// Of every `every_steps`-th (0: none) and the last.
inline bool is_due(std::int64_t step, std::int64_t every_steps, std::int64_t total_steps) {
  return step == total_steps || (every_steps > 0 && step % every_steps == 0);
}

/// Keeps messages for the observers that are made later.
struct PendingMessages : Observer {
  std::vector<std::string> notes, warnings;
  void note(std::string_view text) override { notes.emplace_back(text); }
  void warning(std::string_view text) override { warnings.emplace_back(text); }
};
/// Makes the observers of rank 0 (elsewhere one that does nothing), and says what was kept, and where the run begins.
/// Collective.
std::unique_ptr<Observer> make_observers(comm::Communicator& world, const TrainOptions& options, const Saver& saver,
                                         const PendingMessages& pending, std::int64_t done, std::int64_t total);

/// Predicted and measured of every rank. Collective; `log_bytes` more than predicted are taken by a trace.
std::vector<RankMemory> gather_memory(comm::Communicator& world, const MemoryPrediction& predicted,
                                      std::size_t log_bytes, std::int64_t base_memory);

/// Splits, passes and timeline of the ranks of the mesh into `result`, whose first and last step are set. Collective
/// over the mesh. `clock`: taken before the first step. `tables`: as split_ranks takes them.
void gather_times(comm::Communicator& mesh, const RunPlan& plan, const ActionLog& log, StepTimes& times,
                  const comm::ClockSample& clock, int threads, const TrainOptions& options, TrainResult& result,
                  const std::vector<const schedule::Schedule*>& tables = {});

/// Code, message and last checkpoint of a run that was not broken off by an error.
void conclude(TrainResult& result, const Saver& saver, const RunPlan& plan, std::int64_t total, bool interrupted,
              bool limit_reached);

}  // namespace trainer::runtime
