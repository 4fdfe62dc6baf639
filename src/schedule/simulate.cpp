// Times a table.
#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "engine.hpp"
#include "structure.hpp"
#include "trainer/core/error.hpp"

namespace trainer::schedule {
namespace {

Timing run(const Schedule& schedule, const std::vector<StageTimes>& times, double transfer) {
  if (std::optional<Violation> fault = structural_fault(schedule)) {
    internal_error("the schedule to simulate is not valid: " + fault->message);
  }
  Engine engine(schedule, times, transfer);
  engine.run();
  Timing timing;
  for (std::size_t r = 0; r < schedule.ranks.size(); ++r) {
    if (!engine.done(r)) {
      internal_error(fmt::format("the schedule to simulate deadlocks with rank {} at {}", r,
                                 to_string(schedule.ranks[r][engine.position(r)])));
    }
    timing.step = std::max(timing.step, engine.clock(r));
    double busy = 0;
    for (const Action& action : schedule.ranks[r]) busy += engine.duration(action);
    timing.busy.push_back(busy);
  }
  timing.start = std::move(engine.starts());
  return timing;
}

// `passes` times the table, one behind the other; reductions, which take no time, left out.
Schedule repeated(const Schedule& schedule, std::int64_t passes) {
  Schedule all = schedule;
  all.micro_batches = passes * schedule.micro_batches;
  for (std::vector<Action>& row : all.ranks) {
    std::erase_if(row, [](const Action& action) { return action.kind == ActionKind::ReduceGradients; });
    const std::vector<Action> one = row;
    for (std::int64_t pass = 1; pass < passes; ++pass) {
      for (Action action : one) {
        action.micro_batch = MicroBatchId(action.micro_batch.value + pass * schedule.micro_batches);
        row.push_back(action);
      }
    }
  }
  return all;
}

}  // namespace

double Timing::bubble() const {
  if (busy.empty() || step <= 0) return 0;
  return 1 - std::accumulate(busy.begin(), busy.end(), 0.0) / (static_cast<double>(busy.size()) * step);
}

Timing simulate(const Schedule& schedule, const std::vector<StageTimes>& times, double transfer) {
  if (static_cast<std::int64_t>(times.size()) != schedule.stages) {
    internal_error(fmt::format("{} stage times for a schedule of {} stages", times.size(), schedule.stages));
  }
  if (has_communication(schedule)) return run(schedule, times, transfer);

  const Schedule lowered = add_communication(schedule);
  Timing timing = run(lowered, times, transfer);
  for (std::size_t r = 0; r < lowered.ranks.size(); ++r) {
    std::vector<double> kept;
    kept.reserve(schedule.ranks[r].size());
    for (std::size_t i = 0; i < lowered.ranks[r].size(); ++i) {
      const ActionKind kind = lowered.ranks[r][i].kind;
      if (!is_send(kind) && !is_receive(kind)) kept.push_back(timing.start[r][i]);
    }
    timing.start[r] = std::move(kept);
  }
  return timing;
}

Timing simulate_without_barrier(const Schedule& schedule, const std::vector<StageTimes>& times, double transfer) {
  constexpr std::int64_t kPasses = 3;  // until their distance is steady
  Timing timing = simulate(schedule, times, transfer);
  timing.step = simulate(repeated(schedule, kPasses + 1), times, transfer).step -
                simulate(repeated(schedule, kPasses), times, transfer).step;
  return timing;
}

}  // namespace trainer::schedule
