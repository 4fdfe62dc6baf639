// `trainer --config F`: from the file to a trained model.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <optional>

#include "app.hpp"
#include "costs.hpp"
#include "trainer/comm/shared_memory.hpp"
#include "trainer/comm/topology.hpp"
#include "trainer/observe/reporters.hpp"
#include "trainer/observe/summary.hpp"
#include "trainer/ops/matmul.hpp"
#include "trainer/plan/cut.hpp"
#include "trainer/runtime/agreement.hpp"
#include "trainer/runtime/train.hpp"
#include "trainer/runtime/worker.hpp"

namespace trainer::app {

namespace {

using observe::human_bytes;
using observe::human_count;

// The partition as people read it: a row a rank.
std::string partition_table(const runtime::RunPlan& plan, int threads, std::size_t data_bytes) {
  std::vector<std::vector<std::string>> rows;
  for (std::int64_t rank = 0; rank < plan.mesh.size(); ++rank) {
    const plan::Coordinates at = plan.mesh.coordinates(rank);
    const StageId stage(at.pipeline);
    const plan::LocalGraph local = plan::shard(plan.graph, plan.mesh.tensor, at.tensor);
    double flops = 0;
    const Range nodes = plan.nodes(stage);
    for (std::int64_t i = nodes.begin; i < nodes.end; ++i) {
      model::Node node = plan.graph.nodes[static_cast<std::size_t>(i)];
      node.op = local.nodes[static_cast<std::size_t>(i)].op;
      const model::NodeCost cost = model::cost(node, plan.graph);
      flops += cost.forward + cost.backward_input + cost.backward_weight;
    }
    flops *= static_cast<double>(plan.config.training.batch_size / plan.mesh.data);
    const runtime::MemoryPrediction memory = runtime::predict_memory(plan, rank, threads, data_bytes);
    const runtime::ParameterLayout parameters = runtime::lay_out_parameters(plan, local, at);
    double elements = 0;
    for (const runtime::HeldParameter& held : parameters.held) elements += static_cast<double>(held.elements);
    rows.push_back({fmt::to_string(rank), fmt::to_string(at.pipeline), fmt::to_string(at.data),
                    fmt::to_string(at.tensor), plan::describe_stage(plan.graph, nodes), human_count(elements),
                    human_count(flops), human_bytes(static_cast<double>(memory.activations)),
                    human_bytes(static_cast<double>(memory.total()))});
  }
  return observe::format_table(
      {"rank", "stage", "replica", "tensor", "layers", "parameters", "FLOPs a step", "activations", "peak memory"},
      rows);
}

std::string summary(const runtime::RunPlan& plan) {
  const config::Config& c = plan.config;
  std::vector<schedule::StageTimes> times;
  for (std::int64_t s = 0; s < plan.stages(); ++s) {
    times.push_back(plan::flops_of(plan.graph, plan.nodes(StageId(s))));
  }
  const double bubble = schedule::simulate(plan.training, times).bubble();
  return fmt::format(
      "model: {} parameters, {} units, {} FLOPs a step\n"
      "mesh: data {} × pipeline {} × tensor {} = {} ranks; {} micro-batches of {} samples a replica\n"
      "schedule: {}, predicted bubble {:.1f}%\n",
      human_count(static_cast<double>(model::parameter_elements(plan.graph))), plan.graph.units.size(),
      human_count(runtime::step_flops(plan)), plan.mesh.data, plan.mesh.pipeline, plan.mesh.tensor, plan.mesh.size(),
      c.training.micro_batches, plan.micro_batch_samples, config::name_of(c.parallel.schedule), 100.0 * bubble);
}

std::unique_ptr<Observer> make_observers(const config::Config& config, std::int64_t resumed_step) {
  // Progress comes last: the others tell their warnings to it.
  std::vector<std::unique_ptr<Observer>> all;
  const std::int64_t every = config.logging.every_steps;
  auto progress = observe::make_progress(isatty(STDERR_FILENO) != 0, every);
  const std::string& directory =
      config.logging.directory.empty() ? config.checkpoint.directory : config.logging.directory;
  if (!directory.empty()) {
    storage::real_file_system().make_directories(directory);
    all.push_back(observe::make_metrics(directory, every, resumed_step, progress.get()));
    all.push_back(observe::make_tensorboard(directory, every, progress.get()));
  }
  all.push_back(std::move(progress));
  return observe::make_fan_out(std::move(all));
}

// What the schedule allows with the stages' own times; nothing without a pipeline or after a single step.
std::optional<schedule::Timing> simulated_pass(const runtime::RunPlan& plan, const runtime::TrainResult& result) {
  if (plan.stages() == 1 || result.passes.empty()) return std::nullopt;
  std::vector<schedule::StageTimes> times;
  for (std::int64_t s = 0; s < plan.stages(); ++s) {
    const std::int64_t rank = plan.mesh.rank({.data = 0, .pipeline = s, .tensor = 0});
    times.push_back(result.passes[static_cast<std::size_t>(rank)].compute);
  }
  return schedule::simulate(plan.training, times);
}

std::string pipeline_report(const runtime::RunPlan& plan, const runtime::TrainResult& result,
                            const schedule::Timing& simulated) {
  double whole = 0;
  std::string stages;
  for (std::int64_t s = 0; s < plan.stages(); ++s) {
    const std::int64_t rank = plan.mesh.rank({.data = 0, .pipeline = s, .tensor = 0});
    const runtime::RankPass& pass = result.passes[static_cast<std::size_t>(rank)];
    whole = std::max(whole, pass.whole);
    stages += fmt::format("{}{:.1f} + {:.1f}", s == 0 ? "" : ", ", 1e3 * pass.compute.forward,
                          1e3 * (pass.compute.backward_input + pass.compute.backward_weight));
  }
  return fmt::format(
      "pipeline: {:.1f} ms a step, {:.1f} by the simulator from the stages' own times (bubble {:.1f}%); forward + "
      "backward of a micro-batch, stage by stage: {} ms\n",
      1e3 * whole, 1e3 * simulated.step, 100.0 * simulated.bubble(), stages);
}

// The run's facts for scripts, in DIRECTORY/summary.json beside the checkpoints where there are any.
void write_summary(const runtime::RunPlan& plan, const runtime::TrainResult& result,
                   const std::optional<schedule::Timing>& simulated) {
  const std::string& checkpoints = plan.config.checkpoint.directory;
  const std::string& directory = checkpoints.empty() ? plan.config.logging.directory : checkpoints;
  if (directory.empty()) return;
  observe::RunSummary facts;
  facts.first_step = result.first_step;
  facts.last_step = result.last_step;
  facts.loss = result.loss;
  facts.validation_loss = result.validation_loss;
  facts.accuracy = result.accuracy;
  facts.seconds = result.seconds;
  facts.exit_code = static_cast<int>(result.code);
  for (std::size_t r = 0; r < result.memory.size(); ++r) {
    const runtime::RankMemory& memory = result.memory[r];
    facts.memory.push_back({static_cast<int>(r), memory.predicted, memory.measured, memory.live_set, memory.process});
  }
  for (std::size_t r = 0; r < result.passes.size(); ++r) {
    const auto& [compute, whole] = result.passes[r];
    facts.passes.push_back(
        {static_cast<int>(r), compute.forward, compute.backward_input, compute.backward_weight, whole});
  }
  if (simulated) facts.simulated_pass = simulated->step;
  try {
    storage::real_file_system().write_text(directory + "/summary.json", observe::to_json(facts));
  } catch (const Error& error) {
    note(fmt::format("warning: {}\n", error.what()));
  }
}

// The run's facts for people, on stdout, and for scripts.
void report(const runtime::RunPlan& plan, const runtime::TrainResult& result) {
  const auto steps = static_cast<double>(result.last_step - result.first_step + 1);
  if (steps == 0) {
    print(fmt::format("nothing left to train: {} is at step {} already\n", result.checkpoint, result.last_step));
    return;
  }
  std::string text = fmt::format("trained {} steps in {}, loss {:.6g}", result.last_step - result.first_step + 1,
                                 observe::human_duration(result.seconds), result.loss);
  if (result.validation_loss) text += fmt::format(", validation loss {:.6g}", *result.validation_loss);
  if (result.accuracy) text += fmt::format(", accuracy {:.2f}%", 100.0 * *result.accuracy);
  std::vector<std::vector<std::string>> rows;
  for (std::size_t r = 0; r < result.memory.size(); ++r) {
    const auto& waits = result.waits[r];
    const auto per_step = [&](double seconds) { return fmt::format("{:.1f}", 1e3 * seconds / std::max(1.0, steps)); };
    rows.push_back({fmt::to_string(r), plan::to_string(plan.mesh.coordinates(static_cast<std::int64_t>(r))),
                    human_bytes(result.memory[r].predicted), human_bytes(result.memory[r].measured),
                    per_step(waits.receive), per_step(waits.send), per_step(waits.tensor), per_step(waits.gradients)});
  }
  print(fmt::format("{}\n{}", text,
                    observe::format_table({"rank", "place", "memory since start: predicted", "measured",
                                           "wait ms/step: receive", "send", "tensor", "gradients"},
                                          rows)));
  const std::optional<schedule::Timing> simulated = simulated_pass(plan, result);
  if (simulated) print(pipeline_report(plan, result, *simulated));
  if (!result.checkpoint.empty()) print(fmt::format("checkpoint: {}\n", result.checkpoint));
  write_summary(plan, result, simulated);
}

// Ranks to plan for without starting them: --ranks, or what the written mesh multiplies to.
std::int64_t ranks_to_plan(const config::TrainCommand& command, const config::Config& config, int world_size) {
  if (command.ranks > 0) return command.ranks;
  const auto& p = config.parallel;
  const auto axis = [](std::int64_t size) { return size == 0 ? 1 : size; };
  return world_size > 1 ? world_size : axis(p.data) * axis(p.pipeline) * axis(p.tensor);
}

// Refuses a run that the node's memory cannot hold, rather than letting the kernel kill a rank of it later. The data
// set is in memory already.
void require_memory(comm::Communicator& world, const runtime::RunPlan& plan, const comm::NodePlan& node) {
  const auto of = [&](std::int64_t rank) {
    return static_cast<double>(runtime::predict_memory(plan, rank, node.threads, 0).own());
  };
  double facts[1] = {of(world.rank())};
  const auto neighbours = world.split_node();
  neighbours->sum(facts);
  const double available = comm::available_memory();
  // No rank may take its memory before all have looked at what is there.
  runtime::agree(world, [&] {
    if (facts[0] <= available) return;
    const int ranks = neighbours->size();
    throw Error(ExitCode::Usage,
                fmt::format("predicted memory of {} here is {}, but {} are available; more micro-batches, a smaller "
                            "training.batch_size or model, or more pipeline or tensor ranks on other machines would "
                            "need less (--dry-run shows every rank's share)",
                            ranks == 1 ? "the rank" : fmt::format("the {} ranks", ranks), human_bytes(facts[0]),
                            human_bytes(available)));
  });
}

// Peak of all cores that the ranks compute on, from one measured while the others wait.
double total_peak_flops(comm::Communicator& world, const comm::NodePlan& node, ops::MatmulPrecision precision) {
  double facts[2] = {0, 0};
  if (world.rank() == 0) facts[0] = ops::measure_peak_flops(precision);
  facts[1] = static_cast<double>(std::min(node.cores, node.ranks_on_node * node.threads)) / node.ranks_on_node;
  world.sum(facts);
  return facts[0] * facts[1];
}

void require_precision(const config::TrainCommand& command, const config::Config& config) {
  if (config.training.precision == config::Precision::BFloat16 && command.kernels == "onednn") {
    throw Error(ExitCode::Usage, "--kernels onednn multiplies in float32 only, but training.precision is \"bfloat16\"");
  }
  runtime::require_precision(config);
}

std::string precision_note(const config::Config& config) {
  const ops::MatmulPrecision precision = runtime::matmul_precision(config);
  if (precision == ops::MatmulPrecision::Float32) return {};
  return fmt::format("; products in bfloat16: {}", ops::describe_matmul(precision));
}

}  // namespace

ExitCode train(Context& context, const config::TrainCommand& command) {
  comm::Communicator& world = context.world;
  config::Config config = agreed_config(world, command.config_path, command.overrides);
  if (command.print_config) {
    // On one rank sizes that were left out stay open, unless --ranks closes them.
    const std::int64_t ranks = command.ranks > 0 ? command.ranks : world.size();
    if (command.ranks > 0 || ranks > 1) runtime::agree(world, [&] { config::resolve_parallel(config, ranks); });
    if (world.rank() == 0) print(config::to_json(config));
    return ExitCode::Done;
  }
  ops::set_matmul_provider(command.kernels == "onednn" ? ops::MatmulProvider::OneDnn : ops::MatmulProvider::Native);
  const comm::NodePlan node = comm::plan_node(world, command.threads);
  comm::set_wait_policy({.yield = node.oversubscribed, .hang_seconds = config.training.hang_timeout, .progress = {}});

  const std::optional<plan::CostModel> costs = agreed_profile(world, config);
  runtime::RunPlan plan;
  std::unique_ptr<storage::Dataset> data;
  const std::int64_t ranks = command.dry_run ? ranks_to_plan(command, config, world.size()) : world.size();
  runtime::agree(world, [&] {
    require_precision(command, config);
    plan = runtime::make_plan(config, ranks, {costs ? &*costs : nullptr, {}});
    data = storage::load_dataset(plan.config.data, runtime::model_input(plan.graph), plan.config.training.seed);
    runtime::check_samples(plan, *data);
  });
  if (command.dry_run) {
    if (world.rank() == 0)
      print(fmt::format("{}{}", summary(plan), partition_table(plan, node.threads, data->bytes())));
    return ExitCode::Done;
  }

  plan.node_of_rank = comm::node_of_rank(world);
  require_memory(world, plan, node);
  install_signal_handlers();
  runtime::TrainOptions options;
  options.resume = command.resume;
  options.overwrite = command.overwrite;
  options.threads = node.threads;
  options.spin = !node.oversubscribed;
  options.peak_flops = total_peak_flops(world, node, runtime::matmul_precision(plan.config));
  options.base_memory = context.base_memory;
  options.build = version_text();
  options.stop = &stop_requested();
  options.allocations = allocation_count;
  options.observers = [&plan](std::int64_t resumed_step, std::int64_t) {
    return make_observers(plan.config, resumed_step);
  };
  if (costs && world.rank() == 0) {
    const std::string difference = taken_elsewhere(costs->machine, config.parallel.profile);
    if (!difference.empty()) note(fmt::format("warning: {}\n", difference));
  }
  if (world.rank() == 0) {
    note(fmt::format("{}{} thread{} a rank{}\n", summary(plan), node.threads, node.threads == 1 ? "" : "s",
                     precision_note(plan.config)));
  }
  const runtime::TrainResult result = runtime::train(world, plan, *data, storage::real_file_system(), options);
  if (world.rank() == 0) {
    try {
      report(plan, result);
    } catch (const Error& error) {
      if (result.message.empty()) throw;
      note(fmt::format("warning: {}\n", error.what()));
    }
    if (!result.message.empty()) say(result.message);
  }
  return result.code;
}

}  // namespace trainer::app
