// `trainer --config F`: from the file to a trained model.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <optional>

#include "app.hpp"
#include "costs.hpp"
#include "run_record.hpp"
#include "run_training.hpp"
#include "train_report.hpp"
#include "trainer/observe/reporters.hpp"
#include "trainer/ops/matmul.hpp"
#include "trainer/runtime/agreement.hpp"
#include "trainer/runtime/predict.hpp"
#include "trainer/runtime/train.hpp"
#include "trainer/runtime/worker.hpp"

namespace trainer::app {

namespace {

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
  const std::int64_t servers = p.exchange == config::Exchange::Server ? p.server.count : 0;
  return world_size > 1 ? world_size : axis(p.data) * axis(p.pipeline) * axis(p.tensor) + servers;
}

std::string precision_note(const config::Config& config) {
  const ops::MatmulPrecision precision = runtime::matmul_precision(config);
  if (precision == ops::MatmulPrecision::Float32) return {};
  return fmt::format("; products in bfloat16: {}", ops::describe_matmul(precision));
}

Expectation expectation(const PreparedRun& run, double peak_flops) {
  const runtime::Prediction prediction = runtime::predict(run.plan, costs_of(run, peak_flops));
  return {prediction.step_seconds, prediction.pass_seconds, prediction.bubble,
          run.costs ? run.plan.config.parallel.profile : "an estimate (no parallel.profile)"};
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
  const std::int64_t ranks = command.dry_run ? ranks_to_plan(command, config, world.size()) : world.size();
  DataCache cache;
  PreparedRun run = prepare_run(world, {std::move(config), ranks, command.threads, command.kernels}, cache);
  const runtime::RunPlan& plan = run.plan;
  std::optional<runtime::TraceWindow> trace;
  runtime::agree(world, [&] {
    trace =
        trace_window(command, runtime::total_steps(plan.config.training, runtime::training_samples(plan, *run.data)));
    if (trace && !command.dry_run && world.rank() == 0) require_writable(command.trace);
  });
  if (command.dry_run) {
    fit_memory(world, run, ranks);
    if (world.rank() == 0)
      print(fmt::format("{}{}", summary(plan), partition_table(plan, run.node.threads, run.data->bytes())));
    return ExitCode::Done;
  }

  install_signal_handlers();
  runtime::TrainOptions options = start_run(world, run, context.base_memory);
  options.resume = command.resume;
  options.overwrite = command.overwrite;
  options.trace = trace;
  const Expectation expected = expectation(run, options.peak_flops);
  options.observers = [&](std::int64_t resumed_step, std::int64_t total_steps) {
    auto observers = make_observers(plan.config, resumed_step);
    write_run_facts(plan, expected, run.node.threads, run.data->bytes(), resumed_step, total_steps);
    return observers;
  };
  if (run.costs && world.rank() == 0) {
    const std::string& path = plan.config.parallel.profile;
    for (const std::string& difference :
         {taken_elsewhere(run.costs->machine, path), taken_of_another(*run.costs, plan.graph, path)}) {
      if (!difference.empty()) note(fmt::format("warning: {}\n", difference));
    }
  }
  if (world.rank() == 0) {
    const int nodes = 1 + *std::max_element(plan.node_of_rank.begin(), plan.node_of_rank.end());
    note(fmt::format("{}{} thread{} a rank{}{}\n", summary(plan), run.node.threads, run.node.threads == 1 ? "" : "s",
                     nodes > 1 ? fmt::format(" on {} nodes", nodes) : "", precision_note(plan.config)));
  }
  const runtime::TrainResult result = runtime::train(world, plan, *run.data, storage::real_file_system(), options);
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
