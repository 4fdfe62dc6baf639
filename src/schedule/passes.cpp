// Passes: what a table of compute actions needs besides computing.
#include <algorithm>

#include "channels.hpp"

namespace trainer::schedule {
namespace {

/// Actions of stages that the table does not have pass through, for the verifier to name.
bool is_known(const Schedule& schedule, StageId stage) {
  return stage.valid() && stage.value < schedule.stages &&
         static_cast<std::int64_t>(schedule.rank_of_stage.size()) == schedule.stages;
}

}  // namespace

Schedule add_communication(const Schedule& schedule) {
  const Channels channels(schedule);
  Schedule result = schedule;
  for (std::size_t r = 0; r < schedule.ranks.size(); ++r) {
    std::vector<Action>& row = result.ranks[r];
    row.clear();
    row.reserve(2 * schedule.ranks[r].size() + 2);
    for (const Action& action : schedule.ranks[r]) {
      if (is_send(action.kind) || is_receive(action.kind)) continue;
      const bool known = is_known(schedule, action.stage);
      const std::int64_t in = known ? channels.input(action) : Channels::kNone;
      const std::int64_t out = known ? channels.output(action) : Channels::kNone;
      if (channels.crosses(in)) row.push_back(Channels::receive(in, action.micro_batch));
      row.push_back(action);
      if (channels.crosses(out)) row.push_back(Channels::send(out, action.micro_batch));
    }
  }
  return result;
}

Schedule add_reductions(const Schedule& schedule) {
  Schedule result = schedule;
  const auto counts = [&](const Action& action) {
    return makes_weight_gradient(action.kind) && is_known(schedule, action.stage);
  };
  std::vector<std::size_t> last(static_cast<std::size_t>(schedule.stages));  // of a stage's weight gradients, plus one
  for (std::vector<Action>& row : result.ranks) {
    std::erase_if(row, [](const Action& action) { return action.kind == ActionKind::ReduceGradients; });
    std::fill(last.begin(), last.end(), 0);
    for (std::size_t i = 0; i < row.size(); ++i) {
      if (counts(row[i])) last[row[i].stage.index()] = i + 1;
    }
    std::vector<Action> reduced;
    reduced.reserve(row.size() + 1);
    StageId due;
    for (std::size_t i = 0; i < row.size(); ++i) {
      // A joint B may have its send right behind it.
      if (due.valid() && row[i].kind != ActionKind::SendBackward) {
        reduced.push_back({due, ActionKind::ReduceGradients, MicroBatchId()});
        due = StageId();
      }
      reduced.push_back(row[i]);
      if (counts(row[i]) && last[row[i].stage.index()] == i + 1) due = row[i].stage;
    }
    if (due.valid()) reduced.push_back({due, ActionKind::ReduceGradients, MicroBatchId()});
    row = std::move(reduced);
  }
  return result;
}

}  // namespace trainer::schedule
