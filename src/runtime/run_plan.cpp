#include "trainer/runtime/run_plan.hpp"

#include <fmt/format.h>

#include <set>

#include "trainer/comm/communicator.hpp"
#include "trainer/core/error.hpp"
#include "trainer/optim/optimizer.hpp"
#include "trainer/plan/cut.hpp"
#include "trainer/runtime/gradient_sync.hpp"
#include "trainer/runtime/parameters.hpp"
#include "trainer/runtime/plan_costs.hpp"
#include "trainer/runtime/tensor_group.hpp"

namespace trainer::runtime {

namespace {

schedule::Schedule compute_schedule(const config::Parallel& parallel, const schedule::PipelineShape& shape) {
  switch (parallel.schedule) {
    case config::ScheduleName::GPipe:
      return schedule::gpipe(shape);
    case config::ScheduleName::OneFOneB:
      return schedule::one_f_one_b(shape);
    case config::ScheduleName::ZeroBubbleH1:
      return schedule::zero_bubble_h1(shape);
  }
  internal_error("an unknown schedule");
}

// A long steady state says nothing about where to cut that a shorter one does not.
schedule::Schedule table_to_cut_for(const config::Parallel& parallel, std::int64_t micro_batches) {
  constexpr std::int64_t kMostForwards = 4096;  // of all stages
  const std::int64_t enough = std::max(4 * parallel.pipeline, kMostForwards / parallel.pipeline);
  const schedule::PipelineShape shape{parallel.pipeline, std::min(micro_batches, enough), parallel.split_backward};
  return schedule::add_communication(compute_schedule(parallel, shape));
}

void require_valid(const schedule::Schedule& schedule) {
  if (const auto violation = schedule::verify(schedule))
    internal_error("the schedule cannot run: " + violation->message);
}

bool has_split_backward(const schedule::Schedule& schedule, StageId stage) {
  const auto rank = static_cast<std::size_t>(schedule.rank_of_stage[stage.index()]);
  for (const schedule::Action& action : schedule.ranks[rank]) {
    if (action.stage == stage && action.kind == schedule::ActionKind::BackwardWeight) return true;
  }
  return false;
}

std::vector<std::vector<ParameterUse>> uses_by_parameter(const RunPlan& plan) {
  std::vector<std::vector<ParameterUse>> uses(plan.graph.parameters.size());
  for (std::int64_t s = 0; s < plan.stages(); ++s) {
    const Range nodes = plan.nodes(StageId(s));
    for (std::int64_t i = nodes.begin; i < nodes.end; ++i) {
      for (const ParameterId p : plan.graph.nodes[static_cast<std::size_t>(i)].parameters) {
        uses[p.index()].push_back({NodeId(i), StageId(s)});
      }
    }
  }
  return uses;
}

LayoutRequest layout_request(const RunPlan& plan, const plan::LocalGraph& local, StageId stage, int threads) {
  return {.graph = plan.graph,
          .local = local,
          .nodes = plan.nodes(stage),
          .samples = plan.micro_batch_samples,
          .threads = threads,
          .training = true,
          .split_backward = has_split_backward(plan.training, stage),
          .precision = matmul_precision(plan.config),
          .with_loss = true};
}

// Sizes beyond this cannot be added up in 64 bits, and no machine has them: refused before anything multiplies them.
void require_countable(const model::Graph& graph, const config::Config& config) {
  constexpr double kMostBytes = 0x1p58;
  double weights = 0;
  for (const model::Parameter& parameter : graph.parameters) {
    double elements = sizeof(float);
    for (int d = 0; d < parameter.shape.dims(); ++d) elements *= static_cast<double>(parameter.shape[d]);
    weights += elements;
  }
  const auto samples = static_cast<double>(config.training.batch_size / config.parallel.data);
  double values = 0;
  for (const model::Value& value : graph.values) {
    values += sizeof(float) * samples * static_cast<double>(value.positions) * static_cast<double>(value.features);
  }
  if (weights < kMostBytes && values < kMostBytes) return;
  throw Error(
      ExitCode::Usage,
      fmt::format("model, training.batch_size: the weights take {:.1e} GiB of memory and a replica's batch {:.1e} "
                  "GiB, more than any machine has; smaller sizes would work",
                  weights / 0x1p30, values / 0x1p30));
}

}  // namespace

RunPlan make_plan(config::Config config, std::int64_t ranks, const PlanCosts& costs) {
  config::resolve_parallel(config, ranks);
  RunPlan plan;
  plan.graph = model::build(config);
  require_countable(plan.graph, config);
  const config::Parallel& parallel = config.parallel;
  plan.mesh = {parallel.data, parallel.pipeline, parallel.tensor};
  plan.micro_batch_samples = config.training.batch_size / (parallel.data * config.training.micro_batches);
  plan.node_of_rank = costs.machines.node_of_rank;
  plan.config = config;
  const schedule::Schedule table = table_to_cut_for(parallel, config.training.micro_batches);
  plan.stage_nodes = parallel.partition == config::PartitionRule::Profile
                         ? plan::cut_by_costs(plan.graph, table, stage_costs(plan, costs))
                         : plan::cut_stages(plan.graph, parallel, table);
  plan.parameter_uses = uses_by_parameter(plan);
  const schedule::PipelineShape shape{parallel.pipeline, config.training.micro_batches, parallel.split_backward};
  plan.training = schedule::add_reductions(schedule::add_communication(compute_schedule(parallel, shape)));
  plan.forward_only = schedule::add_communication(schedule::forward_only(shape));
  require_valid(plan.training);
  require_valid(plan.forward_only);
  plan.training_slots = schedule::assign_slots(plan.training);
  plan.forward_only_slots = schedule::assign_slots(plan.forward_only);
  // What the layout refuses, it refuses before anything has started.
  for (std::int64_t t = 0; t < parallel.tensor; ++t) plan::shard(plan.graph, parallel.tensor, t);
  return plan;
}

ops::MatmulPrecision matmul_precision(const config::Config& config) {
  return config.training.precision == config::Precision::BFloat16 ? ops::MatmulPrecision::BFloat16
                                                                  : ops::MatmulPrecision::Float32;
}

void require_precision(const config::Config& config) {
  if (matmul_precision(config) == ops::MatmulPrecision::Float32) return;
  if (ops::has_bfloat16() || config.training.bfloat16_emulation) return;
  throw Error(ExitCode::Usage,
              "training.precision: is \"bfloat16\", but this CPU has no bfloat16 instructions (AVX-512 BF16); "
              "training.bfloat16_emulation = true gives the same results at float32's speed, or \"float32\"");
}

StageLayout training_layout(const RunPlan& plan, const plan::LocalGraph& local, StageId stage, int threads) {
  return lay_out(layout_request(plan, local, stage, threads));
}

StageLayout forward_only_layout(const RunPlan& plan, const plan::LocalGraph& local, StageId stage, int threads) {
  LayoutRequest request = layout_request(plan, local, stage, threads);
  request.training = false;
  request.split_backward = false;
  return lay_out(request);
}

double step_flops(const RunPlan& plan) {
  double sample = 0;
  for (const model::Node& node : plan.graph.nodes) {
    const model::NodeCost cost = model::cost(node, plan.graph);
    sample += cost.forward + cost.backward_input + cost.backward_weight;
  }
  return sample * static_cast<double>(plan.config.training.batch_size);
}

std::vector<std::int64_t> reduction_sizes(const RunPlan& plan, const plan::LocalGraph& local, StageId stage) {
  const Range nodes = plan.nodes(stage);
  std::set<std::int64_t> sizes;
  const auto add = [&](ValueId v) {
    sizes.insert(plan.micro_batch_samples * plan.graph.values[v.index()].positions * local.values[v.index()].features);
  };
  for (std::int64_t i = nodes.begin; i < nodes.end; ++i) {
    const model::Node& node = plan.graph.nodes[static_cast<std::size_t>(i)];
    if (local.nodes[static_cast<std::size_t>(i)].reduce_output) add(node.output);
    if (local.nodes[static_cast<std::size_t>(i)].reduce_input_gradient) add(node.inputs[0]);
  }
  return {sizes.begin(), sizes.end()};
}

SharedGroups on_one_node(const RunPlan& plan, const plan::Coordinates& at) {
  const auto along = [&](std::int64_t plan::Coordinates::*axis, std::int64_t size) {
    plan::Coordinates other = at;
    for (other.*axis = 0; other.*axis < size; ++(other.*axis)) {
      const auto node = [&](const plan::Coordinates& place) {
        return plan.node_of_rank.empty() ? 0 : plan.node_of_rank[static_cast<std::size_t>(plan.mesh.rank(place))];
      };
      if (node(other) != node(at)) return false;
    }
    return true;
  };
  return {.data = along(&plan::Coordinates::data, plan.mesh.data),
          .pipeline = along(&plan::Coordinates::pipeline, plan.mesh.pipeline),
          .tensor = along(&plan::Coordinates::tensor, plan.mesh.tensor)};
}

MemoryPrediction predict_memory(const RunPlan& plan, std::int64_t rank, int threads, std::size_t data_bytes) {
  const plan::Coordinates at = plan.mesh.coordinates(rank);
  const StageId stage(at.pipeline);
  const plan::LocalGraph local = plan::shard(plan.graph, plan.mesh.tensor, at.tensor);
  const ParameterLayout parameters = lay_out_parameters(plan, local, at);
  MemoryPrediction memory;
  memory.weights = parameters.weight_elements * sizeof(float);
  memory.gradients = parameters.gradient_elements * sizeof(float);
  const std::size_t state =
      (parameters.shared ? parameters.state_elements : parameters.weight_elements) * sizeof(float);
  memory.optimizer = state * static_cast<std::size_t>(optim::make_optimizer(plan.config.optimizer)->state_count());
  const StageLayout training_stage = training_layout(plan, local, stage, threads);
  const auto training = lay_out_arena(training_stage, plan.training_slots[stage.index()]);
  const auto forward =
      lay_out_arena(forward_only_layout(plan, local, stage, threads), plan.forward_only_slots[stage.index()]);
  memory.activations =
      std::max(training.bytes, forward.bytes) + std::max(training.message_bytes, forward.message_bytes);
  const ReductionMemory sums = reduction_memory(reduction_sizes(plan, local, stage), static_cast<int>(plan.mesh.tensor),
                                                on_one_node(plan, at).tensor);
  const GradientMemory exchange = gradient_memory(plan, parameters, at);
  memory.communication = sums.own + sums.neighbours + exchange.own + exchange.neighbours;
  memory.elsewhere = sums.neighbours + exchange.neighbours;
  if (parameters.shared && at.data > 0) memory.elsewhere += memory.weights;
  if (on_one_node(plan, at).pipeline) {
    std::size_t received = 0;  // copied out of neighbours' memory
    for (const auto* ports : {&training_stage.inputs, &training_stage.outputs}) {
      for (const Port& port : *ports) received += schedule::kSendSlots * port.bytes;
    }
    memory.communication += received;
    memory.elsewhere += received;
  }
  memory.data = data_bytes;
  memory.fixed = std::size_t{6} << 20;
  return memory;
}

}  // namespace trainer::runtime
