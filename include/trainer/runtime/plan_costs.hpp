// The costs of a plan's stages, also of a plan that is still being made.
#pragma once

#include "trainer/plan/cut.hpp"
#include "trainer/runtime/run_plan.hpp"

namespace trainer::runtime {

/// What any stage of this plan costs, by its nodes, and what a message takes: for the cut, for schedule::automatic and
/// for predictions. Needs the plan's config (resolved), graph (which must stay where it is), mesh, micro_batch_samples
/// and node_of_rank, and `rank_of_stage` where a pipeline rank has several stages (empty: stage s is on rank s).
plan::StageCosts stage_costs(const RunPlan& plan, const PlanCosts& costs,
                             const std::vector<std::int32_t>& rank_of_stage = {});

/// Whether two ranks of the plan share a node.
bool share_node(const RunPlan& plan, std::int64_t a, std::int64_t b);

}  // namespace trainer::runtime
