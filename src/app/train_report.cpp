// The partition before a run; the table, the pipeline and summary.json after it.
#include "train_report.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <optional>
#include <set>

#include "app.hpp"
#include "trainer/observe/reporters.hpp"
#include "trainer/observe/summary.hpp"
#include "trainer/plan/cut.hpp"
#include "trainer/runtime/gradient_sync.hpp"
#include "trainer/runtime/parameters.hpp"
#include "trainer/runtime/pass_table.hpp"
#include "trainer/runtime/recompute.hpp"
#include "trainer/runtime/server_plan.hpp"

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
  const runtime::ServerPlan servers = plan.servers() > 0 ? runtime::make_server_plan(plan) : runtime::ServerPlan{};
  for (int s = 0; s < servers.count(); ++s) {
    const std::int64_t rank = plan.mesh.size() + s;
    const runtime::MemoryPrediction memory = runtime::predict_memory(plan, rank, threads, data_bytes);
    rows.push_back({fmt::to_string(rank), "-", "-", "-", runtime::describe_place(plan, rank),
                    human_count(static_cast<double>(servers.range(s).size())), "-", "-",
                    human_bytes(static_cast<double>(memory.total()))});
  }
  return observe::format_table(
      {"rank", "stage", "replica", "tensor", "layers", "parameters", "FLOPs a step", "activations", "peak memory"},
      rows);
}

// A step of the table, as the run's optimizer step lets passes follow each other.
static schedule::Timing timing_of(const runtime::RunPlan& plan, const schedule::Schedule& table,
                                  const std::vector<schedule::StageTimes>& times) {
  return plan.config.training.optimistic_step ? schedule::simulate_without_barrier(table, times)
                                              : schedule::simulate(table, times);
}

// What the backward computes again, and what it costs beside "FLOPs a step".
static std::string recompute_line(const runtime::RunPlan& plan) {
  if (plan.config.training.recompute == config::Recompute::None) return {};
  const double again = runtime::recompute_flops(plan);
  return fmt::format("recompute: {}; {} FLOPs a step more ({:.1f}%)\n", runtime::describe_recompute(plan),
                     human_count(again), 100.0 * again / runtime::step_flops(plan));
}

// The ranks beside the mesh, and what replicas may read.
static std::string servers_line(const runtime::RunPlan& plan) {
  if (plan.servers() == 0) return {};
  const config::Server& server = plan.config.parallel.server;
  std::string how = "bsp, all together each step";
  if (server.backup > 0) how = fmt::format("bsp, each step without its slowest {}", server.backup);
  if (server.consistency == config::Consistency::Ssp) {
    how = fmt::format("ssp, at most {} + 1 updates apart", server.staleness);
  }
  if (server.consistency == config::Consistency::Async) how = "async, each replica at its own pace";
  return fmt::format("servers: {} more rank{}; {}{}\n", plan.servers(), plan.servers() == 1 ? "" : "s", how,
                     server.notify ? "; weights come unasked" : "");
}

std::string summary(const runtime::RunPlan& plan) {
  const config::Config& c = plan.config;
  std::vector<schedule::StageTimes> times;
  for (std::int64_t s = 0; s < plan.stages(); ++s) {
    times.push_back(runtime::stage_flops(plan, StageId(s)));
  }
  const double bubble = timing_of(plan, plan.training, times).bubble();
  return fmt::format(
      "model: {} parameters, {} units, {} FLOPs a step\n"
      "mesh: data {} × pipeline {} × tensor {} = {} rank{}; {} micro-batch{} of {} sample{} a replica\n{}"
      "schedule: {}, predicted bubble {:.1f}%\n{}",
      human_count(static_cast<double>(model::parameter_elements(plan.graph))), plan.graph.units.size(),
      human_count(runtime::step_flops(plan)), plan.mesh.data, plan.mesh.pipeline, plan.mesh.tensor, plan.mesh.size(),
      plan.mesh.size() == 1 ? "" : "s", c.training.micro_batches, c.training.micro_batches == 1 ? "" : "es",
      plan.micro_batch_samples, plan.micro_batch_samples == 1 ? "" : "s", servers_line(plan),
      plan.schedule_origin.empty() ? config::name_of(c.parallel.schedule)
                                   : fmt::format("auto ({})", plan.schedule_origin),
      100.0 * bubble, recompute_line(plan));
}

namespace {

// What the schedule allows with the stages' own times, of the slowest replica; nothing without a pipeline or after a
// single step.
std::optional<schedule::Timing> simulated_pass(const runtime::RunPlan& plan, const runtime::TrainResult& result) {
  if (plan.mesh.pipeline == 1 || result.passes.empty()) return std::nullopt;
  std::optional<schedule::Timing> slowest;
  for (std::int64_t d = 0; d < plan.mesh.data; ++d) {
    const runtime::PassTable own = result.micro_batches.empty()
                                       ? runtime::PassTable{plan.training, {}}
                                       : runtime::pass_table(plan, result.micro_batches[static_cast<std::size_t>(d)]);
    for (std::int64_t t = 0; t < plan.mesh.tensor; ++t) {
      std::vector<schedule::StageTimes> times(static_cast<std::size_t>(plan.stages()));
      for (std::int64_t p = 0; p < plan.mesh.pipeline; ++p) {
        const auto rank = static_cast<std::size_t>(plan.mesh.rank({.data = d, .pipeline = p, .tensor = t}));
        const std::vector<StageId>& stages = plan.stages_of(p);
        for (std::size_t s = 0; s < stages.size(); ++s) times[stages[s].index()] = result.passes[rank].compute[s];
      }
      schedule::Timing timing = timing_of(plan, own.schedule, times);
      if (!slowest || timing.step > slowest->step) slowest = std::move(timing);
    }
  }
  return slowest;
}

double longest_pass(const runtime::TrainResult& result) {
  double whole = 0;
  for (const runtime::RankPass& pass : result.passes) whole = std::max(whole, pass.whole);
  return whole;
}

// The share of the ranks' time in the pass that no action uses.
double measured_bubble(const runtime::TrainResult& result) {
  double busy = 0;
  for (const runtime::RankPass& pass : result.passes) busy += pass.busy;
  const double whole = longest_pass(result) * static_cast<double>(result.passes.size());
  return whole > 0 ? 1.0 - busy / whole : 0.0;
}

double mean_step(const runtime::TrainResult& result) {
  return result.splits.empty() ? 0.0 : result.splits.front().step();
}

// What was said before the run, or follows from the stages' own times, beside what was.
std::vector<observe::RunSummary::Promise> promises(const runtime::TrainResult& result, const Expectation& expected,
                                                   const std::optional<schedule::Timing>& simulated) {
  std::vector<observe::RunSummary::Promise> all;
  if (expected.step_seconds > 0) {
    all.push_back({"step seconds", expected.source, expected.step_seconds, mean_step(result)});
  }
  if (expected.pass_seconds > 0 && !result.passes.empty()) {
    all.push_back({"pass seconds", expected.source, expected.pass_seconds, longest_pass(result)});
    all.push_back({"bubble", expected.source, expected.bubble, measured_bubble(result)});
  }
  if (simulated) {
    constexpr const char* kSource = "simulator, the stages' own times";
    all.push_back({"pass seconds", kSource, simulated->step, longest_pass(result)});
    all.push_back({"bubble", kSource, simulated->bubble(), measured_bubble(result)});
  }
  const runtime::RankMemory* largest = nullptr;
  for (const runtime::RankMemory& memory : result.memory) {
    if (largest == nullptr || memory.measured > largest->measured) largest = &memory;
  }
  if (largest != nullptr) all.push_back({"memory bytes", "plan", largest->predicted, largest->measured});
  return all;
}

std::string promise_table(const std::vector<observe::RunSummary::Promise>& promises) {
  std::vector<std::vector<std::string>> rows;
  for (const observe::RunSummary::Promise& p : promises) {
    const auto show = [&p](double value) {
      if (p.what == "bubble") return fmt::format("{:.1f}%", 100.0 * value);
      return p.what == "memory bytes" ? human_bytes(value) : fmt::format("{:.2f} ms", 1e3 * value);
    };
    std::string error = fmt::format("{:+.1f}%", 100.0 * (p.predicted / p.measured - 1.0));
    if (p.what == "bubble") error = fmt::format("{:+.1f} points", 100.0 * (p.predicted - p.measured));
    const std::string what = p.what == "bubble"         ? "bubble"
                             : p.what == "memory bytes" ? "memory, largest rank"
                                                        : p.what.substr(0, 4);
    rows.push_back({what, show(p.predicted), show(p.measured), p.measured > 0 ? error : "-", p.source});
  }
  return observe::format_table({"", "predicted", "measured", "error", "by"}, rows);
}

// A row a rank: where its step went. Parts that are nothing on every rank have no column.
std::string time_table(const runtime::RunPlan& plan, const runtime::TrainResult& result) {
  std::vector<std::string> header{"rank", "place", "step", "compute"};
  std::vector<std::vector<std::string>> rows;
  for (std::size_t r = 0; r < result.splits.size(); ++r) {
    const TimeSplit& split = result.splits[r];
    rows.push_back({fmt::to_string(r), runtime::describe_place(plan, static_cast<std::int64_t>(r)),
                    fmt::format("{:.2f}", 1e3 * split.step()), fmt::format("{:.2f}", 1e3 * split.compute())});
  }
  for (std::size_t p = 4; p < kTimeParts.size(); ++p) {  // behind those of computing
    const TimePart& part = kTimeParts[p];
    const bool between = p >= kStepParts;
    const auto shows = [&](const TimeSplit& split) { return split.*part.seconds >= (between ? 5e-3 : 5e-6); };
    if (std::none_of(result.splits.begin(), result.splits.end(), shows)) continue;
    header.push_back(std::string(part.name) + (between ? " s" : ""));
    for (std::size_t r = 0; r < rows.size(); ++r) {
      rows[r].push_back(fmt::format("{:.2f}", (between ? 1.0 : 1e3) * result.splits[r].*part.seconds));
    }
  }
  return observe::format_table(header, rows);
}

std::string memory_table(const runtime::RunPlan& plan, const runtime::TrainResult& result) {
  std::vector<std::vector<std::string>> rows;
  for (std::size_t r = 0; r < result.memory.size(); ++r) {
    rows.push_back({fmt::to_string(r), runtime::describe_place(plan, static_cast<std::int64_t>(r)),
                    human_bytes(result.memory[r].predicted), human_bytes(result.memory[r].measured)});
  }
  return observe::format_table({"rank", "place", "memory since start: predicted", "measured"}, rows);
}

// The run's facts for scripts, in summary.json beside the checkpoints and beside metrics.jsonl.
void write_summary(const runtime::RunPlan& plan, const runtime::TrainResult& result,
                   const std::vector<observe::RunSummary::Promise>& promises,
                   const std::optional<schedule::Timing>& simulated) {
  observe::RunSummary facts;
  facts.first_step = result.first_step;
  facts.last_step = result.last_step;
  facts.loss = result.loss;
  facts.validation_loss = result.validation_loss;
  facts.accuracy = result.accuracy;
  facts.seconds = result.seconds;
  facts.exchange_bytes = result.exchange_bytes;
  facts.micro_batches = result.micro_batches;
  facts.exit_code = static_cast<int>(result.code);
  for (std::size_t r = 0; r < result.memory.size(); ++r) {
    const runtime::RankMemory& memory = result.memory[r];
    facts.memory.push_back({static_cast<int>(r), memory.predicted, memory.measured, memory.live_set, memory.process});
  }
  for (std::size_t r = 0; r < result.passes.size(); ++r) {
    const std::vector<schedule::StageTimes>& compute = result.passes[r].compute;
    const std::vector<StageId>& stages = plan.stages_of(plan.mesh.coordinates(static_cast<std::int64_t>(r)).pipeline);
    for (std::size_t s = 0; s < compute.size(); ++s) {
      facts.passes.push_back({static_cast<int>(r), stages[s].value, compute[s].forward, compute[s].backward_input,
                              compute[s].backward_weight, result.passes[r].whole});
    }
  }
  if (simulated) facts.simulated_pass = simulated->step;
  facts.splits = result.splits;
  facts.promises = promises;
  const std::string text = observe::to_json(facts);
  for (const std::string& directory : std::set{plan.config.checkpoint.directory, plan.config.logging.directory}) {
    if (directory.empty()) continue;
    try {
      write_whole(directory + "/summary.json", text);
    } catch (const Error& error) {
      note(fmt::format("warning: {}\n", error.what()));
    }
  }
}

// What replicas have sent each other, beside what they would have sent of float32 gradients.
std::string exchange_line(const runtime::RunPlan& plan, const runtime::TrainResult& result, std::int64_t steps) {
  const double step = result.exchange_bytes / static_cast<double>(steps);
  const double whole = runtime::uncompressed_bytes(plan);
  return fmt::format(
      "gradients sent between replicas: {} a step by all ranks, {:.1f} times less than the {} of float32 "
      "sums\n",
      human_bytes(step), whole / step, human_bytes(whole));
}

}  // namespace

void report(const runtime::RunPlan& plan, const runtime::TrainResult& result, const Expectation& expected) {
  const std::int64_t steps = result.last_step - result.first_step + 1;
  if (steps == 0) {
    print(fmt::format("nothing left to train: {} is at step {} already\n", result.checkpoint, result.last_step));
    return;
  }
  std::string text =
      fmt::format("trained {} steps in {}, loss {:.6g}", steps, observe::human_duration(result.seconds), result.loss);
  if (result.validation_loss) text += fmt::format(", validation loss {:.6g}", *result.validation_loss);
  if (result.accuracy) text += fmt::format(", accuracy {:.2f}%", 100.0 * *result.accuracy);
  const std::optional<schedule::Timing> simulated = simulated_pass(plan, result);
  const std::vector<observe::RunSummary::Promise> held = promises(result, expected, simulated);
  print(fmt::format("{}\n\n{}\nms of a step{}:\n{}\n{}", text, memory_table(plan, result),
                    steps > 1 ? fmt::format(", mean of {} (all but the first)", steps - 1) : "",
                    time_table(plan, result), promise_table(held)));
  if (plan.config.training.optimistic_step) {
    print(fmt::format("optimistic updates: {} of {} steps, {} taken back\n", result.optimistic_updates, steps,
                      result.updates_taken_back));
  }
  if (plan.local_steps()) {
    // The last round of a run may be shorter; that of one that was stopped has not ended.
    const std::int64_t round = plan.config.parallel.local.steps;
    const bool ended = result.code == ExitCode::Done && result.last_step % round != 0;
    const std::int64_t rounds = result.last_step / round + (ended ? 1 : 0) - (result.first_step - 1) / round;
    if (rounds > 0) {
      print(fmt::format("weights sent between replicas: {} a round of {} steps by all ranks\n",
                        human_bytes(result.exchange_bytes / static_cast<double>(rounds)), std::min(round, steps)));
    }
  }
  if (!result.micro_batches.empty()) {
    print(fmt::format("micro-batches of a step by replica: {}; changed {} time{}\n",
                      fmt::join(result.micro_batches, " + "), result.balance_changes,
                      result.balance_changes == 1 ? "" : "s"));
  }
  if (plan.compresses()) print(exchange_line(plan, result, steps));
  if (!result.checkpoint.empty()) print(fmt::format("checkpoint: {}\n", result.checkpoint));
  write_summary(plan, result, held, simulated);
}

}  // namespace trainer::app
