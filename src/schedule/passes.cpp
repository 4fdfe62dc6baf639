// Passes: what a table of compute actions needs besides computing.
#include <algorithm>
#include <utility>

#include "channels.hpp"
#include "engine.hpp"
#include "structure.hpp"

namespace trainer::schedule {
namespace {

/// Actions of stages that the table does not have pass through, for the verifier to name.
bool is_known(const Schedule& schedule, StageId stage) {
  return stage.valid() && stage.value < schedule.stages &&
         static_cast<std::int64_t>(schedule.rank_of_stage.size()) == schedule.stages;
}

/// Whether each channel is filled and emptied in ascending micro-batches.
bool ascending(const Schedule& schedule, const Channels& channels) {
  constexpr std::int32_t kNone = -1;
  std::vector<std::int32_t> made(static_cast<std::size_t>(std::max<std::int64_t>(0, channels.count())), kNone);
  std::vector<std::int32_t> taken = made;
  const auto follows = [](std::vector<std::int32_t>& last, std::int64_t channel, MicroBatchId i) {
    if (channel == Channels::kNone) return true;
    return std::exchange(last[static_cast<std::size_t>(channel)], i.value) < i.value;
  };
  for (const std::vector<Action>& row : schedule.ranks) {
    for (const Action& a : row) {
      if (!is_compute(a.kind) || !is_known(schedule, a.stage)) continue;
      if (!follows(made, channels.output(a), a.micro_batch)) return false;
      if (!follows(taken, channels.input(a), a.micro_batch)) return false;
    }
  }
  return true;
}

/// The receives that a channel's consumer needs in front of an action: its own, and those of messages that left before.
class Arrivals {
 public:
  explicit Arrivals(const Schedule& schedule) : channels_(schedule), in_order_(ascending(schedule, channels_)) {
    if (in_order_) return;
    left_.resize(static_cast<std::size_t>(channels_.count()));
    next_.resize(left_.size());
    for (const std::vector<Action>& row : schedule.ranks) {
      for (const Action& a : row) {
        if (!is_compute(a.kind) || !is_known(schedule, a.stage)) continue;
        const std::int64_t out = channels_.output(a);
        if (channels_.crosses(out)) left_[static_cast<std::size_t>(out)].push_back(a.micro_batch);
      }
    }
  }

  template <class Visit>
  void before(std::int64_t channel, MicroBatchId needed, Visit&& visit) {
    if (in_order_) return visit(Channels::receive(channel, needed));
    const std::vector<MicroBatchId>& left = left_[static_cast<std::size_t>(channel)];
    std::size_t& next = next_[static_cast<std::size_t>(channel)];
    const auto begin = left.begin() + static_cast<std::ptrdiff_t>(next);
    const auto found = std::find(begin, left.end(), needed);
    if (found == left.end()) {
      // Received already, or never sent: then the verifier has something to name.
      if (std::find(left.begin(), begin, needed) == begin) visit(Channels::receive(channel, needed));
      return;
    }
    for (; next <= static_cast<std::size_t>(found - left.begin()); ++next)
      visit(Channels::receive(channel, left[next]));
  }
  void rewind() { std::fill(next_.begin(), next_.end(), 0); }

 private:
  Channels channels_;
  bool in_order_;
  std::vector<std::vector<MicroBatchId>> left_;  // [channel] in the order of leaving
  std::vector<std::size_t> next_;                // [channel] to be received
};

/// Receives right before the actions that need them, as far as the order of sending allows.
Schedule receive_late(Schedule schedule) {
  const Channels channels(schedule);
  Arrivals arrivals(schedule);
  const auto with_messages = [&](const Action& action, auto&& visit) {
    if (is_send(action.kind) || is_receive(action.kind)) return;
    const bool known = is_known(schedule, action.stage);
    const std::int64_t in = known ? channels.input(action) : Channels::kNone;
    const std::int64_t out = known ? channels.output(action) : Channels::kNone;
    if (channels.crosses(in)) arrivals.before(in, action.micro_batch, visit);
    visit(action);
    if (channels.crosses(out)) visit(Channels::send(out, action.micro_batch));
  };
  std::vector<std::size_t> counts;
  const std::size_t reductions =
      static_cast<std::size_t>(schedule.stages) / std::max<std::size_t>(1, schedule.ranks.size());
  for (const std::vector<Action>& row : schedule.ranks) {
    counts.push_back(reductions + 1);  // with room for them, so that adding them copies no row
    for (const Action& action : row) with_messages(action, [&](const Action&) { ++counts.back(); });
  }
  arrivals.rewind();
  std::vector<std::vector<Action>> full(schedule.ranks.size());
  for (std::size_t r = 0; r < full.size(); ++r) {
    full[r].reserve(counts[r]);
    for (const Action& action : schedule.ranks[r]) {
      with_messages(action, [&](const Action& a) { full[r].push_back(a); });
    }
    std::vector<Action>().swap(schedule.ranks[r]);
  }
  schedule.ranks = std::move(full);
  return schedule;
}

/// Whether a structurally sound table does not come to its end.
bool stands_still(const Schedule& schedule) {
  const std::vector<StageTimes> times(static_cast<std::size_t>(schedule.stages));
  Engine engine(schedule, times, 0, /*keep_starts=*/false);
  engine.run();
  for (std::size_t r = 0; r < schedule.ranks.size(); ++r) {
    if (!engine.done(r)) return true;
  }
  return false;
}

/// Receives as soon as the message is there in a run with equal times and unlimited buffers, in the order of arrival.
/// Why no circle can form: an action waits at most for the action that the receiver was at when the message before the
/// one in its ring entry arrived, and that one began earlier in the said run. nullopt: that run does not end either.
std::optional<Schedule> receive_early(const Schedule& schedule) {
  Schedule compute = schedule;
  for (std::vector<Action>& row : compute.ranks) {
    std::erase_if(row, [](const Action& a) { return is_send(a.kind) || is_receive(a.kind); });
  }
  const std::vector<StageTimes> times(static_cast<std::size_t>(schedule.stages));
  Engine engine(compute, times, 0, /*keep_starts=*/true, Buffers::Unlimited);
  engine.run();
  const Channels& channels = engine.channels();
  struct Receive {
    std::size_t before;  // this action of the row
    double arrival;
    Action action;
  };
  Schedule result = compute;
  for (std::size_t r = 0; r < compute.ranks.size(); ++r) {
    if (!engine.done(r)) return std::nullopt;
    const std::vector<Action>& row = compute.ranks[r];
    const std::vector<double>& starts = engine.starts()[r];
    std::vector<Receive> receives;
    for (std::size_t i = 0; i < row.size(); ++i) {
      const std::int64_t in = channels.input(row[i]);
      if (!channels.crosses(in)) continue;
      const double arrival = engine.sent(channels.message(in, row[i].micro_batch));
      const auto first = std::lower_bound(starts.begin(), starts.begin() + static_cast<std::ptrdiff_t>(i), arrival);
      receives.push_back(
          {static_cast<std::size_t>(first - starts.begin()), arrival, Channels::receive(in, row[i].micro_batch)});
    }
    std::stable_sort(receives.begin(), receives.end(),
                     [](const Receive& a, const Receive& b) { return a.arrival < b.arrival; });
    std::vector<Action>& full = result.ranks[r];
    full.clear();
    std::size_t next = 0;
    for (std::size_t i = 0; i < row.size(); ++i) {
      while (next < receives.size() && receives[next].before <= i) full.push_back(receives[next++].action);
      full.push_back(row[i]);
      const std::int64_t out = channels.output(row[i]);
      if (channels.crosses(out)) full.push_back(Channels::send(out, row[i].micro_batch));
    }
  }
  return result;
}

}  // namespace

Schedule add_communication(Schedule schedule) {
  Schedule late = receive_late(std::move(schedule));
  // One stage a rank consumes in the order in which its neighbours produce, so there is nothing to bring forward.
  if (late.stages <= static_cast<std::int64_t>(late.ranks.size())) return late;
  if (structural_fault(late) || !stands_still(late)) return late;
  return receive_early(late).value_or(std::move(late));
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
