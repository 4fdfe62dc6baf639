#include "trainer/runtime/run_plan.hpp"

#include <fmt/format.h>

#include <set>

#include "trainer/comm/communicator.hpp"
#include "trainer/core/error.hpp"
#include "trainer/optim/optimizer.hpp"
#include "trainer/plan/cut.hpp"
#include "trainer/runtime/gradient_sync.hpp"
#include "trainer/runtime/parameters.hpp"
#include "trainer/runtime/tensor_group.hpp"

namespace trainer::runtime {

namespace {

schedule::Schedule compute_schedule(const config::Parallel& parallel, const schedule::PipelineShape& shape) {
  switch (parallel.schedule) {
    case config::ScheduleName::GPipe:
      return schedule::gpipe(shape);
    case config::ScheduleName::OneFOneB:
      return schedule::one_f_one_b(shape);
  }
  internal_error("an unknown schedule");
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

RunPlan make_plan(config::Config config, std::int64_t ranks) {
  config::resolve_parallel(config, ranks);
  RunPlan plan;
  plan.graph = model::build(config);
  require_countable(plan.graph, config);
  const config::Parallel& parallel = config.parallel;
  plan.mesh = {parallel.data, parallel.pipeline, parallel.tensor};
  plan.stage_units = plan::cut_stages(plan.graph, parallel, parallel.pipeline);
  for (const Range units : plan.stage_units) plan.stage_nodes.push_back(plan::nodes_of(plan.graph, units));
  plan.parameter_uses = uses_by_parameter(plan);
  const schedule::PipelineShape shape{parallel.pipeline, config.training.micro_batches, parallel.split_backward};
  plan.training = schedule::add_reductions(schedule::add_communication(compute_schedule(parallel, shape)));
  plan.forward_only = schedule::add_communication(schedule::forward_only(shape));
  require_valid(plan.training);
  require_valid(plan.forward_only);
  plan.training_slots = schedule::assign_slots(plan.training);
  plan.forward_only_slots = schedule::assign_slots(plan.forward_only);
  plan.micro_batch_samples = config.training.batch_size / (parallel.data * config.training.micro_batches);
  // What the layout refuses, it refuses before anything has started.
  for (std::int64_t t = 0; t < parallel.tensor; ++t) plan::shard(plan.graph, parallel.tensor, t);
  plan.config = std::move(config);
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

namespace {

// Staging of the reductions that a StageRunner of this layout books.
std::size_t reduction_bytes(const RunPlan& plan, const plan::LocalGraph& local, Range nodes) {
  std::set<std::int64_t> sizes;
  const auto add = [&](ValueId v) {
    sizes.insert(plan.micro_batch_samples * plan.graph.values[v.index()].positions * local.values[v.index()].features);
  };
  for (std::int64_t i = nodes.begin; i < nodes.end; ++i) {
    const model::Node& node = plan.graph.nodes[static_cast<std::size_t>(i)];
    if (local.nodes[static_cast<std::size_t>(i)].reduce_output) add(node.output);
    if (local.nodes[static_cast<std::size_t>(i)].reduce_input_gradient) add(node.inputs[0]);
  }
  std::size_t bytes = 0;
  for (const std::int64_t size : sizes) bytes += TensorGroup::booked_bytes(size, static_cast<int>(plan.mesh.tensor));
  return bytes;
}

}  // namespace

MemoryPrediction predict_memory(const RunPlan& plan, std::int64_t rank, int threads, std::size_t data_bytes) {
  const plan::Coordinates at = plan.mesh.coordinates(rank);
  const StageId stage(at.pipeline);
  const plan::LocalGraph local = plan::shard(plan.graph, plan.mesh.tensor, at.tensor);
  const ParameterLayout parameters = lay_out_parameters(plan, local, at);
  MemoryPrediction memory;
  memory.weights = parameters.weight_elements * sizeof(float);
  memory.gradients = parameters.gradient_elements * sizeof(float);
  memory.optimizer =
      memory.weights * static_cast<std::size_t>(optim::make_optimizer(plan.config.optimizer)->state_count());
  const auto training = lay_out_arena(training_layout(plan, local, stage, threads), plan.training_slots[stage.index()]);
  const auto forward =
      lay_out_arena(forward_only_layout(plan, local, stage, threads), plan.forward_only_slots[stage.index()]);
  memory.activations = std::max(training.bytes, forward.bytes);
  memory.communication =
      reduction_bytes(plan, local, plan.nodes(stage)) + GradientSync::extra_bytes(plan, parameters, at);
  memory.data = data_bytes;
  memory.fixed = std::size_t{6} << 20;
  return memory;
}

}  // namespace trainer::runtime
