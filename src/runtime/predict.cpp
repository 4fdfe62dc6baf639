#include "trainer/runtime/predict.hpp"

#include <algorithm>
#include <cmath>
#include <set>

#include "trainer/runtime/plan_costs.hpp"

namespace trainer::runtime {

namespace {

using schedule::ActionKind;

// What follows the pass on one pipeline rank, by the parameters that it holds.
struct AfterPass {
  double exchange = 0;  // gradients over replicas
  double tied = 0;
  double norm = 0;
  double update = 0;
};

// What goes through messages on one node too. Compressed gradients are priced as float32 sums, which they are meant to
// beat.
SharedGroups shared_groups(const RunPlan& plan) {
  SharedGroups groups = on_one_node(plan, {});
  groups.data = groups.data && plan.shares_weights();
  return groups;
}

class Predictor {
 public:
  Predictor(const RunPlan& plan, const plan::CostModel& costs, const std::vector<double>& speed)
      : plan_(plan),
        costs_(costs),
        shared_(shared_groups(plan)),
        local_(plan::shard(plan.graph, plan.mesh.tensor, 0)),
        stage_costs_(stage_costs(plan, {&costs, {plan.node_of_rank, speed}}, plan.training.rank_of_stage)),
        pieces_(*stage_costs_.pieces) {}

  Prediction run() {
    const std::vector<plan::PassSeconds> stages = stage_costs_.stages(plan_.stage_nodes);
    const std::vector<schedule::StageTimes> times = plan::simulator_times(plan_.training, stages);
    const double transfer = stage_costs_.transfer;
    const schedule::Timing timing = schedule::simulate(plan_.training, times, transfer);
    Prediction prediction;
    prediction.measured_share = pieces_.measured_share();
    prediction.pass_seconds = timing.step;
    prediction.bubble = timing.bubble();
    double ready = 0;
    double update = 0;
    const double agreement = agreement_seconds();
    for (std::size_t r = 0; r < plan_.training.ranks.size(); ++r) {
      const AfterPass after = after_pass(r, stages);
      const double rest = after.exchange + after.tied + after.norm;
      ready = std::max(ready, end_of(r, timing, times) + rest);
      update = std::max(update, after.update);
      const double sums = sums_of(r, stages) + messages_of(r, transfer);
      prediction.communication = std::max(prediction.communication, sums + after.exchange + after.tied + agreement);
      prediction.optimizer = std::max(prediction.optimizer, after.norm + after.update);
    }
    prediction.step_seconds = ready + agreement + update + costs_.step;
    return prediction;
  }

 private:
  std::int32_t rank_of(std::int64_t stage) const {
    return plan_.training.rank_of_stage[static_cast<std::size_t>(stage)];
  }

  double agreement_seconds() const {
    const auto doubles = static_cast<double>(plan_.graph.parameters.size() + 2);
    double seconds = plan_.mesh.size() > 1 ? costs_.agreement.at(doubles) : 0;
    if (!plan_.node_of_rank.empty() && plan_.node_of_rank.front() != plan_.node_of_rank.back()) {
      const std::set<int> nodes(plan_.node_of_rank.begin(), plan_.node_of_rank.end());
      seconds += 2 * std::ceil(std::log2(static_cast<double>(nodes.size()))) *
                 costs_.between.seconds(doubles * sizeof(double));
    }
    return seconds;
  }

  double end_of(std::size_t rank, const schedule::Timing& timing,
                const std::vector<schedule::StageTimes>& times) const {
    const auto& row = plan_.training.ranks[rank];
    for (std::size_t i = row.size(); i-- > 0;) {
      const schedule::StageTimes& stage = times[row[i].stage.index()];
      switch (row[i].kind) {
        case ActionKind::Forward:
          return timing.start[rank][i] + stage.forward;
        case ActionKind::Backward:
          return timing.start[rank][i] + stage.backward_input + stage.backward_weight;
        case ActionKind::BackwardInput:
          return timing.start[rank][i] + stage.backward_input;
        case ActionKind::BackwardWeight:
          return timing.start[rank][i] + stage.backward_weight;
        default:
          continue;
      }
    }
    return 0;
  }

  double sums_of(std::size_t rank, const std::vector<plan::PassSeconds>& stages) const {
    double sum = 0;
    for (std::int64_t s = 0; s < plan_.stages(); ++s) {
      if (static_cast<std::size_t>(rank_of(s)) == rank) sum += stages[static_cast<std::size_t>(s)].sums;
    }
    return sum * static_cast<double>(plan_.training.micro_batches);
  }
  /// Copies of what is received, both ways; and the time that messages travel.
  double messages_of(std::size_t rank, double transfer) const {
    double seconds = 0;
    for (std::int64_t s = 0; s < plan_.stages(); ++s) {
      if (static_cast<std::size_t>(rank_of(s)) != rank) continue;
      for (const std::int64_t neighbour : {s - 1, s + 1}) {
        if (neighbour < 0 || neighbour >= plan_.stages() || rank_of(neighbour) == rank_of(s)) continue;
        const std::int64_t boundary = plan_.nodes(StageId(std::max(s, neighbour))).begin;
        seconds += pieces_.boundary_bytes(boundary) / costs_.within.bandwidth + transfer;
      }
    }
    return seconds * static_cast<double>(plan_.training.micro_batches);
  }

  AfterPass after_pass(std::size_t rank, const std::vector<plan::PassSeconds>& stages) const {
    std::set<ParameterId> held;
    double gradients = 0;  // elements, each use of a parameter its own
    double last_backward = 0;
    std::size_t some_stage = 0;
    for (std::int64_t s = 0; s < plan_.stages(); ++s) {
      if (static_cast<std::size_t>(rank_of(s)) != rank) continue;
      some_stage = static_cast<std::size_t>(s);
      last_backward += stages[static_cast<std::size_t>(s)].backward;
      const Range nodes = plan_.nodes(StageId(s));
      for (std::int64_t i = nodes.begin; i < nodes.end; ++i) {
        for (const ParameterId p : plan_.graph.nodes[static_cast<std::size_t>(i)].parameters) {
          held.insert(p);
          gradients += elements(p);
        }
      }
    }
    double weights = 0;
    double tied = 0;
    for (const ParameterId p : held) {
      weights += elements(p);
      if (plan_.uses(p).size() > 1) tied += tied_seconds(p);
    }
    const auto replicas = static_cast<double>(plan_.mesh.data);
    const double slow = stage_costs_.stage_speed.empty() ? 1 : 1 / stage_costs_.stage_speed[some_stage];
    AfterPass after;
    after.exchange = plan_.local_steps() ? round_seconds(weights) : exchange_seconds(gradients, last_backward);
    after.tied = tied;
    after.norm = costs_.norm.at(plan_.local_steps() ? weights : weights / replicas) * slow;
    after.update = costs_.optimizer.at(shared_.data ? weights / replicas : weights) * slow;
    return after;
  }

  double elements(ParameterId p) const { return static_cast<double>(local_.parameters[p.index()].elements()); }

  /// On one node each replica adds its share of all; over several, all-reduces run behind the last backward.
  double exchange_seconds(double gradients, double last_backward) const {
    if (plan_.mesh.data == 1) return 0;
    const auto replicas = static_cast<double>(plan_.mesh.data);
    if (shared_.data) return plan::sum_seconds(costs_, gradients / replicas, plan_.mesh.data, true);
    const double whole = plan::sum_seconds(costs_, gradients, plan_.mesh.data, false);
    const auto bucket = static_cast<double>(plan_.config.parallel.all_reduce.bucket_elements);
    const double last_bucket = plan::sum_seconds(costs_, std::min(gradients, bucket), plan_.mesh.data, false);
    return std::max(last_bucket, whole - last_backward);
  }

  /// A step's part of what ends a round of local steps: the sum of the weights.
  double round_seconds(double weights) const {
    if (plan_.mesh.data == 1) return 0;
    return plan::sum_seconds(costs_, weights, plan_.mesh.data, false) /
           static_cast<double>(plan_.config.parallel.local.steps);
  }

  double tied_seconds(ParameterId p) const {
    const auto& uses = plan_.uses(p);
    const double share = elements(p) / (shared_.data ? static_cast<double>(plan_.mesh.data) : 1);
    const bool apart = std::any_of(uses.begin(), uses.end(), [&](const ParameterUse& use) {
      return rank_of(use.stage.value) != rank_of(uses.front().stage.value);
    });
    const double messages = apart ? costs_.within.seconds(share * sizeof(float)) : 0;
    return messages + costs_.sum.at(share * static_cast<double>(uses.size() + 1));
  }

  const RunPlan& plan_;
  const plan::CostModel& costs_;
  const SharedGroups shared_;
  const plan::LocalGraph local_;
  const plan::StageCosts stage_costs_;
  const plan::PieceCosts& pieces_;
};

}  // namespace

Prediction predict(const RunPlan& plan, const plan::CostModel& costs, const std::vector<double>& speed) {
  return Predictor(plan, costs, speed).run();
}

std::size_t peak_memory(const RunPlan& plan, int threads, std::size_t data_bytes) {
  std::size_t most = 0;
  for (std::int64_t r = 0; r < plan.mesh.pipeline; ++r) {
    // A group's last rank maps what its neighbours have taken too.
    const std::int64_t rank = plan.mesh.rank({.data = plan.mesh.data - 1, .pipeline = r, .tensor = 0});
    most = std::max(most, predict_memory(plan, rank, threads, data_bytes).total());
  }
  return most;
}

}  // namespace trainer::runtime
