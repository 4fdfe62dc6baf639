// `trainer --config F`: from the file to a trained model.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <optional>

#include "app.hpp"
#include "run_record.hpp"
#include "train_report.hpp"
#include "trainer/comm/shared_memory.hpp"
#include "trainer/comm/topology.hpp"
#include "trainer/observe/reporters.hpp"
#include "trainer/ops/matmul.hpp"
#include "trainer/runtime/agreement.hpp"
#include "trainer/runtime/compression_plan.hpp"
#include "trainer/runtime/recompute.hpp"
#include "trainer/runtime/train.hpp"
#include "trainer/runtime/worker.hpp"

namespace trainer::app {

namespace {

using observe::human_bytes;

std::unique_ptr<Observer> make_observers(const config::Config& config, std::int64_t resumed_step) {
  // Progress comes last: the others tell their warnings to it.
  std::vector<std::unique_ptr<Observer>> all;
  const std::int64_t every = config.logging.every_steps;
  auto progress = observe::make_progress(isatty(STDERR_FILENO) != 0, every);
  const std::string& directory = record_directory(config);
  if (!directory.empty()) {
    storage::real_file_system().make_directories(directory);
    all.push_back(observe::make_metrics(directory, every, resumed_step, progress.get()));
    all.push_back(observe::make_tensorboard(directory, every, progress.get()));
  }
  all.push_back(std::move(progress));
  return observe::make_fan_out(std::move(all));
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

// What training.recompute = "auto" may fill: the stated memory, else an equal share of what the node has left, the
// least of all nodes.
runtime::MemoryLimit memory_limit(comm::Communicator& world, const config::Config& config, std::int64_t ranks_here) {
  if (config.parallel.memory_per_rank > 0) {
    return {.bytes = static_cast<std::size_t>(config.parallel.memory_per_rank), .own = false};
  }
  double share[1] = {-comm::available_memory() / static_cast<double>(ranks_here)};
  world.max(share);
  return {.bytes = static_cast<std::size_t>(-share[0]), .own = true};
}

// Decides "auto" and holds the plan to parallel.memory_per_rank.
void fit_memory(comm::Communicator& world, runtime::RunPlan& plan, const comm::NodePlan& node, std::int64_t ranks_here,
                std::size_t data_bytes) {
  const runtime::MemoryLimit limit = memory_limit(world, plan.config, ranks_here);
  runtime::agree(world, [&] {
    // Of what the node has left, the data set is gone already.
    runtime::fit_recompute(plan, node.threads, limit.own ? 0 : data_bytes, limit);
    runtime::require_memory_per_rank(plan, node.threads, data_bytes);
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

config::Config agreed_config(comm::Communicator& world, const config::TrainCommand& command) {
  std::string text;
  runtime::agree(world, [&] {
    // One rank reads the file, so that all ranks see one text.
    if (world.rank() == 0) text = read_config(command.config_path);
  });
  text = world.gather_strings(text).front();
  config::Config config;
  runtime::agree(world, [&] { config = config::parse(text, command.config_path, command.overrides); });
  if (config.parallel.schedule == config::ScheduleName::File) {
    std::string table;
    runtime::agree(world, [&] {
      if (world.rank() == 0) table = read_schedule_file(config.parallel.schedule_file);
    });
    config.parallel.schedule_text = world.gather_strings(table).front();
  }
  return config;
}

}  // namespace

ExitCode train(Context& context, const config::TrainCommand& command) {
  comm::Communicator& world = context.world;
  config::Config config = agreed_config(world, command);
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

  runtime::RunPlan plan;
  std::unique_ptr<storage::Dataset> data;
  std::optional<runtime::TraceWindow> trace;
  const std::int64_t ranks = command.dry_run ? ranks_to_plan(command, config, world.size()) : world.size();
  runtime::agree(world, [&] {
    require_precision(command, config);
    plan = runtime::make_plan(config, ranks);
    runtime::require_compression(plan);
    data = storage::load_dataset(plan.config.data, runtime::model_input(plan.graph), plan.config.training.seed);
    runtime::check_samples(plan, *data);
    trace = trace_window(command, runtime::total_steps(plan.config.training, runtime::training_samples(plan, *data)));
    if (trace && !command.dry_run && world.rank() == 0) try_trace(command.trace);
  });
  if (command.dry_run) {
    fit_memory(world, plan, node, ranks, data->bytes());
    if (world.rank() == 0)
      print(fmt::format("{}{}", summary(plan), partition_table(plan, node.threads, data->bytes())));
    return ExitCode::Done;
  }

  plan.node_of_rank = comm::node_of_rank(world);
  fit_memory(world, plan, node, node.ranks_on_node, data->bytes());
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
  options.trace = trace;
  const Expectation expected;  // a cost model's, once there is one
  options.observers = [&](std::int64_t resumed_step, std::int64_t total_steps) {
    auto observers = make_observers(plan.config, resumed_step);
    write_run_facts(plan, expected, node.threads, data->bytes(), resumed_step, total_steps);
    return observers;
  };
  if (world.rank() == 0) {
    note(fmt::format("{}{} thread{} a rank{}\n", summary(plan), node.threads, node.threads == 1 ? "" : "s",
                     precision_note(plan.config)));
  }
  const runtime::TrainResult result = runtime::train(world, plan, *data, storage::real_file_system(), options);
  if (world.rank() == 0) {
    try {
      write_actions(plan, result.timeline);
      if (trace) write_trace(command.trace, result.timeline);
      report(plan, result, expected);
    } catch (const Error& error) {
      if (result.message.empty()) throw;
      note(fmt::format("warning: {}\n", error.what()));
    }
    if (!result.message.empty()) say(result.message);
  }
  return result.code;
}

}  // namespace trainer::app
