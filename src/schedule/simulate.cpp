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

}  // namespace trainer::schedule
