// What a backward computes again instead of keeping it from the forward (training.recompute). A *segment* is a range of
// nodes, a unit or a piece of one, that keeps only what flows into and out of it; values made and read only inside are
// *interior*: scratch of the forward, and made again just before the segment's backward where that reads them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "trainer/model/graph.hpp"
#include "trainer/ops/operator.hpp"
#include "trainer/runtime/run_plan.hpp"

namespace trainer::runtime {

/// Which nodes use a value.
struct ValueUse {
  std::int64_t producer = -1;       // node index, -1: data or target
  std::vector<std::int64_t> users;  // node indices, ascending
};
std::vector<ValueUse> uses_of(const model::Graph& graph);

struct RecomputePlan {
  std::vector<bool> interior;   // [value]
  std::vector<bool> again;      // [node of the graph] its forward runs once more
  std::vector<Range> segments;  // those parts of the given ones that lie in `nodes`
};
/// For the nodes of one stage without its loss. A node runs again when its output is interior and the backward of the
/// segment, or another node that runs again, reads it: so never a segment's last product. Of a node that does not,
/// what it saved is kept. `needs` is asked for nodes of `nodes` only.
RecomputePlan plan_recompute(const model::Graph& graph, Range nodes, const std::vector<Range>& segments,
                             const std::function<ops::Needs(std::int64_t)>& needs);

/// The segments that the configuration asks for, in the order of nodes; none for "auto", which fit_recompute decides.
/// Throws Error(Usage) for a name that is no unit and no piece.
std::vector<Range> written_segments(const model::Graph& graph, const config::Training& training);

/// Nodes that this range of nodes runs again; their forwards come on top of its backward_input in any model of cost.
std::vector<NodeId> recomputed_nodes(const model::Graph& graph, Range nodes, const std::vector<Range>& segments);

/// Floating-point operations of one sample through a stage, recomputing as part of backward_input.
schedule::StageTimes stage_flops(const RunPlan& plan, StageId stage);

/// Floating-point operations that one step computes again, over all replicas; not part of step_flops.
double recompute_flops(const RunPlan& plan);

/// "h.0 … h.3, h.5.mlp": which segments, "nothing" for none.
std::string describe_recompute(const RunPlan& plan);

/// What "auto" keeps small: floating-point operations of one sample that these segments run again, with element-wise
/// work in the arithmetic that would take its time.
double recompute_cost(const model::Graph& graph, Range nodes, const std::vector<Range>& segments);

/// What "auto" may fill on one rank.
struct MemoryLimit {
  std::size_t bytes = 0;
  /// Memory of which a neighbour on the node counts the same pages is not counted: for a share of a node's memory.
  bool own = false;
};

/// Decides "auto": plan.recompute becomes the cheapest set of segments with which every rank is predicted to stay
/// within the limit, as a search finds it that takes what saves most bytes for its cost until the ranks fit, then moves
/// to what costs less while they still do. All segments when not even those are enough. A pure function, so that ranks
/// that call it with the same limit decide alike. Does nothing for other settings.
void fit_recompute(RunPlan& plan, int threads, std::size_t data_bytes, const MemoryLimit& limit);

/// Throws Error(Usage) naming the rank that is predicted to need most when it is beyond parallel.memory_per_rank.
void require_memory_per_rank(const RunPlan& plan, int threads, std::size_t data_bytes);

}  // namespace trainer::runtime
