// One time line for the steady clocks of all ranks.
#pragma once

#include <cstdint>
#include <vector>

#include "trainer/comm/communicator.hpp"

namespace trainer::comm {

/// How far this rank's clock is from rank 0's at some moment, in nanoseconds.
struct ClockSample {
  std::int64_t at = 0;      // by this rank's clock
  std::int64_t offset = 0;  // to add
  std::int64_t error = 0;   // at most: half of the fastest exchange; 0 on rank 0's node
};

/// Measures it by exchanging messages with rank 0 (Cristian's algorithm: the fastest of some exchanges counts). Ranks
/// of a node share a clock, so one rank a node does it; on rank 0's node nothing is sent. `node_of_rank` empty: all are
/// on one; it may go on with ranks that are not of `world`, such as servers beside a mesh. Collective; uses tags 8 and
/// 9 of `world`. `clock`: nanoseconds; for tests.
ClockSample measure_clock(Communicator& world, const std::vector<int>& node_of_rank, std::int64_t (*clock)());

/// By rank 0's clock, from samples before and after; the drift between them is taken to be even.
std::int64_t common_time(std::int64_t local, const ClockSample& before, const ClockSample& after);

}  // namespace trainer::comm
