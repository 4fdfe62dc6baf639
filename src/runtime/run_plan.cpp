#include "trainer/runtime/run_plan.hpp"

#include <fmt/format.h>

#include <set>

#include "server_memory.hpp"
#include "trainer/comm/communicator.hpp"
#include "trainer/core/error.hpp"
#include "trainer/optim/optimizer.hpp"
#include "trainer/plan/cut.hpp"
#include "trainer/runtime/gradient_sync.hpp"
#include "trainer/runtime/local_rounds.hpp"
#include "trainer/runtime/parameters.hpp"
#include "trainer/runtime/pass_table.hpp"
#include "trainer/runtime/plan_costs.hpp"
#include "trainer/runtime/recompute.hpp"
#include "trainer/runtime/tensor_group.hpp"
#include "trainer/schedule/automatic.hpp"
#include "trainer/schedule/table_file.hpp"

namespace trainer::runtime {

namespace {

schedule::Schedule published(std::string_view name, const schedule::PipelineShape& shape) {
  const schedule::Generator* generator = schedule::find_generator(name);
  if (generator == nullptr) internal_error(fmt::format("no schedule is named {}", name));
  return generator->make(shape);
}

schedule::PipelineShape shape_of(const config::Parallel& parallel, std::int64_t micro_batches) {
  if (parallel.micro_batch_group > 0 && parallel.micro_batch_group < parallel.pipeline) {
    throw Error(ExitCode::Usage,
                fmt::format("parallel.micro_batch_group: is {}, but a group keeps all {} pipeline ranks busy; expected "
                            "at least {}",
                            parallel.micro_batch_group, parallel.pipeline, parallel.pipeline));
  }
  return {parallel.pipeline * parallel.chunks, micro_batches, parallel.split_backward, parallel.chunks,
          parallel.micro_batch_group};
}

// The written table, checked against the mesh and the batch.
schedule::Schedule table_of_file(const config::Parallel& parallel, std::int64_t micro_batches) {
  const std::string& name = parallel.schedule_file;
  const schedule::CsvTable read = schedule::parse_csv_of(name, parallel.schedule_text);
  const schedule::Schedule& table = read.schedule;
  const auto ranks = static_cast<std::int64_t>(table.ranks.size());
  const auto refuse = [&](const std::string& what) { throw Error(ExitCode::Usage, fmt::format("{}: {}", name, what)); };
  if (ranks != parallel.pipeline) {
    refuse(fmt::format("has {} rows, one a rank, but parallel.pipeline is {}; expected as many", ranks,
                       parallel.pipeline));
  }
  if (table.micro_batches != micro_batches) {
    refuse(fmt::format("has {} micro-batches, but training.micro_batches is {}; expected as many", table.micro_batches,
                       micro_batches));
  }
  schedule::require_valid(table, &read, name);
  for (std::size_t r = 0; r < table.ranks.size(); ++r) {
    if (table.ranks[r].empty()) refuse(fmt::format("row {} is empty; every rank holds a stage", r + 1));
  }
  return table;
}

// Compute actions of the table by which the stages are cut: a long steady state says nothing about where to cut that a
// shorter one does not.
schedule::Schedule table_to_cut_for(const config::Parallel& parallel, std::int64_t micro_batches) {
  if (parallel.schedule == config::ScheduleName::File) return table_of_file(parallel, micro_batches);
  constexpr std::int64_t kMostForwards = 4096;  // of all stages
  schedule::PipelineShape shape = shape_of(parallel, micro_batches);
  const std::int64_t enough = std::max(4 * shape.stages, kMostForwards / shape.stages);
  shape.micro_batches = std::min(micro_batches, enough);
  if (parallel.schedule != config::ScheduleName::Automatic) return published(name_of(parallel.schedule), shape);
  shape.split_backward = true;
  return published(parallel.chunks == 1 ? "zb-h1" : "interleaved", shape);
}

// Within about a second. Times are the profile's where the configuration names one, else FLOPs.
schedule::Schedule made_for(RunPlan& plan, const config::Parallel& parallel, std::int64_t micro_batches,
                            const PlanCosts& costs, const std::vector<std::int32_t>& rank_of_stage) {
  constexpr std::int64_t kWork = 4'000'000;
  std::vector<schedule::StageTimes> times;
  schedule::AutomaticOptions options;
  if (costs.model != nullptr && !parallel.profile.empty()) {
    const plan::StageCosts stages = stage_costs(plan, costs, rank_of_stage);
    for (const plan::PassSeconds& s : stages.stages(plan.stage_nodes)) {
      times.push_back({s.forward, s.backward_input, s.backward_weight});
    }
    options.transfer = stages.transfer;
  } else {
    for (std::int64_t s = 0; s < plan.stages(); ++s) times.push_back(stage_flops(plan, StageId(s)));
  }
  options.ranks = parallel.pipeline;
  options.micro_batches = micro_batches;
  options.most_held = parallel.most_held;
  options.tries = std::min(options.tries, kWork / (plan.stages() * micro_batches * options.ranks));
  schedule::Automatic made = schedule::automatic(times, options);
  constexpr double kRounding = 1e-9;
  plan.schedule_origin =
      made.gap() < kRounding
          ? fmt::format("{}, none is faster by these times", made.origin)
          : fmt::format("{}, at most {:.1f}% slower than the fastest by these times", made.origin, 100 * made.gap());
  return std::move(made.schedule);
}

schedule::Schedule compute_schedule(RunPlan& plan, const config::Parallel& parallel, std::int64_t micro_batches,
                                    const PlanCosts& costs, const std::vector<std::int32_t>& rank_of_stage) {
  switch (parallel.schedule) {
    case config::ScheduleName::File:
      return table_of_file(parallel, micro_batches);
    case config::ScheduleName::Automatic:
      return made_for(plan, parallel, micro_batches, costs, rank_of_stage);
    default:
      return published(name_of(parallel.schedule), shape_of(parallel, micro_batches));
  }
}

void require_held(const schedule::Schedule& schedule, const config::Parallel& parallel) {
  if (parallel.most_held == 0) return;
  if (const auto over = schedule::over_cap(schedule, parallel.most_held)) {
    throw Error(ExitCode::Usage,
                fmt::format("parallel.most_held: the schedule \"{}\" does not keep to it; \"auto\", \"1f1b\" or fewer "
                            "micro-batches may: {}",
                            config::name_of(parallel.schedule), over->message));
  }
}

std::vector<std::vector<StageId>> stages_by_rank(const schedule::Schedule& schedule) {
  std::vector<std::vector<StageId>> stages(schedule.ranks.size());
  for (std::size_t s = 0; s < schedule.rank_of_stage.size(); ++s) {
    stages[static_cast<std::size_t>(schedule.rank_of_stage[s])].push_back(StageId(static_cast<std::int64_t>(s)));
  }
  return stages;
}

void require_valid(const schedule::Schedule& schedule) {
  if (const auto violation = schedule::verify(schedule))
    internal_error("the schedule cannot run: " + violation->message);
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
          .split_backward = splits_backward(plan.training, stage),
          .precision = matmul_precision(plan.config),
          .with_loss = true,
          .recompute = plan.recompute};
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
  const std::int64_t micro_batches = config.training.micro_batches;
  plan.micro_batch_samples = config.training.batch_size / (parallel.data * micro_batches);
  plan.node_of_rank = costs.machines.node_of_rank;
  plan.config = config;
  plan.recompute = written_segments(plan.graph, config.training);
  const Range all{0, static_cast<std::int64_t>(plan.graph.nodes.size())};
  const schedule::Schedule table = schedule::lowered(table_to_cut_for(parallel, micro_batches));
  plan.stage_nodes =
      parallel.partition == config::PartitionRule::Profile
          ? plan::cut_by_costs(plan.graph, table, stage_costs(plan, costs, table.rank_of_stage), costs.share_of_search)
          : plan::cut_stages(plan.graph, parallel, table, recomputed_nodes(plan.graph, all, plan.recompute),
                             costs.share_of_search);
  plan.parameter_uses = uses_by_parameter(plan);
  const schedule::Schedule compute = compute_schedule(plan, parallel, micro_batches, costs, table.rank_of_stage);
  require_held(compute, parallel);
  plan.training = schedule::add_reductions(schedule::lowered(compute));
  plan.forward_only = schedule::forwards_of(plan.training);
  plan.stages_of_rank = stages_by_rank(plan.training);
  require_valid(plan.training);
  require_valid(plan.forward_only);
  plan.training_slots = schedule::assign_slots(plan.training);
  plan.forward_only_slots = schedule::assign_slots(plan.forward_only);
  plan.booked_slots = plan.balances() ? slots_of_any_share(plan) : plan.training_slots;
  // What the layout refuses, it refuses before anything has started.
  for (std::int64_t t = 0; t < parallel.tensor; ++t) plan::shard(plan.graph, parallel.tensor, t);
  return plan;
}

bool splits_backward(const schedule::Schedule& schedule, StageId stage) {
  const auto rank = static_cast<std::size_t>(schedule.rank_of_stage[stage.index()]);
  for (const schedule::Action& action : schedule.ranks[rank]) {
    if (action.stage == stage && action.kind == schedule::ActionKind::BackwardWeight) return true;
  }
  return false;
}

bool RunPlan::shares_weights() const {
  const config::Parallel& p = config.parallel;
  return p.exchange == config::Exchange::AllReduce && !compresses() && !p.delayed_gradients &&
         p.all_reduce.algorithm == config::AllReduceAlgorithm::Automatic &&
         p.all_reduce.wire == config::Precision::Float32;
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

RankLayouts rank_layouts(const RunPlan& plan, const plan::LocalGraph& local, std::int64_t pipeline_rank, int threads,
                         bool training) {
  RankLayouts rank;
  std::vector<const schedule::StageSlots*> slots;
  for (const StageId stage : plan.stages_of(pipeline_rank)) {
    rank.stages.push_back(training ? training_layout(plan, local, stage, threads)
                                   : forward_only_layout(plan, local, stage, threads));
    slots.push_back(&(training ? plan.booked_slots : plan.forward_only_slots)[stage.index()]);
  }
  rank.arena = lay_out_arenas(rank.stages, slots);
  return rank;
}

double step_flops(const RunPlan& plan) {
  double sample = 0;
  for (const model::Node& node : plan.graph.nodes) {
    const model::NodeCost cost = model::cost(node, plan.graph);
    sample += cost.forward + cost.backward_input + cost.backward_weight;
  }
  return sample * static_cast<double>(plan.config.training.batch_size);
}

std::vector<std::int64_t> reduction_sizes(const RunPlan& plan, const plan::LocalGraph& local,
                                          std::int64_t pipeline_rank) {
  std::set<std::int64_t> sizes;
  const auto add = [&](ValueId v) {
    sizes.insert(plan.micro_batch_samples * plan.graph.values[v.index()].positions * local.values[v.index()].features);
  };
  for (const StageId stage : plan.stages_of(pipeline_rank)) {
    for (std::int64_t i = plan.nodes(stage).begin; i < plan.nodes(stage).end; ++i) {
      const model::Node& node = plan.graph.nodes[static_cast<std::size_t>(i)];
      if (local.nodes[static_cast<std::size_t>(i)].reduce_output) add(node.output);
      if (local.nodes[static_cast<std::size_t>(i)].reduce_input_gradient) add(node.inputs[0]);
    }
  }
  return {sizes.begin(), sizes.end()};
}

std::string describe_place(const RunPlan& plan, std::int64_t rank) {
  if (rank >= plan.mesh.size()) return fmt::format("server {}", rank - plan.mesh.size());
  const plan::Coordinates at = plan.mesh.coordinates(rank);
  const std::vector<StageId>& stages = plan.stages_of(at.pipeline);
  if (stages.size() == 1) return plan::to_string(at);
  std::string all;
  for (const StageId stage : stages) all += fmt::format("{}{}", all.empty() ? "" : "+", stage.value);
  return fmt::format("stages {}, replica {}, tensor {}", all, at.data, at.tensor);
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
  if (rank >= plan.mesh.size()) {
    return predict_server_memory(plan, static_cast<int>(rank - plan.mesh.size()), data_bytes);
  }
  const plan::Coordinates at = plan.mesh.coordinates(rank);
  const plan::LocalGraph local = plan::shard(plan.graph, plan.mesh.tensor, at.tensor);
  const ParameterLayout parameters = lay_out_parameters(plan, local, at);
  MemoryPrediction memory;
  memory.weights = parameters.weight_elements * sizeof(float);
  memory.gradients = (parameters.delayed ? 2 : 1) * parameters.gradient_elements * sizeof(float);
  const std::size_t state =
      (parameters.shared ? parameters.state_elements : parameters.weight_elements) * sizeof(float);
  const bool served = plan.servers() > 0;  // servers hold the optimizer's state
  const auto states =
      served ? 0 : static_cast<std::size_t>(optim::make_optimizer(plan.config.optimizer)->state_count());
  memory.optimizer = state * states;
  const RoundsMemory rounds = rounds_memory(plan, parameters);
  memory.optimizer += rounds.models;
  if (parameters.can_take_back) memory.before = (1 + states) * updated_elements(parameters) * sizeof(float);
  const RankLayouts training_stages = rank_layouts(plan, local, at.pipeline, threads, /*training=*/true);
  const RankArena& training = training_stages.arena;
  const RankArena forward = rank_layouts(plan, local, at.pipeline, threads, /*training=*/false).arena;
  memory.activations =
      std::max(training.bytes, forward.bytes) + std::max(training.message_bytes, forward.message_bytes);
  const ReductionMemory sums = reduction_memory(reduction_sizes(plan, local, at.pipeline),
                                                static_cast<int>(plan.mesh.tensor), on_one_node(plan, at).tensor);
  const GradientMemory exchange = gradient_memory(plan, parameters, at);
  memory.communication = sums.own + sums.neighbours + exchange.own + exchange.neighbours + rounds.messages;
  if (served) memory.communication += client_memory(plan, at);
  memory.elsewhere = sums.neighbours + exchange.neighbours;
  if (parameters.shared && at.data > 0) memory.elsewhere += memory.weights;
  if (on_one_node(plan, at).pipeline) {
    std::size_t received = 0;  // copied out of neighbours' memory
    for (std::size_t s = 0; s < training_stages.stages.size(); ++s) {
      const std::int64_t stage = plan.stages_of(at.pipeline)[s].value;
      const auto elsewhere = [&](std::int64_t other) {
        return other >= 0 && other < plan.stages() && plan.rank_of(StageId(other)) != at.pipeline;
      };
      const auto count = [&](const std::vector<Port>& ports) {
        for (const Port& port : ports) received += kSendRing * port.bytes;
      };
      if (elsewhere(stage - 1)) count(training_stages.stages[s].inputs);
      if (elsewhere(stage + 1)) count(training_stages.stages[s].outputs);
    }
    memory.communication += received;
    memory.elsewhere += received;
  }
  memory.data = data_bytes;
  memory.fixed = std::size_t{6} << 20;
  return memory;
}

}  // namespace trainer::runtime
