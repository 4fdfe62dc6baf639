#include "run_end.hpp"

#include <fmt/format.h>

#include <array>
#include <numeric>

#include "trainer/comm/topology.hpp"
#include "trainer/runtime/agreement.hpp"

namespace trainer::runtime {

namespace {

RankPass pass_of(const RankTimes& times) {
  const double steps = 1e9 * static_cast<double>(times.steps);
  RankPass pass;
  for (const ActionLog::StageSum& stage : times.stages) {
    const auto sum = std::accumulate(stage.nanoseconds.begin(), stage.nanoseconds.end(), std::int64_t{0});
    if (sum == 0) continue;
    pass.compute.push_back(stage_times(stage));
    pass.busy += static_cast<double>(sum) / steps;
  }
  pass.whole = static_cast<double>(times.pass) / steps;
  return pass;
}

}  // namespace

std::unique_ptr<Observer> make_observers(comm::Communicator& world, const TrainOptions& options, const Saver& saver,
                                         const PendingMessages& pending, std::int64_t done, std::int64_t total) {
  auto observer = std::make_unique<Observer>();
  agree(world, [&] {
    if (world.rank() == 0 && options.observers) observer = options.observers(done, total);
  });
  for (const std::string& text : pending.notes) observer->note(text);
  for (const std::string& text : pending.warnings) observer->warning(text);
  if (!saver.enabled()) observer->note("checkpoint.directory is not set: nothing will be saved");
  if (done > 0) observer->note(fmt::format("resuming after step {} from {}", done, saver.last_path()));
  return observer;
}

std::vector<RankMemory> gather_memory(comm::Communicator& world, const MemoryPrediction& predicted,
                                      std::size_t log_bytes, std::int64_t base_memory) {
  const auto ranks = static_cast<std::size_t>(world.size());
  const auto mine = static_cast<std::size_t>(world.rank());
  const std::int64_t peak = comm::peak_resident_bytes();
  const std::array<double, 4> own{static_cast<double>(predicted.total() + log_bytes),
                                  static_cast<double>(peak - base_memory), static_cast<double>(predicted.live_set()),
                                  static_cast<double>(peak)};
  std::vector<double> facts(own.size() * ranks, 0.0);
  std::copy(own.begin(), own.end(), facts.begin() + static_cast<std::ptrdiff_t>(own.size() * mine));
  world.sum(facts);
  std::vector<RankMemory> memory;
  for (std::size_t r = 0; r < ranks; ++r) {
    const double* of = facts.data() + own.size() * r;
    memory.push_back({of[0], of[1], of[2], of[3]});
  }
  return memory;
}

void gather_times(comm::Communicator& mesh, const RunPlan& plan, const ActionLog& log, StepTimes& times,
                  const comm::ClockSample& clock, int threads, const TrainOptions& options, TrainResult& result,
                  const std::vector<const schedule::Schedule*>& tables) {
  if (result.last_step < result.first_step) return;
  const std::vector<RankTimes> ranks = times.gather_run();
  const comm::ClockSample now = comm::measure_clock(mesh, plan.node_of_rank, steady_nanoseconds);
  result.timeline = gather_timeline(mesh, plan, log, clock, now, threads, options.trace ? &*options.trace : nullptr);
  if (mesh.rank() != 0) return;
  result.splits = split_ranks(plan, ranks, tables);
  if (result.last_step == result.first_step) return;
  for (const RankTimes& rank : ranks) result.passes.push_back(pass_of(rank));
}

void conclude(TrainResult& result, const Saver& saver, const RunPlan& plan, std::int64_t total, bool interrupted,
              bool limit_reached) {
  result.checkpoint = saver.last_path();
  if (saver.failed()) {
    result.code = ExitCode::Storage;
    result.message = "a checkpoint could not be saved: " + saver.last_failure();
  } else if (interrupted) {
    result.code = ExitCode::Interrupted;
    const std::string reason =
        limit_reached ? fmt::format("training.time_limit of {} s reached: stopped", plan.config.training.time_limit)
                      : "stopped on request";
    result.message = fmt::format(
        "{} after step {} of {}; {}", reason, result.last_step, total,
        saver.enabled() ? "continue with --resume" : "nothing was saved, as checkpoint.directory is not set");
  }
}

}  // namespace trainer::runtime
