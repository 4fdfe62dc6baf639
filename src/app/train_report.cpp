// The partition before a run; the table, the pipeline and summary.json after it.
#include "train_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "app.hpp"
#include "trainer/observe/reporters.hpp"
#include "trainer/observe/summary.hpp"
#include "trainer/plan/cut.hpp"
#include "trainer/runtime/parameters.hpp"
#include "trainer/runtime/recompute.hpp"

namespace trainer::app {

using observe::human_bytes;
using observe::human_count;

std::string partition_table(const runtime::RunPlan& plan, int threads, std::size_t data_bytes) {
  std::vector<std::vector<std::string>> rows;
  for (std::int64_t rank = 0; rank < plan.mesh.size(); ++rank) {
    const plan::Coordinates at = plan.mesh.coordinates(rank);
    const plan::LocalGraph local = plan::shard(plan.graph, plan.mesh.tensor, at.tensor);
    double flops = 0;
    std::string stages;
    std::string layers;
    for (const StageId stage : plan.stages_of(at.pipeline)) {
      const Range nodes = plan.nodes(stage);
      for (std::int64_t i = nodes.begin; i < nodes.end; ++i) {
        model::Node node = plan.graph.nodes[static_cast<std::size_t>(i)];
        node.op = local.nodes[static_cast<std::size_t>(i)].op;
        const model::NodeCost cost = model::cost(node, plan.graph);
        flops += cost.forward + cost.backward_input + cost.backward_weight;
      }
      stages += fmt::format("{}{}", stages.empty() ? "" : "+", stage.value);
      layers += (layers.empty() ? "" : " + ") + plan::describe_stage(plan.graph, nodes);
    }
    flops *= static_cast<double>(plan.config.training.batch_size / plan.mesh.data);
    const runtime::MemoryPrediction memory = runtime::predict_memory(plan, rank, threads, data_bytes);
    const runtime::ParameterLayout parameters = runtime::lay_out_parameters(plan, local, at);
    double elements = 0;
    for (const runtime::HeldParameter& held : parameters.held) elements += static_cast<double>(held.elements);
    rows.push_back({fmt::to_string(rank), stages, fmt::to_string(at.data), fmt::to_string(at.tensor), layers,
                    human_count(elements), human_count(flops), human_bytes(static_cast<double>(memory.activations)),
                    human_bytes(static_cast<double>(memory.total()))});
  }
  return observe::format_table(
      {"rank", "stage", "replica", "tensor", "layers", "parameters", "FLOPs a step", "activations", "peak memory"},
      rows);
}

// What the backward computes again, and what it costs beside "FLOPs a step".
static std::string recompute_line(const runtime::RunPlan& plan) {
  if (plan.config.training.recompute == config::Recompute::None) return {};
  const double again = runtime::recompute_flops(plan);
  return fmt::format("recompute: {}; {} FLOPs a step more ({:.1f}%)\n", runtime::describe_recompute(plan),
                     human_count(again), 100.0 * again / runtime::step_flops(plan));
}

std::string summary(const runtime::RunPlan& plan) {
  const config::Config& c = plan.config;
  std::vector<schedule::StageTimes> times;
  for (std::int64_t s = 0; s < plan.stages(); ++s) {
    times.push_back(runtime::stage_flops(plan, StageId(s)));
  }
  const double bubble = schedule::simulate(plan.training, times).bubble();
  return fmt::format(
      "model: {} parameters, {} units, {} FLOPs a step\n"
      "mesh: data {} × pipeline {} × tensor {} = {} ranks; {} micro-batches of {} samples a replica\n"
      "schedule: {}, predicted bubble {:.1f}%\n{}",
      human_count(static_cast<double>(model::parameter_elements(plan.graph))), plan.graph.units.size(),
      human_count(runtime::step_flops(plan)), plan.mesh.data, plan.mesh.pipeline, plan.mesh.tensor, plan.mesh.size(),
      c.training.micro_batches, plan.micro_batch_samples,
      plan.schedule_origin.empty() ? config::name_of(c.parallel.schedule)
                                   : fmt::format("auto ({})", plan.schedule_origin),
      100.0 * bubble, recompute_line(plan));
}

namespace {

// [stage] of the first replica.
std::vector<schedule::StageTimes> stage_times(const runtime::RunPlan& plan, const runtime::TrainResult& result) {
  std::vector<schedule::StageTimes> times(static_cast<std::size_t>(plan.stages()));
  for (std::int64_t p = 0; p < plan.mesh.pipeline; ++p) {
    const std::int64_t rank = plan.mesh.rank({.data = 0, .pipeline = p, .tensor = 0});
    const std::vector<StageId>& stages = plan.stages_of(p);
    for (std::size_t s = 0; s < stages.size(); ++s) {
      times[stages[s].index()] = result.passes[static_cast<std::size_t>(rank)].compute[s];
    }
  }
  return times;
}

// What the schedule allows with the stages' own times; nothing without a pipeline or after a single step.
std::optional<schedule::Timing> simulated_pass(const runtime::RunPlan& plan, const runtime::TrainResult& result) {
  if (plan.stages() == 1 || result.passes.empty()) return std::nullopt;
  return schedule::simulate(plan.training, stage_times(plan, result));
}

std::string pipeline_report(const runtime::RunPlan& plan, const runtime::TrainResult& result,
                            const schedule::Timing& simulated) {
  double whole = 0;
  for (std::int64_t p = 0; p < plan.mesh.pipeline; ++p) {
    const std::int64_t rank = plan.mesh.rank({.data = 0, .pipeline = p, .tensor = 0});
    whole = std::max(whole, result.passes[static_cast<std::size_t>(rank)].whole);
  }
  std::string stages;
  for (const schedule::StageTimes& times : stage_times(plan, result)) {
    stages += fmt::format("{}{:.1f} + {:.1f}", stages.empty() ? "" : ", ", 1e3 * times.forward,
                          1e3 * (times.backward_input + times.backward_weight));
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
    const std::vector<StageId>& stages = plan.stages_of(plan.mesh.coordinates(static_cast<std::int64_t>(r)).pipeline);
    for (std::size_t s = 0; s < compute.size(); ++s) {
      facts.passes.push_back({static_cast<int>(r), stages[s].value, compute[s].forward, compute[s].backward_input,
                              compute[s].backward_weight, whole});
    }
  }
  if (simulated) facts.simulated_pass = simulated->step;
  try {
    storage::real_file_system().write_text(directory + "/summary.json", observe::to_json(facts));
  } catch (const Error& error) {
    note(fmt::format("warning: {}\n", error.what()));
  }
}

}  // namespace

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
    rows.push_back({fmt::to_string(r), runtime::describe_place(plan, static_cast<std::int64_t>(r)),
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

}  // namespace trainer::app
