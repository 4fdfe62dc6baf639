// The ranks' clocks on one time line: nodes whose clocks are apart, and drift.
#include <doctest/doctest.h>

#include <atomic>
#include <cstdlib>

#include "trainer/comm/clock.hpp"
#include "trainer/core/action_log.hpp"

using namespace trainer;

namespace {

constexpr std::int64_t kSecond = 1'000'000'000;

// Of this thread, which is a rank: its node's clock is this far ahead.
thread_local std::int64_t ahead = 0;
std::int64_t skewed() { return steady_nanoseconds() + ahead; }

}  // namespace

TEST_CASE("clocks of other nodes are found within the stated error, those of one node are one clock") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 30, .progress = {}});
  const std::vector<int> nodes{0, 0, 1, 1, 7, 7, 8};  // two of them beside this world, as servers beside a mesh
  comm::run_in_process(5, [&](comm::Communicator& world) {
    const int node = nodes[static_cast<std::size_t>(world.rank())];
    ahead = -3 * node * kSecond;
    const comm::ClockSample sample = comm::measure_clock(world, nodes, skewed);
    CHECK(std::llabs(sample.offset + ahead) <= sample.error);
    if (node == 0) CHECK(sample.error == 0);
    if (node != 0) CHECK(sample.error < kSecond);
    ahead = 0;
    const comm::ClockSample one = comm::measure_clock(world, {}, skewed);
    CHECK(one.offset == 0);
    CHECK(one.error == 0);
  });
  comm::set_wait_policy({});
}

TEST_CASE("drift between two samples is even") {
  const comm::ClockSample before{1000, 500, 3}, after{2000, 700, 3};
  CHECK(comm::common_time(1000, before, after) == 1500);
  CHECK(comm::common_time(1500, before, after) == 2100);
  CHECK(comm::common_time(2000, before, after) == 2700);
  CHECK(comm::common_time(1234, before, {2000, 500, 3}) == 1734);
  CHECK(comm::common_time(1234, before, before) == 1734);
}
