// Dense numbers for what flows between neighbouring stages, so that everything about messages lives in plain arrays.
#pragma once

#include <cstdint>

#include "trainer/schedule/schedule.hpp"

namespace trainer::schedule {

constexpr bool is_compute(ActionKind kind) { return kind <= ActionKind::BackwardWeight; }
constexpr bool is_send(ActionKind kind) { return kind == ActionKind::SendForward || kind == ActionKind::SendBackward; }
constexpr bool is_receive(ActionKind kind) {
  return kind == ActionKind::RecvForward || kind == ActionKind::RecvBackward;
}
/// Produces the gradient of the stage's inputs.
constexpr bool makes_input_gradient(ActionKind kind) {
  return kind == ActionKind::Backward || kind == ActionKind::BackwardInput;
}
constexpr bool makes_weight_gradient(ActionKind kind) {
  return kind == ActionKind::Backward || kind == ActionKind::BackwardWeight;
}

/// A channel is one direction over the boundary of stages b and b + 1: 2b carries activations from b to b + 1, 2b + 1
/// gradients from b + 1 to b. A message is one micro-batch on a channel. Actions must name stages and micro-batches of
/// the schedule; the schedule must outlive this.
class Channels {
 public:
  static constexpr std::int64_t kNone = -1;

  explicit Channels(const Schedule& schedule) : schedule_(schedule) {}

  std::int64_t count() const { return 2 * (schedule_.stages - 1); }
  std::size_t messages() const { return static_cast<std::size_t>(count() * schedule_.micro_batches); }
  std::size_t message(std::int64_t channel, MicroBatchId micro_batch) const {
    return static_cast<std::size_t>(channel * schedule_.micro_batches + micro_batch.value);
  }
  std::int64_t channel_of(std::size_t message) const {
    return static_cast<std::int64_t>(message) / schedule_.micro_batches;
  }
  MicroBatchId micro_batch_of(std::size_t message) const {
    return MicroBatchId(static_cast<std::int64_t>(message) % schedule_.micro_batches);
  }

  /// Number of (stage, micro-batch) cells, and the number of one.
  std::size_t cells() const { return static_cast<std::size_t>(schedule_.stages * schedule_.micro_batches); }
  std::size_t cell(StageId stage, MicroBatchId micro_batch) const {
    return static_cast<std::size_t>(stage.value * schedule_.micro_batches + micro_batch.value);
  }

  /// The channel that a compute action produces into; kNone where no stage waits for it.
  std::int64_t output(const Action& a) const {
    if (a.kind == ActionKind::Forward) return activations_out(a.stage);
    return makes_input_gradient(a.kind) ? gradients_out(a.stage) : kNone;
  }
  /// The channel that a compute action consumes from; kNone where it needs no neighbour.
  std::int64_t input(const Action& a) const {
    if (a.kind == ActionKind::Forward) return activations_in(a.stage);
    return makes_input_gradient(a.kind) ? gradients_in(a.stage) : kNone;
  }
  /// The channel of a send or receive; kNone where the first or last stage has no such neighbour.
  std::int64_t carried(const Action& a) const {
    switch (a.kind) {
      case ActionKind::SendForward:
        return activations_out(a.stage);
      case ActionKind::RecvForward:
        return activations_in(a.stage);
      case ActionKind::SendBackward:
        return gradients_out(a.stage);
      case ActionKind::RecvBackward:
        return gradients_in(a.stage);
      default:
        return kNone;
    }
  }

  static bool carries_gradients(std::int64_t channel) { return channel % 2 == 1; }
  static StageId sender(std::int64_t channel) { return StageId(channel / 2 + channel % 2); }
  static StageId receiver(std::int64_t channel) { return StageId(channel / 2 + 1 - channel % 2); }
  std::int32_t sender_rank(std::int64_t channel) const { return schedule_.rank_of_stage[sender(channel).index()]; }
  std::int32_t receiver_rank(std::int64_t channel) const { return schedule_.rank_of_stage[receiver(channel).index()]; }
  /// Whether it needs messages at all; kNone does not.
  bool crosses(std::int64_t channel) const {
    return channel != kNone && sender_rank(channel) != receiver_rank(channel);
  }

  static Action send(std::int64_t channel, MicroBatchId micro_batch) {
    return {sender(channel), carries_gradients(channel) ? ActionKind::SendBackward : ActionKind::SendForward,
            micro_batch};
  }
  static Action receive(std::int64_t channel, MicroBatchId micro_batch) {
    return {receiver(channel), carries_gradients(channel) ? ActionKind::RecvBackward : ActionKind::RecvForward,
            micro_batch};
  }

 private:
  bool is_last(StageId stage) const { return stage.value + 1 >= schedule_.stages; }
  std::int64_t activations_out(StageId s) const { return is_last(s) ? kNone : 2 * std::int64_t{s.value}; }
  std::int64_t activations_in(StageId s) const { return s.value == 0 ? kNone : 2 * (std::int64_t{s.value} - 1); }
  std::int64_t gradients_out(StageId s) const { return s.value == 0 ? kNone : 2 * std::int64_t{s.value} - 1; }
  std::int64_t gradients_in(StageId s) const { return is_last(s) ? kNone : 2 * std::int64_t{s.value} + 1; }

  const Schedule& schedule_;
};

/// Whether any row has a send or a receive.
inline bool has_communication(const Schedule& schedule) {
  for (const std::vector<Action>& row : schedule.ranks) {
    for (const Action& action : row) {
      if (is_send(action.kind) || is_receive(action.kind)) return true;
    }
  }
  return false;
}

}  // namespace trainer::schedule
