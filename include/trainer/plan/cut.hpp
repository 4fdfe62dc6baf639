// Where the model is cut into pipeline stages.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/config/config.hpp"
#include "trainer/core/shape.hpp"
#include "trainer/model/graph.hpp"
#include "trainer/schedule/schedule.hpp"

namespace trainer::plan {

/// Nodes [begin, end) of each stage, contiguous, none empty, all covered, by the configured rule. `table` is the order
/// of the stages' work, with communication, `again` the nodes that the backward computes once more (ascending): "flops"
/// takes the cut (between pieces) whose simulated step in it is shortest, as far as a search from the balanced one
/// finds it; the others cut between units. A pure function. Throws Error(Usage) when there are more stages than units
/// or the written list does not add up.
std::vector<Range> cut_stages(const model::Graph& graph, const config::Parallel& parallel,
                              const schedule::Schedule& table, const std::vector<NodeId>& again = {});

/// The contiguous cut of `costs` into `parts` non-empty parts with the smallest largest sum; among those the one with
/// the smallest sum of squares. Exact, by dynamic programming in O(parts · n²).
std::vector<Range> balanced_cut(const std::vector<double>& costs, std::int64_t parts);

/// Floating-point operations of one sample through these nodes, as times for the simulator; the forward of those that
/// are among `again` (ascending) counts once more, in backward_input. A millisecond of a "delay" layer counts as 1e8 of
/// them here (and as none where arithmetic is counted, model::cost).
schedule::StageTimes flops_of(const model::Graph& graph, Range nodes, const std::vector<NodeId>& again = {});

/// "h.2 … head (4)": the first and last unit (or piece of one) of a stage and how many units it has.
std::string describe_stage(const model::Graph& graph, Range nodes);

}  // namespace trainer::plan
