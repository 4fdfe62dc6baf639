// Which part of every node and parameter a tensor rank holds, and where the placement of a value changes. Stated, not
// inferred: the input of a column-parallel matrix is replicated in the forward, and its gradient is partial in the
// backward. Column and row parallelism after Shoeybi et al., Megatron-LM (arXiv:1909.08053).
#pragma once

#include <cstdint>
#include <vector>

#include "trainer/core/shape.hpp"
#include "trainer/model/graph.hpp"

namespace trainer::plan {

/// How the feature dim of a value lies over tensor ranks.
enum class Placement { Replicate, Shard };

struct LocalValue {
  Placement placement = Placement::Replicate;
  std::int64_t features = 0;  // on this rank
};

struct LocalNode {
  model::Op op;                        // with this rank's sizes
  bool reduce_output = false;          // the node gives a partial sum: all-reduce it over the tensor ranks
  bool reduce_input_gradient = false;  // backward_input gives a partial sum: all-reduce it
};

/// This rank's boxes of a parameter, in the order in which they lie behind one another in memory (q|k|v has three).
struct LocalParameter {
  std::vector<Box> boxes;
  bool sharded = false;  // otherwise every tensor rank holds the same whole
  std::int64_t elements() const;
};

/// The graph as one tensor rank sees it; same indices as in model::Graph.
struct LocalGraph {
  std::vector<LocalNode> nodes;
  std::vector<LocalValue> values;
  std::vector<LocalParameter> parameters;
  bool loss_sharded = false;  // the loss sees this rank's classes only
};

/// Depends on the graph and the number of tensor ranks only, never on the stage cut. Uneven shards differ by one row.
/// Throws Error(Usage) when attention has fewer heads than there are tensor ranks.
LocalGraph shard(const model::Graph& graph, std::int64_t tensor_ranks, std::int64_t tensor_rank);

}  // namespace trainer::plan
