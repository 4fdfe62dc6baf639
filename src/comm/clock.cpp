#include "trainer/comm/clock.hpp"

#include <algorithm>
#include <limits>

namespace trainer::comm {

namespace {

constexpr int kAsk = 8, kAnswer = 9;  // tags
constexpr int kExchanges = 20;        // the first ones set up connections

// Rank 0's side of measure().
void answer(Communicator& world, int peer, std::int64_t (*clock)()) {
  std::int64_t question = 0, time = 0;
  const auto receive = world.make_receive(&question, sizeof(question), peer, kAsk);
  const auto send = world.make_send(&time, sizeof(time), peer, kAnswer);
  for (int i = 0; i < kExchanges; ++i) {
    receive->start();
    wait(*receive, {"a question for the time", peer, i});
    wait(*send, {"sending the time", peer, i});
    time = clock();
    send->start();
  }
  wait(*send, {"sending the time", peer, -1});
}

ClockSample measure(Communicator& world, std::int64_t (*clock)()) {
  std::int64_t question = 0, time = 0;
  const auto send = world.make_send(&question, sizeof(question), 0, kAsk);
  const auto receive = world.make_receive(&time, sizeof(time), 0, kAnswer);
  ClockSample best;
  std::int64_t fastest = std::numeric_limits<std::int64_t>::max();
  for (int i = 0; i < kExchanges; ++i) {
    receive->start();
    const std::int64_t asked = clock();
    send->start();
    wait(*receive, {"the time of rank 0", 0, i});
    const std::int64_t heard = clock();
    wait(*send, {"asking for the time", 0, i});
    if (heard - asked >= fastest) continue;
    fastest = heard - asked;
    best = {asked + fastest / 2, time - (asked + fastest / 2), fastest / 2 + 1};
  }
  return best;
}

}  // namespace

ClockSample measure_clock(Communicator& world, const std::vector<int>& node_of_rank, std::int64_t (*clock)()) {
  std::vector<int> leaders;  // the first rank of each node; that of rank 0's is rank 0
  std::vector<std::size_t> leader_of(node_of_rank.size(), 0);
  const std::size_t ranks = std::min(node_of_rank.size(), static_cast<std::size_t>(world.size()));
  for (std::size_t r = 0; r < ranks; ++r) {
    const auto same = [&](int leader) { return node_of_rank[static_cast<std::size_t>(leader)] == node_of_rank[r]; };
    const auto found = std::find_if(leaders.begin(), leaders.end(), same);
    leader_of[r] = static_cast<std::size_t>(found - leaders.begin());
    if (found == leaders.end()) leaders.push_back(static_cast<int>(r));
  }
  if (leaders.size() <= 1) return {clock(), 0, 0};
  const auto mine = static_cast<std::size_t>(world.rank());
  const std::size_t node = leader_of[mine];
  ClockSample sample;
  std::vector<double> facts(2 * leaders.size(), 0.0);  // offset and error a node; doubles hold 2^53 ns, 100 days
  if (world.rank() == 0) {
    for (std::size_t n = 1; n < leaders.size(); ++n) answer(world, leaders[n], clock);
  } else if (node > 0 && leaders[node] == world.rank()) {
    sample = measure(world, clock);
    facts[2 * node] = static_cast<double>(sample.offset);
    facts[2 * node + 1] = static_cast<double>(sample.error);
  }
  world.sum(facts);
  const auto of = [&facts](std::size_t i) { return static_cast<std::int64_t>(facts[i]); };
  return {clock(), of(2 * node), of(2 * node + 1)};
}

std::int64_t common_time(std::int64_t local, const ClockSample& before, const ClockSample& after) {
  if (after.at <= before.at || before.offset == after.offset) return local + after.offset;
  const double drift = static_cast<double>(after.offset - before.offset) / static_cast<double>(after.at - before.at);
  return local + before.offset + static_cast<std::int64_t>(drift * static_cast<double>(local - before.at));
}

}  // namespace trainer::comm
