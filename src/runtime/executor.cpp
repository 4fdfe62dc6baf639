#include "trainer/runtime/executor.hpp"

#include <algorithm>

#include "trainer/core/error.hpp"
#include "trainer/ops/sleep.hpp"

namespace trainer::runtime {

namespace {

using schedule::Action;
using schedule::ActionKind;

enum class Direction { Forward = 0, Backward = 1 };

// Tags are a function of (receiving side's boundary, direction, port, executor): previous and next may be one rank.
int tag_of(StageId lower_stage, Direction direction, std::size_t port, int channel) {
  constexpr int kPorts = 8;
  static_assert(2 * 2 * kPorts == StageMessages::kLanesOfBoundary);
  if (port >= kPorts) internal_error("more than eight values cross a stage boundary");
  return ((lower_stage.value * 2 + static_cast<int>(direction)) * 2 + channel) * kPorts + static_cast<int>(port);
}

bool is_backward(ActionKind kind) {
  return kind == ActionKind::Backward || kind == ActionKind::BackwardInput || kind == ActionKind::BackwardWeight;
}

// Of every kind but reductions, which log their own waits.
Activity activity_of(ActionKind kind) {
  switch (kind) {
    case ActionKind::Forward:
      return Activity::Forward;
    case ActionKind::Backward:
      return Activity::Backward;
    case ActionKind::BackwardInput:
      return Activity::BackwardInput;
    case ActionKind::BackwardWeight:
      return Activity::BackwardWeight;
    case ActionKind::SendForward:
      return Activity::SendForward;
    case ActionKind::RecvForward:
      return Activity::ReceiveForward;
    case ActionKind::SendBackward:
      return Activity::SendBackward;
    case ActionKind::RecvBackward:
      return Activity::ReceiveBackward;
    case ActionKind::ReduceGradients:
      break;
  }
  return Activity::Replicas;
}

std::vector<std::int32_t> order_of(const std::vector<Action>& actions, StageId stage, ActionKind kind) {
  std::vector<std::int32_t> order;
  for (const Action& action : actions) {
    if (action.stage == stage && action.kind == kind) order.push_back(action.micro_batch.value);
  }
  return order;
}

}  // namespace

Executor::Executor(const model::Graph& graph, const schedule::Schedule& schedule, std::vector<StageProgram> stages,
                   std::byte* arena, StageMessages& messages, int channel, std::vector<int> world_ranks, ActionLog* log)
    : graph_(graph), schedule_(schedule), arena_(arena), messages_(messages), log_(log) {
  place_of_.assign(static_cast<std::size_t>(schedule.stages), -1);
  for (StageProgram& program : stages) {
    place_of_[program.stage.index()] = static_cast<std::int32_t>(stages_.size());
    stages_.emplace_back();
    static_cast<StageProgram&>(stages_.back()) = std::move(program);
  }
  const int rank = schedule.rank_of_stage[stages_.front().stage.index()];
  row_ = &schedule.ranks[static_cast<std::size_t>(rank)];
  std::int64_t samples = 0;
  for (Stage& stage : stages_) {
    wire(stage, channel, world_ranks);
    samples = std::max(samples, stage.layout->samples);
  }
  losses_.resize(static_cast<std::size_t>(schedule.micro_batches));
  valid_.resize(static_cast<std::size_t>(samples));
}

const Executor::Stage* Executor::here(std::int64_t stage) const {
  if (stage < 0 || stage >= schedule_.stages) return nullptr;
  const std::int32_t place = place_of_[static_cast<std::size_t>(stage)];
  return place < 0 ? nullptr : &stages_[static_cast<std::size_t>(place)];
}

std::byte* Executor::slot_of(const Stage& stage, Region region, std::int32_t slot) const {
  const auto r = static_cast<std::size_t>(region);
  std::byte* const memory = is_message(region) ? messages_.memory() : arena_;
  return memory + stage.arena.begin[r] + stage.layout->bytes[r] * static_cast<std::size_t>(slot);
}

template <class MakeTransfer>
Executor::Lane Executor::make_lane(const Stage& stage, Place place, const MakeTransfer& make) const {
  Lane lane;
  const std::int32_t slots = stage.arena.slots[static_cast<std::size_t>(place.region)];
  for (std::int32_t slot = 0; slot < slots; ++slot) {
    lane.slots.push_back(make(slot_of(stage, place.region, slot) + place.offset));
  }
  return lane;
}

void Executor::wire(Stage& stage, int channel, const std::vector<int>& world_ranks) {
  const std::int64_t number = stage.stage.value;
  stage.before = here(number - 1);
  stage.after = here(number + 1);
  const auto world_rank = [&](std::int64_t other) {
    return other < 0 || other >= schedule_.stages ? -1 : world_ranks[static_cast<std::size_t>(other)];
  };
  const auto receiver = [&](ActionKind kind, const std::vector<std::int32_t>& slots, const char* what, int peer) {
    return Receiver{.ports = {},
                    .order = order_of(*row_, stage.stage, kind),
                    .slot_of = &slots,
                    .posted = 0,
                    .what = what,
                    .world_peer = peer};
  };
  const auto sender = [&](const char* what, int peer) {
    return Sender{.ports = {},
                  .ring_of = std::vector<std::int32_t>(static_cast<std::size_t>(schedule_.micro_batches)),
                  .produced = 0,
                  .what = what,
                  .world_peer = peer};
  };
  stage.forward_receiver = receiver(ActionKind::RecvForward, stage.slots->weight_input,
                                    "the activations of micro-batch", world_rank(number - 1));
  stage.backward_receiver = receiver(ActionKind::RecvBackward, stage.slots->output_gradient,
                                     "the gradient of micro-batch", world_rank(number + 1));
  stage.forward_sender = sender("sending activations", world_rank(number + 1));
  stage.backward_sender = sender("sending gradients", world_rank(number - 1));
  if (number > 0 && stage.before == nullptr) wire_inputs(stage, channel);
  if (number + 1 < schedule_.stages && stage.after == nullptr) wire_outputs(stage, channel);
}

// The boundary to the stage before: its values come, their gradients go.
void Executor::wire_inputs(Stage& stage, int channel) {
  const StageId before(stage.stage.value - 1);
  const int peer = schedule_.rank_of_stage[before.index()];
  for (std::size_t p = 0; p < stage.layout->inputs.size(); ++p) {
    const Port& port = stage.layout->inputs[p];
    stage.forward_receiver.ports.push_back(make_lane(stage, port.value_message, [&](std::byte* memory) {
      return messages_.make_receive(memory, port.bytes, peer, tag_of(before, Direction::Forward, p, channel));
    }));
    if (!stage.layout->training) continue;
    stage.backward_sender.ports.push_back(make_lane(stage, port.gradient_message, [&](std::byte* memory) {
      return messages_.make_send(memory, port.bytes, peer, tag_of(before, Direction::Backward, p, channel));
    }));
  }
}

void Executor::wire_outputs(Stage& stage, int channel) {
  const int peer = schedule_.rank_of_stage[stage.stage.index() + 1];
  for (std::size_t p = 0; p < stage.layout->outputs.size(); ++p) {
    const Port& port = stage.layout->outputs[p];
    stage.forward_sender.ports.push_back(make_lane(stage, port.value_message, [&](std::byte* memory) {
      return messages_.make_send(memory, port.bytes, peer, tag_of(stage.stage, Direction::Forward, p, channel));
    }));
    if (!stage.layout->training) continue;
    stage.backward_receiver.ports.push_back(make_lane(stage, port.gradient_message, [&](std::byte* memory) {
      return messages_.make_receive(memory, port.bytes, peer, tag_of(stage.stage, Direction::Backward, p, channel));
    }));
  }
}

Frame Executor::frame_of(const Stage& stage, std::int32_t micro_batch) const {
  const auto m = static_cast<std::size_t>(micro_batch);
  Frame frame{};
  const auto set = [&](Region region, std::int32_t slot) {
    frame[static_cast<std::size_t>(region)] = slot_of(stage, region, slot);
  };
  const auto slot = [m](const std::vector<std::int32_t>& of) { return m < of.size() && of[m] >= 0 ? of[m] : 0; };
  set(Region::Scratch, 0);
  set(Region::Activation, slot(stage.slots->activation));
  set(Region::WeightInput, slot(stage.slots->weight_input));
  set(Region::WeightGradient, slot(stage.slots->weight_gradient));
  set(Region::OutputGradient, slot(stage.slots->output_gradient));
  set(Region::SendForward, stage.forward_sender.ring_of[m]);
  set(Region::SendBackward, stage.backward_sender.ring_of[m]);
  return frame;
}

ops::MicroBatch Executor::batch_of(const BatchSource& batches, const PassRequest& request,
                                   std::int32_t micro_batch) const {
  return {.samples = stages_.front().layout->samples,
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

void Executor::receive(Receiver& receiver, const Action& action) {
  const ActivitySpan span(log_, activity_of(action.kind), action.stage.value, action.micro_batch.value);
  const auto slot = static_cast<std::size_t>((*receiver.slot_of)[action.micro_batch.index()]);
  for (Lane& lane : receiver.ports)
    comm::wait(*lane.slots[slot], {receiver.what, receiver.world_peer, action.micro_batch.value});
  post_next(receiver);
}

void Executor::reserve(Sender& sender, const Action& action) {
  const std::int32_t entry = sender.produced++ % kSendRing;
  sender.ring_of[action.micro_batch.index()] = entry;
  if (sender.ports.empty()) return;
  const ActivitySpan span(log_, Activity::SendWait, action.stage.value, action.micro_batch.value);
  for (Lane& lane : sender.ports) {
    comm::wait(*lane.slots[static_cast<std::size_t>(entry)],
               {sender.what, sender.world_peer, action.micro_batch.value});
  }
}

void Executor::send(Sender& sender, const Action& action) {
  const ActivitySpan span(log_, activity_of(action.kind), action.stage.value, action.micro_batch.value);
  const auto entry = static_cast<std::size_t>(sender.ring_of[action.micro_batch.index()]);
  for (Lane& lane : sender.ports) lane.slots[entry]->start();
}

void Executor::drain(Sender& sender) {
  if (sender.ports.empty()) return;
  const ActivitySpan span(log_, Activity::SendWait);
  for (Lane& lane : sender.ports) {
    for (auto& transfer : lane.slots) comm::wait(*transfer, {sender.what, sender.world_peer, -1});
  }
}

// The two ends of a boundary list its ports in the same order.
void Executor::hand_on(const Stage& from, const Stage& to, const Frame& frame, std::int32_t micro_batch) const {
  std::byte* const slot =
      slot_of(to, Region::WeightInput, to.slots->weight_input[static_cast<std::size_t>(micro_batch)]);
  for (std::size_t p = 0; p < from.layout->outputs.size(); ++p) {
    const Port& port = from.layout->outputs[p];
    std::copy_n(at(frame, port.value_message), port.bytes, slot + to.layout->inputs[p].value_message.offset);
  }
}

void Executor::hand_back(const Stage& from, const Stage& to, const Frame& frame, std::int32_t micro_batch) const {
  std::byte* const slot =
      slot_of(to, Region::OutputGradient, to.slots->output_gradient[static_cast<std::size_t>(micro_batch)]);
  for (std::size_t p = 0; p < from.layout->inputs.size(); ++p) {
    const Port& port = from.layout->inputs[p];
    std::copy_n(at(frame, port.gradient_message), port.bytes, slot + to.layout->outputs[p].gradient_message.offset);
  }
}

void Executor::forward(Stage& stage, const BatchSource& batches, const PassRequest& request, std::int32_t micro_batch) {
  const ActivitySpan span(log_, Activity::Forward, stage.stage.value, micro_batch);
  const StageLayout& layout = *stage.layout;
  const Frame frame = frame_of(stage, micro_batch);
  const auto m = static_cast<std::size_t>(micro_batch);
  if (std::byte* input = at(frame, layout.data_input)) {
    const ActivitySpan data(log_, Activity::Data);
    batches.load_inputs(micro_batch, reinterpret_cast<std::int32_t*>(input), reinterpret_cast<float*>(input));
  }
  const bool classes = graph_.values[graph_.target.index()].kind == model::ValueKind::Tokens;
  stage.runner->forward(frame, batch_of(batches, request, micro_batch));
  if (request.sample_delay > 0 && stage.stage == StageId(0)) {
    ops::sleep_precisely(request.sample_delay * static_cast<double>(batches.samples()));
  }
  if (stage.after != nullptr) hand_on(stage, *stage.after, frame, micro_batch);
  if (!layout.loss.present) return;
  {
    const ActivitySpan data(log_, Activity::Data);
    std::byte* target = at(frame, layout.loss.target);
    batches.load_targets(micro_batch, classes ? reinterpret_cast<std::int32_t*>(target) : nullptr,
                         classes ? nullptr : reinterpret_cast<float*>(target));
    batches.load_valid(micro_batch, valid_.data());
  }
  losses_[m] = stage.runner->loss(
      frame,
      {.scale = static_cast<float>(request.loss_scale), .count_hits = request.count_hits, .valid = valid_.data()});
}

void Executor::backward(Stage& stage, const Action& action, const BatchSource& batches, const PassRequest& request,
                        GradientSync* sync) {
  const std::int32_t m = action.micro_batch.value;
  const bool input = action.kind != ActionKind::BackwardWeight;
  const bool weights = action.kind != ActionKind::BackwardInput;
  StageRunner& runner = *stage.runner;
  if (weights && sync != nullptr) {
    const bool last = m == static_cast<std::int32_t>(schedule_.micro_batches - 1);
    runner.weight_done = nullptr;
    if (last) runner.weight_done = [sync](NodeId node) { sync->weight_done(node); };
  }
  const ActivitySpan span(log_, activity_of(action.kind), action.stage.value, m);
  const Frame frame = frame_of(stage, m);
  const ops::MicroBatch batch = batch_of(batches, request, m);
  if (input && weights) {
    runner.backward(frame, batch, m != 0);
  } else if (weights) {
    runner.backward_weight(frame, batch, m != 0);
  } else {
    runner.backward_input(frame, batch);
  }
  if (input && stage.before != nullptr) hand_back(stage, *stage.before, frame, m);
}

void Executor::begin_pass() {
  std::fill(losses_.begin(), losses_.end(), LossResult{});
  reductions_ = 0;
  for (Stage& stage : stages_) {
    stage.forward_receiver.posted = stage.backward_receiver.posted = 0;
    stage.forward_sender.produced = stage.backward_sender.produced = 0;
    post_next(stage.forward_receiver);
    post_next(stage.backward_receiver);
  }
}

void Executor::walk(const Action& action, const BatchSource& batches, const PassRequest& request, GradientSync* sync) {
  Stage& stage = stage_of(action);
  const std::int32_t m = action.micro_batch.value;
  switch (action.kind) {
    case ActionKind::RecvForward:
      return receive(stage.forward_receiver, action);
    case ActionKind::Forward:
      reserve(stage.forward_sender, action);
      return forward(stage, batches, request, m);
    case ActionKind::SendForward:
      return send(stage.forward_sender, action);
    case ActionKind::RecvBackward:
      return receive(stage.backward_receiver, action);
    case ActionKind::Backward:
    case ActionKind::BackwardInput:
      reserve(stage.backward_sender, action);
      return backward(stage, action, batches, request, sync);
    case ActionKind::BackwardWeight:
      return backward(stage, action, batches, request, sync);
    case ActionKind::SendBackward:
      return send(stage.backward_sender, action);
    case ActionKind::ReduceGradients:
      // Buckets may hold gradients of several stages: all are whole behind the last stage's weight gradients.
      if (++reductions_ == stages_.size() && sync != nullptr) sync->end_pass();
      return;
  }
}

void Executor::walk_idly(const Action& action) {
  Stage& stage = stage_of(action);
  switch (action.kind) {
    case ActionKind::RecvForward:
      return receive(stage.forward_receiver, action);
    case ActionKind::RecvBackward:
      return receive(stage.backward_receiver, action);
    case ActionKind::Forward:
      return reserve(stage.forward_sender, action);
    case ActionKind::Backward:
    case ActionKind::BackwardInput:
      return reserve(stage.backward_sender, action);
    case ActionKind::SendForward:
      return send(stage.forward_sender, action);
    case ActionKind::SendBackward:
      return send(stage.backward_sender, action);
    case ActionKind::BackwardWeight:
    case ActionKind::ReduceGradients:
      return;
  }
}

PassResult Executor::run(const BatchSource& batches, const PassRequest& request, GradientSync* sync) {
  const ActivitySpan pass(log_, Activity::Pass);
  begin_pass();
  PassResult result;
  bool asked = !request.go_on;
  for (const Action& action : *row_) {
    if (!asked && is_backward(action.kind)) {
      asked = true;
      result.given_up = !request.go_on();
    }
    if (result.given_up) {
      walk_idly(action);
    } else {
      walk(action, batches, request, sync);
    }
  }
  for (Stage& stage : stages_) {
    drain(stage.forward_sender);
    drain(stage.backward_sender);
    stage.runner->weight_done = nullptr;
  }
  for (const LossResult& loss : losses_) {
    result.loss += loss.loss;
    result.hits += loss.hits;
  }
  return result;
}

}  // namespace trainer::runtime
