// `trainer eval`: the held-out loss of a checkpoint, or its logits for given tokens.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <vector>

#include "app.hpp"
#include "trainer/comm/topology.hpp"
#include "trainer/observe/reporters.hpp"
#include "trainer/observe/summary.hpp"
#include "trainer/runtime/agreement.hpp"
#include "trainer/runtime/inference.hpp"
#include "trainer/runtime/worker.hpp"
#include "trainer/storage/dataset.hpp"
#include "trainer/storage/export.hpp"

namespace trainer::app {

namespace {

// The checkpoint's configuration for these ranks: replicas share the held-out samples; micro-batches as large as in
// training.
config::Config evaluation_config(const storage::CheckpointReader& checkpoint, const config::EvalCommand& command,
                                 std::int64_t ranks) {
  config::Config config = config::parse(checkpoint.record().config, checkpoint.path(), command.overrides);
  const config::Config saved = config::parse(checkpoint.record().config, checkpoint.path());
  if (config::model_json(config) != config::model_json(saved)) {
    throw Error(ExitCode::Usage, fmt::format("--set: the model of {} is {}; it cannot be changed to {}",
                                             checkpoint.path(), config::model_json(saved), config::model_json(config)));
  }
  const auto& trained = config.parallel;
  const std::int64_t pieces = std::max<std::int64_t>(1, trained.data) * config.training.micro_batches;
  const std::int64_t samples = std::max<std::int64_t>(1, config.training.batch_size / pieces);
  config.parallel = config::Parallel{};
  config.parallel.data = ranks;
  config.parallel.pipeline = config.parallel.tensor = 1;
  config.training.micro_batches = 1;
  config.training.micro_batch_size = 0;
  config.training.batch_size = samples * ranks;
  return config;
}

void write_logits(const storage::CheckpointReader& checkpoint, const config::EvalCommand& command, int threads) {
  const config::Config config = config::parse(checkpoint.record().config, checkpoint.path(), command.overrides);
  comm::run_in_process(1, [&](comm::Communicator& alone) {
    ThreadPool pool(threads);
    runtime::InferenceModel model(alone, config, checkpoint, pool);
    for (const std::int64_t token : command.tokens) {
      if (token >= 0 && token < model.vocabulary()) continue;
      throw Error(ExitCode::Usage,
                  fmt::format("--tokens: {} is not a token; the model knows 0 to {}", token, model.vocabulary() - 1));
    }
    if (static_cast<std::int64_t>(command.tokens.size()) > model.positions()) {
      throw Error(ExitCode::Usage, fmt::format("--tokens: {} of them, but the model sees at most {}",
                                               command.tokens.size(), model.positions()));
    }
    const std::vector<std::int32_t> tokens(command.tokens.begin(), command.tokens.end());
    const ConstMatrix logits = model.logits(tokens);
    const Shape shape{logits.rows, logits.features};
    storage::write_safetensors(storage::real_file_system(), command.logits,
                               {{"logits", DType::F32, shape, whole(shape), logits.data}});
  });
  print(fmt::format("{}\n", command.logits));
}

}  // namespace

ExitCode evaluate(Context& context, const config::EvalCommand& command) {
  comm::Communicator& world = context.world;
  const comm::NodePlan node = comm::plan_node(world, command.threads);
  comm::set_wait_policy({.yield = node.oversubscribed, .hang_seconds = 300, .progress = {}});
  std::string path;
  runtime::agree(world, [&] {
    if (world.rank() == 0) path = open_checkpoint(command.checkpoint)->path();
  });
  path = world.gather_strings(path).front();
  std::unique_ptr<storage::CheckpointReader> checkpoint;
  runtime::agree(world, [&] { checkpoint = storage::open_checkpoint(storage::real_file_system(), path); });
  if (!command.tokens.empty()) {
    runtime::agree(world, [&] {
      if (world.rank() == 0) write_logits(*checkpoint, command, node.threads);
    });
    return ExitCode::Done;
  }
  runtime::RunPlan plan;
  std::unique_ptr<storage::Dataset> data;
  runtime::agree(world, [&] {
    plan = runtime::make_plan(evaluation_config(*checkpoint, command, world.size()), world.size());
    data = storage::load_dataset(plan.config.data, runtime::model_input(plan.graph), plan.config.training.seed);
    if (storage::split(data->size(), plan.config.data.validation_fraction).held_out == 0) {
      throw Error(ExitCode::Usage,
                  "data.validation_fraction: is 0, so nothing is held out to evaluate on; for example "
                  "--set data.validation_fraction=0.05");
    }
  });
  ThreadPool pool(node.threads, !node.oversubscribed);
  runtime::Worker worker(world, plan, *data, pool, false);
  runtime::agree(world, [&] { worker.load(*checkpoint); });
  const EvaluationReport report = *worker.evaluate(checkpoint->record().step);
  if (world.rank() != 0) return ExitCode::Done;
  if (command.json) {
    print(fmt::format("{}\n", observe::to_json(report)));
  } else {
    const std::string accuracy =
        report.accuracy ? fmt::format(", accuracy {:.2f}%", 100.0 * *report.accuracy) : std::string();
    print(fmt::format("{}: step {}, validation loss {:.6g} over {} targets{}\n", path, report.step, report.loss,
                      report.targets, accuracy));
  }
  return ExitCode::Done;
}

}  // namespace trainer::app
