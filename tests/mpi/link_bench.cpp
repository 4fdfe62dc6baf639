// Latency and bandwidth between ranks 0 and 1, through the communicator that the trainer uses.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "trainer/comm/communicator.hpp"
#include "trainer/comm/mpi.hpp"
#include "trainer/comm/topology.hpp"

namespace {

using namespace trainer::comm;

constexpr double kSeconds = 1;  // a size, about
constexpr int kMostRounds = 2000;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Median seconds of a message of `bytes` there and back. Collective over ranks 0 and 1.
double there_and_back(Communicator& world, std::size_t bytes, int rounds) {
  std::vector<char> out(bytes, 1), in(bytes);
  const int peer = 1 - world.rank();
  const auto send = world.make_send(out.data(), bytes, peer, 1);
  const auto receive = world.make_receive(in.data(), bytes, peer, 1);
  std::vector<double> seconds;
  for (int round = 0; round < rounds; ++round) {
    const double begin = now();
    receive->start();
    if (world.rank() == 0) {
      send->start();
      wait(*send, {"sending", peer, round});
      wait(*receive, {"the message that comes back", peer, round});
    } else {
      wait(*receive, {"a message", peer, round});
      send->start();
      wait(*send, {"sending back", peer, round});
    }
    seconds.push_back(now() - begin);
  }
  std::nth_element(seconds.begin(), seconds.begin() + rounds / 2, seconds.end());
  return seconds[static_cast<std::size_t>(rounds / 2)];
}

}  // namespace

int main(int argc, char** argv) {
  MpiSession session(&argc, &argv);
  const auto world = session.world();
  if (world->size() != 2) {
    if (world->rank() == 0) std::fputs("link_bench: runs on 2 ranks\n", stderr);
    return 2;
  }
  set_wait_policy({.yield = plan_node(*world, 1).oversubscribed, .hang_seconds = 60, .progress = {}});
  if (world->rank() == 0) fmt::print("{:>10}  {:>12}  {:>10}\n", "bytes", "one way, us", "MB/s");
  for (const std::size_t bytes : {8UL, 1UL << 10, 16UL << 10, 128UL << 10, 1UL << 20, 8UL << 20}) {
    double once = there_and_back(*world, bytes, 3);
    world->max({&once, 1});  // the same number of rounds on both
    const int rounds = std::clamp(static_cast<int>(kSeconds / once), 3, kMostRounds);
    const double seconds = there_and_back(*world, bytes, rounds) / 2;
    if (world->rank() == 0)
      fmt::print("{:>10}  {:>12.1f}  {:>10.1f}\n", bytes, seconds * 1e6, static_cast<double>(bytes) / seconds / 1e6);
  }
  return 0;
}
