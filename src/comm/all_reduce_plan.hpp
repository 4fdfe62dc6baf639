// An all-reduce as a value: the messages and sums of one rank, and what each of them waits for. Pure; all_reduce.cpp
// walks it.
#pragma once

#include <cstdint>
#include <vector>

#include "trainer/comm/all_reduce.hpp"

namespace trainer::comm {

/// Memory of a piece: its elements in the caller's buffer, or staging of its own, of floats or of bfloat16.
struct Place {
  enum class In : std::uint8_t { Data, Floats, Wire };
  In in = In::Data;
  std::int64_t at = 0;  // element, from the begin of the piece or of its staging
};

/// Complete when so many steps of a queue are.
struct After {
  std::size_t queue = 0;
  std::size_t steps = 0;
};

struct Step {
  enum class Kind : std::uint8_t { Send, Receive, Sum, Round };
  Kind kind = Kind::Send;
  Place place;  // the message, or where the result goes; a Sum's may be one of its sources
  std::int64_t count = 0;
  int peer = -1;
  int phase = 0;               // tells messages between two ranks apart; at most one each way has it
  std::vector<Place> sources;  // Sum: added in this order in float32 (one: copied). Round: one of floats, to Wire
  std::vector<After> after;
  bool in_turn = false;  // a send that does not begin before that of the piece but one before has left
};

/// Steps of a queue begin, and are found complete, in their order; queues go side by side.
struct PiecePlan {
  std::vector<std::vector<Step>> queues;
  std::int64_t floats = 0, wires = 0;  // staging, in elements
};

/// How a buffer is cut. All ranks cut alike, and pieces begin in order, `slots` at a time, each slot with staging and
/// tags of its own: so the first piece that is not complete everywhere is under way everywhere.
struct AllReducePlan {
  AllReduceAlgorithm algorithm = AllReduceAlgorithm::Direct;  // never Automatic
  Wire wire = Wire::Float32;
  std::int64_t pieces = 0;  // split_range(count, pieces, p)
  std::int64_t slots = 0;
  int phases = 0;  // tags that each slot takes
  bool one_round = false;
};

AllReducePlan plan_all_reduce(std::int64_t count, int ranks, const AllReduceOptions& options);
/// `count` elements of one piece, as `rank` sees them. Not for Mpi.
PiecePlan plan_piece(const AllReducePlan& plan, std::int64_t count, int ranks, int rank,
                     const std::vector<int>& node_of_rank);

}  // namespace trainer::comm
