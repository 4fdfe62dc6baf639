// Colours the lifetimes of each stage's buffers with as few slots as they can share.
#include <algorithm>
#include <functional>
#include <queue>

#include "channels.hpp"

namespace trainer::schedule {
namespace {

constexpr std::int64_t kNever = -1;

/// [micro_batch] → positions in the rank's row, both inclusive; kNever where there is no such buffer.
struct Intervals {
  explicit Intervals(std::int64_t n)
      : begin(static_cast<std::size_t>(n), kNever), end(static_cast<std::size_t>(n), kNever) {}
  std::vector<std::int64_t> begin;
  std::vector<std::int64_t> end;
};

struct StageIntervals {
  explicit StageIntervals(std::int64_t n) : activation(n), weight_input(n), weight_gradient(n), output_gradient(n) {}
  Intervals activation;
  Intervals weight_input;
  Intervals weight_gradient;
  Intervals output_gradient;
};

/// Greedy over ascending begins, the lowest free slot first: optimal for intervals. Returns the number of slots.
std::int32_t colour(const Intervals& intervals, std::vector<std::int32_t>& slots) {
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < intervals.begin.size(); ++i) {
    if (intervals.begin[i] != kNever && intervals.end[i] != kNever) order.push_back(i);
  }
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return intervals.begin[a] != intervals.begin[b] ? intervals.begin[a] < intervals.begin[b] : a < b;
  });

  using Busy = std::pair<std::int64_t, std::int32_t>;  // end, slot
  std::priority_queue<Busy, std::vector<Busy>, std::greater<>> busy;
  std::priority_queue<std::int32_t, std::vector<std::int32_t>, std::greater<>> free;
  std::int32_t count = 0;
  slots.assign(intervals.begin.size(), -1);
  for (std::size_t i : order) {
    while (!busy.empty() && busy.top().first < intervals.begin[i]) {
      free.push(busy.top().second);
      busy.pop();
    }
    std::int32_t slot = count;
    if (free.empty()) {
      ++count;
    } else {
      slot = free.top();
      free.pop();
    }
    slots[i] = slot;
    busy.emplace(intervals.end[i], slot);
  }
  return count;
}

/// Reads the intervals off the rows.
class Lifetimes {
 public:
  explicit Lifetimes(const Schedule& schedule)
      : schedule_(schedule),
        channels_(schedule),
        stages_(static_cast<std::size_t>(schedule.stages), StageIntervals(schedule.micro_batches)),
        next_post_(static_cast<std::size_t>(channels_.count()), 0) {
    for (const std::vector<Action>& row : schedule.ranks) {
      for (std::size_t i = 0; i < row.size(); ++i) visit(row[i], static_cast<std::int64_t>(i));
    }
  }

  const StageIntervals& operator[](std::size_t stage) const { return stages_[stage]; }

 private:
  void visit(const Action& action, std::int64_t at) {
    const std::size_t i = action.micro_batch.index();
    StageIntervals& stage = stages_[action.stage.index()];
    hand_over(action, at);
    switch (action.kind) {
      case ActionKind::RecvForward:
      case ActionKind::RecvBackward:
        return receive(action, at);
      case ActionKind::Forward:
        stage.activation.begin[i] = at;
        if (channels_.input(action) == Channels::kNone) stage.weight_input.begin[i] = at;
        if (schedule_.forward_only) stage.activation.end[i] = stage.weight_input.end[i] = at;
        return;
      case ActionKind::Backward:
        stage.activation.end[i] = stage.weight_input.end[i] = stage.output_gradient.end[i] = at;
        stage.weight_gradient.begin[i] = stage.weight_gradient.end[i] = at;
        return;
      case ActionKind::BackwardInput:
        stage.activation.end[i] = at;
        stage.weight_gradient.begin[i] = at;
        return;
      case ActionKind::BackwardWeight:
        stage.weight_input.end[i] = stage.weight_gradient.end[i] = stage.output_gradient.end[i] = at;
        return;
      default:
        return;
    }
  }

  /// A value for a neighbour on the same rank goes straight into the neighbour's buffer.
  void hand_over(const Action& action, std::int64_t at) {
    const std::int64_t out = channels_.output(action);
    if (out == Channels::kNone || channels_.crosses(out)) return;
    received(out).begin[action.micro_batch.index()] = at;
  }

  /// The buffer of a receive is taken from the receive before it on the channel, the first from the start of the row.
  void receive(const Action& action, std::int64_t at) {
    const std::int64_t channel = channels_.carried(action);
    if (channel == Channels::kNone) return;
    std::int64_t& post = next_post_[static_cast<std::size_t>(channel)];
    received(channel).begin[action.micro_batch.index()] = post;
    post = at;
  }

  Intervals& received(std::int64_t channel) {
    StageIntervals& stage = stages_[Channels::receiver(channel).index()];
    return Channels::carries_gradients(channel) ? stage.output_gradient : stage.weight_input;
  }

  const Schedule& schedule_;
  Channels channels_;
  std::vector<StageIntervals> stages_;
  std::vector<std::int64_t> next_post_;  // [channel]
};

}  // namespace

std::vector<StageSlots> assign_slots(const Schedule& schedule) {
  const Lifetimes lifetimes(schedule);
  std::vector<StageSlots> result(static_cast<std::size_t>(schedule.stages));
  for (std::size_t s = 0; s < result.size(); ++s) {
    StageSlots& slots = result[s];
    const StageIntervals& intervals = lifetimes[s];
    slots.activation_count = colour(intervals.activation, slots.activation);
    slots.weight_input_count = colour(intervals.weight_input, slots.weight_input);
    slots.weight_gradient_count = colour(intervals.weight_gradient, slots.weight_gradient);
    slots.output_gradient_count = colour(intervals.output_gradient, slots.output_gradient);
  }
  return result;
}

}  // namespace trainer::schedule
