// Ways to sum float32 buffers over ranks; all are made by Communicator::make_all_reduce.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace trainer::comm {

/// How a sum over ranks is made. n ranks, a buffer of c bytes; what a rank sends:
///
///   Direct     each rank collects a stretch from all others, sums it, hands it out; 2 (n−1)/n c in two rounds.
///              Two ranks, and few elements, trade whole buffers in one round instead.
///   Ring       pieces go from rank 0 to rank n−1, each rank adding its own, and the sum on to rank 0 and round; 2 c at
///              most, to one neighbour. Between nodes whose ranks follow each other a piece passes once each way.
///   Tree       a binomial tree: sums go up to rank 0, the result down; c log₂ n at most, in 2 log₂ n rounds.
///   Hierarchy  sums within each node, then between nodes as Direct, handed out within the node; each of a node's ranks
///              leads for a stretch, so that a node of m ranks sends 1/m of what Direct would to other nodes.
///   Mpi        the library's own MPI_Iallreduce; Direct where there is no library.
///   Automatic  Direct or Ring, see choose_all_reduce().
///
/// The order in which an element's addends are added is a function of the algorithm, the ranks and their nodes, never
/// of the count or the place in the buffer. In Direct and Ring it is the order of ranks: ((0 + 1) + 2) + …, so their
/// bits are equal. In Tree it is that of the tree, in Hierarchy first the ranks of a node, then the nodes by their
/// first ranks: the bits of Direct for up to three ranks, and where only the first node has several ranks. All ranks
/// get the same bits. Of Mpi that is what the library promises; MPICH keeps it on equal machines, from run to run too.
enum class AllReduceAlgorithm : std::uint8_t { Automatic, Direct, Ring, Tree, Hierarchy, Mpi };

/// What travels. BFloat16 halves the bytes: what is sent is rounded to nearest even, added in float32, and the result
/// is rounded before it is handed out, so that all ranks have the same bits. With u = 2⁻⁸, S the exact sum and A the
/// sum of the magnitudes of an element's n addends, the result is within R u A of S to first order in u, where R is how
/// often what an addend is part of is rounded on its way:
///
///   Direct 2 (two ranks: 1), Ring n, Tree ⌈log₂ n⌉ + 1, Hierarchy 2 (two nodes: 1, one: none, as messages within a
///   node stay float32); wire_error_bound() is exact. Direct rounds a rank's own addend too, so that bits do not depend
///   on who sums. Infinities and NaN stay what they are; finite numbers from 2¹²⁸ (1 − 2⁻⁹) on become infinities.
/// Mpi has no such type.
enum class Wire : std::uint8_t { Float32, BFloat16 };

struct AllReduceOptions {
  AllReduceAlgorithm algorithm = AllReduceAlgorithm::Direct;
  Wire wire = Wire::Float32;
  std::vector<int> node_of_rank = {};  // [rank]; empty: all are on one node
};

/// What Automatic takes: a pure function, alike on all ranks. It only ever takes what has the bits of Direct, so
/// neither sizes nor places change a run's bits: Ring for large buffers where Direct would send more out of a node, as
/// several ranks share its link (ranks (nodes - 1) > nodes²); else, and in bfloat16, Direct. Where the ranks of a node
/// do not follow each other, `nodes` is `ranks`.
AllReduceAlgorithm choose_all_reduce(std::int64_t count, int ranks, int nodes, Wire wire);

/// What one all-reduce of `count` elements takes on `rank`: memory from the moment it is made, and bytes sent each
/// time. Of Mpi they are assumed: a copy of the buffer, and the least that any algorithm sends.
struct AllReduceCost {
  std::size_t extra_bytes = 0;
  std::int64_t sent_bytes = 0;
};
AllReduceCost all_reduce_cost(std::int64_t count, int ranks, int rank, const AllReduceOptions& options);

/// How far a result may be from the exact sum of an element's addends, relative to the sum of their magnitudes,
/// overflow and underflow apart: what the wire rounds and what float32 sums of `ranks` terms do.
double wire_error_bound(int ranks, const AllReduceOptions& options);

}  // namespace trainer::comm
