// Where the model is cut into pipeline stages.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "trainer/config/config.hpp"
#include "trainer/core/shape.hpp"
#include "trainer/model/graph.hpp"
#include "trainer/plan/cost_model.hpp"
#include "trainer/schedule/schedule.hpp"

namespace trainer::plan {

/// Nodes [begin, end) of each stage, contiguous, none empty, all covered, by the configured rule. `table` is the order
/// of the stages' work, with communication, `again` the nodes that the backward computes once more (ascending): "flops"
/// takes the cut (between pieces) whose simulated step in it is shortest, as far as a search from the balanced one
/// finds it; the others cut between units. A pure function. Throws Error(Usage) when there are more stages than units
/// or the written list does not add up.
std::vector<Range> cut_stages(const model::Graph& graph, const config::Parallel& parallel,
                              const schedule::Schedule& table, const std::vector<NodeId>& again = {},
                              double share_of_search = 1);

/// What stages cost wherever the model is cut: for the cut, for a schedule made for its times, for the prediction.
struct StageCosts {
  std::shared_ptr<const PieceCosts> pieces;
  std::vector<double> stage_speed;  // [stage] of the ranks that hold it, relative to those of the costs; empty: 1
  std::vector<NodeId> again;        // nodes whose forward the backward computes once more, ascending
  double slower = 1;                // by waiting for whom the machine holds up, see CostModel::unevenness
  double transfer = 0;              // seconds of a message, besides the copy that is in the stages' times

  std::vector<PassSeconds> stages(const std::vector<Range>& stage_nodes) const;
  std::vector<double> speeds(std::int64_t stages) const;
};

/// "profile": the cut (between pieces) whose simulated step in `table` is shortest with these costs, found as for
/// "flops", from the cut that balances the stages by their speeds.
std::vector<Range> cut_by_costs(const model::Graph& graph, const schedule::Schedule& table, const StageCosts& costs,
                                double share_of_search = 1);

/// The contiguous cut of `costs` into `parts` non-empty parts with the smallest largest sum; among those the one with
/// the smallest sum of squares. Exact, by dynamic programming in O(parts · n²).
std::vector<Range> balanced_cut(const std::vector<double>& costs, std::int64_t parts);
/// The same with a part's sum divided by that part's speed.
std::vector<Range> balanced_cut(const std::vector<double>& costs, const std::vector<double>& speeds);

/// Floating-point operations of one sample through these nodes, as times for the simulator; the forward of those that
/// are among `again` (ascending) counts once more, in backward_input. A millisecond of a "delay" layer counts as 1e8 of
/// them here (and as none where arithmetic is counted, model::cost).
schedule::StageTimes flops_of(const model::Graph& graph, Range nodes, const std::vector<NodeId>& again = {});

/// "h.2 … head (4)": the first and last unit (or piece of one) of a stage and how many units it has.
std::string describe_stage(const model::Graph& graph, Range nodes);

}  // namespace trainer::plan
