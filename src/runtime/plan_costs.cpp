#include "trainer/runtime/plan_costs.hpp"

#include <algorithm>

#include "trainer/runtime/recompute.hpp"

namespace trainer::runtime {

namespace {

constexpr double kSomeCore = 50e9;  // where nobody says how fast a core is, only shares of the whole matter

bool tensor_groups_share_nodes(const RunPlan& plan) {
  for (std::int64_t rank = 0; rank < plan.mesh.size(); rank += plan.mesh.tensor) {
    if (!share_node(plan, rank, rank + plan.mesh.tensor - 1)) return false;
  }
  return true;
}

// Of a message between neighbours: on a node what is copied is in the stages' own times, between nodes the largest
// value that a cut can send counts.
double transfer_seconds(const RunPlan& plan, const plan::CostModel& model, const plan::PieceCosts& pieces) {
  const std::int64_t width = plan.mesh.data * plan.mesh.tensor;
  bool near = true;
  for (std::int64_t rank = width; rank < plan.mesh.size(); ++rank) near = near && share_node(plan, rank - width, rank);
  if (near) return model.within.latency;
  double most = 0;
  for (const model::Unit& piece : plan.graph.pieces) {
    most = std::max(most, piece.node_begin > 0 ? pieces.boundary_bytes(piece.node_begin) : 0.0);
  }
  return model.between.seconds(most);
}

}  // namespace

bool share_node(const RunPlan& plan, std::int64_t a, std::int64_t b) {
  if (plan.node_of_rank.empty()) return true;
  return plan.node_of_rank[static_cast<std::size_t>(a)] == plan.node_of_rank[static_cast<std::size_t>(b)];
}

plan::StageCosts stage_costs(const RunPlan& plan, const PlanCosts& costs,
                             const std::vector<std::int32_t>& rank_of_stage) {
  const plan::CostModel estimated = plan::estimated_costs(kSomeCore, 1);
  const plan::CostModel& model = costs.model != nullptr ? *costs.model : estimated;
  plan::StageCosts stages;
  const auto pieces = std::make_shared<plan::PieceCosts>(
      model, plan.graph, plan::PieceSize{plan.micro_batch_samples, plan.mesh.tensor, plan.mesh.pipeline},
      tensor_groups_share_nodes(plan), plan.config.training.precision == config::Precision::BFloat16);
  stages.transfer = plan.mesh.pipeline > 1 ? transfer_seconds(plan, model, *pieces) : 0;
  stages.pieces = pieces;
  const Range all{0, static_cast<std::int64_t>(plan.graph.nodes.size())};
  stages.again = recomputed_nodes(plan.graph, all, plan.recompute);
  const std::vector<double>& speed = costs.machines.speed;
  const bool all_together = plan.mesh.tensor == plan.mesh.size();
  stages.slower = all_together ? 1 : model.unevenness;
  if (speed.empty()) return stages;
  const std::int64_t width = plan.mesh.data * plan.mesh.tensor;
  const std::size_t count = rank_of_stage.empty() ? static_cast<std::size_t>(plan.mesh.pipeline) : rank_of_stage.size();
  for (std::size_t s = 0; s < count; ++s) {
    const auto rank = rank_of_stage.empty() ? static_cast<std::int64_t>(s) : rank_of_stage[s];
    const auto begin = speed.begin() + rank * width;
    stages.stage_speed.push_back(*std::min_element(begin, begin + width));
  }
  return stages;
}

}  // namespace trainer::runtime
