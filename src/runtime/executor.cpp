#include "trainer/runtime/executor.hpp"

#include <algorithm>

#include "trainer/core/error.hpp"

namespace trainer::runtime {

namespace {

using schedule::Action;
using schedule::ActionKind;

enum class Direction { Forward = 0, Backward = 1 };

// Tags are a function of (receiving side's boundary, direction, port, executor): previous and next may be one rank.
int tag_of(StageId lower_stage, Direction direction, std::size_t port, int channel) {
  constexpr int kPorts = 8;
  static_assert(2 * 2 * kPorts == StageMessages::kLanes);
  if (port >= kPorts) internal_error("more than eight values cross a stage boundary");
  return ((lower_stage.value * 2 + static_cast<int>(direction)) * 2 + channel) * kPorts + static_cast<int>(port);
}

std::vector<std::int32_t> order_of(const std::vector<Action>& actions, StageId stage, ActionKind kind) {
  std::vector<std::int32_t> order;
  for (const Action& action : actions) {
    if (action.stage == stage && action.kind == kind) order.push_back(action.micro_batch.value);
  }
  return order;
}

Activity activity_of(ActionKind backward) {
  if (backward == ActionKind::Backward) return Activity::Backward;
  return backward == ActionKind::BackwardInput ? Activity::BackwardInput : Activity::BackwardWeight;
}

}  // namespace

Executor::Executor(const model::Graph& graph, const schedule::Schedule& schedule, const schedule::StageSlots& slots,
                   StageId stage, const StageLayout& layout, std::byte* arena, StageRunner& runner,
                   StageMessages& messages, int channel, std::vector<int> world_ranks, ActionLog* log)
    : graph_(graph),
      schedule_(schedule),
      slots_(slots),
      stage_(stage),
      layout_(layout),
      arena_(arena),
      arena_layout_(lay_out_arena(layout, slots)),
      runner_(runner),
      messages_(messages),
      world_ranks_(std::move(world_ranks)),
      log_(log) {
  const int rank = schedule.rank_of_stage[stage.index()];
  const auto& actions = schedule.ranks[static_cast<std::size_t>(rank)];
  if (stage.value > 0) wire_inputs(channel);
  if (stage.value + 1 < schedule.stages) wire_outputs(channel);
  forward_receiver_.order = order_of(actions, stage, ActionKind::RecvForward);
  forward_receiver_.slot_of = &slots_.weight_input;
  forward_receiver_.what = "the activations of micro-batch";
  backward_receiver_.order = order_of(actions, stage, ActionKind::RecvBackward);
  backward_receiver_.slot_of = &slots_.output_gradient;
  backward_receiver_.what = "the gradient of micro-batch";
  const auto micro_batches = static_cast<std::size_t>(schedule.micro_batches);
  forward_sender_.ring_of.resize(micro_batches);
  forward_sender_.what = "sending activations";
  backward_sender_.ring_of.resize(micro_batches);
  backward_sender_.what = "sending gradients";
  losses_.resize(micro_batches);
  valid_.resize(static_cast<std::size_t>(layout.samples));
}

std::byte* Executor::slot_of(Region region, std::int32_t slot) const {
  const auto r = static_cast<std::size_t>(region);
  std::byte* const memory = is_message(region) ? messages_.memory() : arena_;
  return memory + arena_layout_.begin[r] + layout_.bytes[r] * static_cast<std::size_t>(slot);
}

template <class MakeTransfer>
Executor::Lane Executor::make_lane(Place place, const MakeTransfer& make) const {
  Lane lane;
  const std::int32_t slots = arena_layout_.slots[static_cast<std::size_t>(place.region)];
  for (std::int32_t slot = 0; slot < slots; ++slot) {
    lane.slots.push_back(make(slot_of(place.region, slot) + place.offset));
  }
  return lane;
}

// The boundary to the stage before: its values come, their gradients go.
void Executor::wire_inputs(int channel) {
  const StageId before(stage_.value - 1);
  peer_before_ = schedule_.rank_of_stage[before.index()];
  for (std::size_t p = 0; p < layout_.inputs.size(); ++p) {
    const Port& port = layout_.inputs[p];
    forward_receiver_.ports.push_back(make_lane(port.value_message, [&](std::byte* memory) {
      return messages_.make_receive(memory, port.bytes, peer_before_, tag_of(before, Direction::Forward, p, channel));
    }));
    if (!layout_.training) continue;
    backward_sender_.ports.push_back(make_lane(port.gradient_message, [&](std::byte* memory) {
      return messages_.make_send(memory, port.bytes, peer_before_, tag_of(before, Direction::Backward, p, channel));
    }));
  }
}

void Executor::wire_outputs(int channel) {
  peer_after_ = schedule_.rank_of_stage[stage_.index() + 1];
  for (std::size_t p = 0; p < layout_.outputs.size(); ++p) {
    const Port& port = layout_.outputs[p];
    forward_sender_.ports.push_back(make_lane(port.value_message, [&](std::byte* memory) {
      return messages_.make_send(memory, port.bytes, peer_after_, tag_of(stage_, Direction::Forward, p, channel));
    }));
    if (!layout_.training) continue;
    backward_receiver_.ports.push_back(make_lane(port.gradient_message, [&](std::byte* memory) {
      return messages_.make_receive(memory, port.bytes, peer_after_, tag_of(stage_, Direction::Backward, p, channel));
    }));
  }
}

Frame Executor::frame_of(std::int32_t micro_batch) const {
  const auto m = static_cast<std::size_t>(micro_batch);
  Frame frame{};
  const auto set = [&](Region region, std::int32_t slot) {
    frame[static_cast<std::size_t>(region)] = slot_of(region, slot);
  };
  const auto slot = [m](const std::vector<std::int32_t>& of) { return m < of.size() && of[m] >= 0 ? of[m] : 0; };
  set(Region::Scratch, 0);
  set(Region::Activation, slot(slots_.activation));
  set(Region::WeightInput, slot(slots_.weight_input));
  set(Region::WeightGradient, slot(slots_.weight_gradient));
  set(Region::OutputGradient, slot(slots_.output_gradient));
  set(Region::SendForward, forward_sender_.ring_of[m]);
  set(Region::SendBackward, backward_sender_.ring_of[m]);
  return frame;
}

ops::MicroBatch Executor::batch_of(const BatchSource& batches, const PassRequest& request,
                                   std::int32_t micro_batch) const {
  return {.samples = layout_.samples,
          .positions = graph_.positions,
          .first_sample = static_cast<std::uint64_t>(batches.first_of(micro_batch)),
          .seed = request.seed,
          .training = request.training};
}

void Executor::post_next(Receiver& receiver) {
  if (receiver.posted >= receiver.order.size()) return;
  const auto micro_batch = static_cast<std::size_t>(receiver.order[receiver.posted++]);
  const auto slot = static_cast<std::size_t>((*receiver.slot_of)[micro_batch]);
  for (Lane& lane : receiver.ports) lane.slots[slot]->start();
}

void Executor::receive(Receiver& receiver, std::int32_t micro_batch) {
  const auto slot = static_cast<std::size_t>((*receiver.slot_of)[static_cast<std::size_t>(micro_batch)]);
  const bool forward = &receiver == &forward_receiver_;
  const StageId peer(forward ? stage_.value - 1 : stage_.value + 1);
  const ActivitySpan span(log_, forward ? Activity::ReceiveForward : Activity::ReceiveBackward, stage_.value,
                          micro_batch);
  for (Lane& lane : receiver.ports) comm::wait(*lane.slots[slot], {receiver.what, world_rank(peer), micro_batch});
  post_next(receiver);
}

void Executor::reserve(Sender& sender, std::int32_t micro_batch) {
  const std::int32_t entry = sender.produced++ % schedule::kSendSlots;
  sender.ring_of[static_cast<std::size_t>(micro_batch)] = entry;
  const StageId peer(&sender == &forward_sender_ ? stage_.value + 1 : stage_.value - 1);
  const ActivitySpan span(log_, Activity::SendWait, stage_.value, micro_batch);
  for (Lane& lane : sender.ports) {
    comm::wait(*lane.slots[static_cast<std::size_t>(entry)], {sender.what, world_rank(peer), micro_batch});
  }
}

void Executor::send(Sender& sender, std::int32_t micro_batch) {
  const auto entry = static_cast<std::size_t>(sender.ring_of[static_cast<std::size_t>(micro_batch)]);
  const bool forward = &sender == &forward_sender_;
  const ActivitySpan span(log_, forward ? Activity::SendForward : Activity::SendBackward, stage_.value, micro_batch);
  for (Lane& lane : sender.ports) lane.slots[entry]->start();
}

void Executor::drain(Sender& sender) {
  const ActivitySpan span(log_, Activity::SendWait, stage_.value);
  for (Lane& lane : sender.ports) {
    for (auto& transfer : lane.slots) comm::wait(*transfer, {sender.what, -1, -1});
  }
}

void Executor::forward(const BatchSource& batches, const PassRequest& request, std::int32_t micro_batch) {
  const ActivitySpan span(log_, Activity::Forward, stage_.value, micro_batch);
  const Frame frame = frame_of(micro_batch);
  const auto m = static_cast<std::size_t>(micro_batch);
  if (std::byte* input = at(frame, layout_.data_input)) {
    const ActivitySpan data(log_, Activity::Data);
    batches.load_inputs(micro_batch, reinterpret_cast<std::int32_t*>(input), reinterpret_cast<float*>(input));
  }
  const bool classes = graph_.values[graph_.target.index()].kind == model::ValueKind::Tokens;
  runner_.forward(frame, batch_of(batches, request, micro_batch));
  if (!layout_.loss.present) return;
  {
    const ActivitySpan data(log_, Activity::Data);
    std::byte* target = at(frame, layout_.loss.target);
    batches.load_targets(micro_batch, classes ? reinterpret_cast<std::int32_t*>(target) : nullptr,
                         classes ? nullptr : reinterpret_cast<float*>(target));
    batches.load_valid(micro_batch, valid_.data());
  }
  losses_[m] = runner_.loss(
      frame,
      {.scale = static_cast<float>(request.loss_scale), .count_hits = request.count_hits, .valid = valid_.data()});
}

void Executor::backward(const Action& action, const BatchSource& batches, const PassRequest& request,
                        GradientSync* sync) {
  const std::int32_t m = action.micro_batch.value;
  const bool weights = action.kind != ActionKind::BackwardInput;
  if (action.kind != ActionKind::BackwardWeight) reserve(backward_sender_, m);
  if (weights && sync != nullptr) {
    const bool last = m == static_cast<std::int32_t>(schedule_.micro_batches - 1);
    runner_.weight_done = nullptr;
    if (last) runner_.weight_done = [sync](NodeId node) { sync->weight_done(node); };
  }
  const ActivitySpan span(log_, activity_of(action.kind), stage_.value, m);
  const Frame frame = frame_of(m);
  const ops::MicroBatch batch = batch_of(batches, request, m);
  if (action.kind == ActionKind::Backward) {
    runner_.backward(frame, batch, m != 0);
  } else if (weights) {
    runner_.backward_weight(frame, batch, m != 0);
  } else {
    runner_.backward_input(frame, batch);
  }
}

PassResult Executor::run(const BatchSource& batches, const PassRequest& request, GradientSync* sync) {
  const ActivitySpan pass(log_, Activity::Pass);
  std::fill(losses_.begin(), losses_.end(), LossResult{});
  forward_receiver_.posted = backward_receiver_.posted = 0;
  forward_sender_.produced = backward_sender_.produced = 0;
  post_next(forward_receiver_);
  post_next(backward_receiver_);
  for (const Action& action : schedule_.ranks[static_cast<std::size_t>(schedule_.rank_of_stage[stage_.index()])]) {
    const std::int32_t m = action.micro_batch.value;
    switch (action.kind) {
      case ActionKind::RecvForward:
        receive(forward_receiver_, m);
        break;
      case ActionKind::Forward:
        reserve(forward_sender_, m);
        forward(batches, request, m);
        break;
      case ActionKind::SendForward:
        send(forward_sender_, m);
        break;
      case ActionKind::RecvBackward:
        receive(backward_receiver_, m);
        break;
      case ActionKind::Backward:
      case ActionKind::BackwardInput:
      case ActionKind::BackwardWeight:
        backward(action, batches, request, sync);
        break;
      case ActionKind::SendBackward:
        send(backward_sender_, m);
        break;
      case ActionKind::ReduceGradients:
        if (sync != nullptr) sync->finish_replicas();
        break;
    }
  }
  drain(forward_sender_);
  drain(backward_sender_);
  runner_.weight_done = nullptr;
  PassResult result;
  for (const LossResult& loss : losses_) {
    result.loss += loss.loss;
    result.hits += loss.hits;
  }
  return result;
}

}  // namespace trainer::runtime
