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

Schedule add_communication(Schedule schedule) {
  const Channels channels(schedule);
  const auto with_messages = [&](const Action& action, auto&& visit) {
    if (is_send(action.kind) || is_receive(action.kind)) return;
    const bool known = is_known(schedule, action.stage);
    const std::int64_t in = known ? channels.input(action) : Channels::kNone;
    const std::int64_t out = known ? channels.output(action) : Channels::kNone;
    if (channels.crosses(in)) visit(Channels::receive(in, action.micro_batch));
    visit(action);
    if (channels.crosses(out)) visit(Channels::send(out, action.micro_batch));
  };
  const std::size_t reductions =
      static_cast<std::size_t>(schedule.stages) / std::max<std::size_t>(1, schedule.ranks.size());
  for (std::vector<Action>& row : schedule.ranks) {
    std::size_t count = reductions + 1;  // with room for them, so that adding them copies no row
    for (const Action& action : row) with_messages(action, [&](const Action&) { ++count; });
    std::vector<Action> full;
    full.reserve(count);
    for (const Action& action : row) with_messages(action, [&](const Action& a) { full.push_back(a); });
    row = std::move(full);
  }
  return schedule;
}

Schedule add_reductions(Schedule schedule) {
  const auto counts = [&](const Action& action) {
    return makes_weight_gradient(action.kind) && is_known(schedule, action.stage);
  };
  std::vector<std::size_t> last(static_cast<std::size_t>(schedule.stages));  // of a stage's weight gradients, plus one
  for (std::vector<Action>& row : schedule.ranks) {
    std::erase_if(row, [](const Action& action) { return action.kind == ActionKind::ReduceGradients; });
    std::fill(last.begin(), last.end(), 0);
    for (std::size_t i = 0; i < row.size(); ++i) {
      if (counts(row[i])) last[row[i].stage.index()] = i + 1;
    }
    // From the back, so that the places in front stay where they are.
    std::vector<std::size_t> places;
    for (const std::size_t place : last) {
      if (place > 0) places.push_back(place);
    }
    std::sort(places.rbegin(), places.rend());
    for (const std::size_t place : places) {
      const Action reduction{row[place - 1].stage, ActionKind::ReduceGradients, MicroBatchId()};
      // A joint B may have its send right behind it.
      const bool sent = place < row.size() && row[place].kind == ActionKind::SendBackward;
      row.insert(row.begin() + static_cast<std::ptrdiff_t>(place + (sent ? 1 : 0)), reduction);
    }
  }
  return schedule;
}

}  // namespace trainer::schedule
