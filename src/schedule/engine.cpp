// The executor's rules on a clock.
#include "engine.hpp"

#include <algorithm>

namespace trainer::schedule {

Engine::Engine(const Schedule& schedule, const std::vector<StageTimes>& times, double transfer, bool keep_starts,
               Buffers buffers)
    : schedule_(schedule),
      times_(times),
      transfer_(transfer),
      keep_starts_(keep_starts),
      buffers_(buffers),
      channels_(schedule),
      position_(schedule.ranks.size(), 0),
      clock_(schedule.ranks.size(), 0),
      sent_(channels_.messages(), kUnknown),
      posted_(channels_.messages(), kUnknown),
      next_receive_(channels_.messages()),
      produced_(static_cast<std::size_t>(channels_.count()), 0),
      ring_(static_cast<std::size_t>(channels_.count() * kSendSlots), 0),
      is_awake_(schedule.ranks.size(), false) {
  if (keep_starts) {
    starts_.reserve(schedule.ranks.size());
    for (const std::vector<Action>& row : schedule.ranks) starts_.emplace_back().reserve(row.size());
  }
  link_receives();
}

/// Posts the first receive of each channel and chains the others behind it in the order of the row.
void Engine::link_receives() {
  std::vector<MicroBatchId> previous(static_cast<std::size_t>(channels_.count()));
  for (const std::vector<Action>& row : schedule_.ranks) {
    for (const Action& action : row) {
      if (!is_receive(action.kind)) continue;
      const std::int64_t channel = channels_.carried(action);
      MicroBatchId& before = previous[static_cast<std::size_t>(channel)];
      if (before.valid()) {
        next_receive_[channels_.message(channel, before)] = action.micro_batch;
      } else {
        posted_[channels_.message(channel, action.micro_batch)] = 0;
      }
      before = action.micro_batch;
    }
  }
}

void Engine::run() {
  for (std::size_t r = schedule_.ranks.size(); r-- > 0;) wake(static_cast<std::int32_t>(r));
  while (!awake_.empty()) {
    const auto rank = static_cast<std::size_t>(awake_.back());
    awake_.pop_back();
    is_awake_[rank] = false;
    advance(rank);
  }
}

void Engine::wake(std::int32_t rank) {
  const auto r = static_cast<std::size_t>(rank);
  if (is_awake_[r] || done(r)) return;
  is_awake_[r] = true;
  awake_.push_back(rank);
}

void Engine::advance(std::size_t rank) {
  while (!done(rank)) {
    const Gate open = gate(rank);
    if (open.obstacle != Obstacle::None) return;
    perform(rank, schedule_.ranks[rank][position_[rank]], open);
    ++position_[rank];
  }
}

void Engine::perform(std::size_t rank, const Action& action, const Gate& gate) {
  const double ready = std::max(clock_[rank], gate.time);
  if (is_receive(action.kind)) {
    if (keep_starts_) starts_[rank].push_back(clock_[rank]);
    clock_[rank] = ready;
    return receive(rank, action);
  }
  if (keep_starts_) starts_[rank].push_back(ready);
  clock_[rank] = ready + duration(action);
  if (is_compute(action.kind)) return compute(rank, action);
  if (is_send(action.kind)) {
    const std::int64_t channel = channels_.carried(action);
    sent_[channels_.message(channel, action.micro_batch)] = clock_[rank];
    wake(channels_.receiver_rank(channel));
  }
}

void Engine::compute(std::size_t rank, const Action& action) {
  const std::int64_t out = channels_.output(action);
  if (out == Channels::kNone) return;
  const std::size_t message = channels_.message(out, action.micro_batch);
  if (!by_message(out)) {
    sent_[message] = clock_[rank] + (channels_.crosses(out) ? transfer_ : 0);
    if (channels_.crosses(out)) wake(channels_.receiver_rank(out));
    return;
  }
  ring_[ring_entry(out)] = message;
  ++produced_[static_cast<std::size_t>(out)];
}

void Engine::receive(std::size_t rank, const Action& action) {
  const std::int64_t channel = channels_.carried(action);
  const MicroBatchId next = next_receive_[channels_.message(channel, action.micro_batch)];
  if (!next.valid()) return;
  posted_[channels_.message(channel, next)] = clock_[rank];
  wake(channels_.sender_rank(channel));
}

Gate Engine::gate(std::size_t rank) const {
  const Action& action = schedule_.ranks[rank][position_[rank]];
  if (is_compute(action.kind)) return compute_gate(action);
  if (!is_receive(action.kind)) return {};
  const std::size_t message = channels_.message(channels_.carried(action), action.micro_batch);
  if (sent_[message] == kUnknown) return {Obstacle::NotSent, message, 0};
  return {Obstacle::None, message, delivered(message)};
}

Gate Engine::compute_gate(const Action& action) const {
  double time = 0;
  const std::int64_t in = channels_.input(action);
  if (in != Channels::kNone && !by_message(in)) {
    const std::size_t message = channels_.message(in, action.micro_batch);
    if (sent_[message] == kUnknown) return {Obstacle::NotProduced, message, 0};
    time = sent_[message];
  }
  const std::int64_t out = channels_.output(action);
  if (!by_message(out) || produced_[static_cast<std::size_t>(out)] < kSendSlots) {
    return {Obstacle::None, 0, time};
  }
  const std::size_t held = ring_[ring_entry(out)];
  if (sent_[held] == kUnknown) return {Obstacle::RingUnsent, held, 0};
  if (posted_[held] == kUnknown) return {Obstacle::RingUnposted, held, 0};
  return {Obstacle::None, 0, std::max(time, delivered(held))};
}

double Engine::delivered(std::size_t message) const { return std::max(sent_[message], posted_[message]) + transfer_; }

double Engine::duration(const Action& action) const {
  const StageTimes& times = times_[action.stage.index()];
  switch (action.kind) {
    case ActionKind::Forward:
      return times.forward;
    case ActionKind::Backward:
      return times.backward_input + times.backward_weight;
    case ActionKind::BackwardInput:
      return times.backward_input;
    case ActionKind::BackwardWeight:
      return times.backward_weight;
    default:
      return 0;
  }
}

std::size_t Engine::ring_entry(std::int64_t channel) const {
  const std::int64_t turn = produced_[static_cast<std::size_t>(channel)] % kSendSlots;
  return static_cast<std::size_t>(channel * kSendSlots + turn);
}

}  // namespace trainer::schedule
