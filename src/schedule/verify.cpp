// Proves that a table can be run, or says why not.
#include <fmt/format.h>

#include <algorithm>

#include "engine.hpp"
#include "structure.hpp"
#include "trainer/schedule/schedule.hpp"

namespace trainer::schedule {
namespace {

/// The rank that has to move before this one can.
std::size_t awaited_rank(const Engine& engine, std::size_t rank) {
  const Gate gate = engine.gate(rank);
  const Channels& channels = engine.channels();
  const std::int64_t channel = channels.channel_of(gate.message);
  const bool receiver = gate.obstacle == Obstacle::RingUnposted;
  return static_cast<std::size_t>(receiver ? channels.receiver_rank(channel) : channels.sender_rank(channel));
}

std::string reason(const Engine& engine, std::size_t rank) {
  const Gate gate = engine.gate(rank);
  const Channels& channels = engine.channels();
  const std::int64_t channel = channels.channel_of(gate.message);
  const MicroBatchId i = channels.micro_batch_of(gate.message);
  const std::string send = to_string(Channels::send(channel, i));
  switch (gate.obstacle) {
    case Obstacle::NotSent:
      return fmt::format("waits for {} of rank {}", send, channels.sender_rank(channel));
    case Obstacle::NotProduced:
      return fmt::format("needs micro-batch {} of stage {}, which comes later in the same row", i.value,
                         Channels::sender(channel).value);
    case Obstacle::RingUnsent:
      return fmt::format("needs the send buffer that {} would free, which comes later in the same row", send);
    case Obstacle::RingUnposted:
      return fmt::format("needs the send buffer of {}, which waits until rank {} posts {}", send,
                         channels.receiver_rank(channel), to_string(Channels::receive(channel, i)));
    case Obstacle::None:
      break;
  }
  return "can run";
}

/// Each standing rank waits for exactly one rank, and never for a finished one, so walking on ends in a cycle.
std::vector<std::size_t> smallest_cycle(const Engine& engine, std::size_t ranks) {
  std::vector<std::size_t> seen_in(ranks, 0);  // number of the walk that passed here, from 1
  std::vector<std::size_t> smallest;
  for (std::size_t first = 0; first < ranks; ++first) {
    std::size_t rank = first;
    if (engine.done(rank)) continue;
    while (seen_in[rank] == 0) {
      seen_in[rank] = first + 1;
      rank = awaited_rank(engine, rank);
    }
    if (seen_in[rank] != first + 1) continue;
    std::vector<std::size_t> cycle{rank};
    for (std::size_t r = awaited_rank(engine, rank); r != rank; r = awaited_rank(engine, r)) cycle.push_back(r);
    if (smallest.empty() || cycle.size() < smallest.size()) smallest = std::move(cycle);
  }
  return smallest;
}

Violation deadlock(const Schedule& schedule, const Engine& engine) {
  const std::vector<std::size_t> cycle = smallest_cycle(engine, schedule.ranks.size());
  std::string text = cycle.size() == 1
                         ? fmt::format("deadlock: rank {} waits for itself", cycle[0])
                         : fmt::format("deadlock: {} ranks wait for each other in a circle", cycle.size());
  for (std::size_t rank : cycle) {
    const std::size_t at = engine.position(rank);
    text += fmt::format("\n  rank {} stands at {} (action {} of {}): {}", rank, to_string(schedule.ranks[rank][at]), at,
                        schedule.ranks[rank].size(), reason(engine, rank));
  }
  for (std::size_t rank : cycle) text += "\n" + excerpt(schedule, rank, engine.position(rank));
  const std::size_t first = cycle.front();
  return {std::move(text), static_cast<std::int32_t>(first), static_cast<std::int32_t>(engine.position(first))};
}

}  // namespace

std::optional<Violation> verify(const Schedule& schedule) {
  if (std::optional<Violation> fault = structural_fault(schedule)) return fault;
  const std::vector<StageTimes> times(static_cast<std::size_t>(schedule.stages));
  Engine engine(schedule, times, 0, /*keep_starts=*/false);
  engine.run();
  for (std::size_t r = 0; r < schedule.ranks.size(); ++r) {
    if (!engine.done(r)) return deadlock(schedule, engine);
  }
  return std::nullopt;
}

namespace {

/// Calls visit(position, held) behind each action that begins or ends the holding of a pair.
template <class Visit>
void follow_held(const std::vector<Action>& row, Visit&& visit) {
  std::int64_t held = 0;
  for (std::size_t i = 0; i < row.size(); ++i) {
    if (row[i].kind == ActionKind::Forward) visit(i, ++held);
    if (makes_weight_gradient(row[i].kind)) visit(i, --held);
  }
}

}  // namespace

std::vector<std::int64_t> most_held(const Schedule& schedule) {
  std::vector<std::int64_t> most;
  for (const std::vector<Action>& row : schedule.ranks) {
    most.push_back(0);
    follow_held(row, [&](std::size_t, std::int64_t held) { most.back() = std::max(most.back(), held); });
  }
  return most;
}

std::optional<Violation> over_cap(const Schedule& schedule, std::int64_t cap) {
  for (std::size_t r = 0; r < schedule.ranks.size(); ++r) {
    std::optional<std::size_t> first;
    follow_held(schedule.ranks[r], [&](std::size_t i, std::int64_t held) {
      if (held > cap && !first) first = i;
    });
    if (!first) continue;
    return Violation{
        fmt::format("{} (action {} of rank {}) would hold {} micro-batches of a stage at once; the cap is "
                    "{}\n{}",
                    to_string(schedule.ranks[r][*first]), *first, r, cap + 1, cap, excerpt(schedule, r, *first)),
        static_cast<std::int32_t>(r), static_cast<std::int32_t>(*first)};
  }
  return std::nullopt;
}

}  // namespace trainer::schedule
