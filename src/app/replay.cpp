// `trainer replay RUNDIR`: does again what the parameter servers of a run did, and holds the outcome to the run's own.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <optional>

#include "app.hpp"
#include "costs.hpp"
#include "run_training.hpp"
#include "trainer/comm/topology.hpp"
#include "trainer/observe/reporters.hpp"
#include "trainer/runtime/agreement.hpp"
#include "trainer/runtime/exchange_recording.hpp"
#include "trainer/runtime/exchange_replay.hpp"
#include "trainer/runtime/worker.hpp"

namespace trainer::app {

namespace {

using Checkpoint = std::unique_ptr<storage::CheckpointReader>;

// The newest whole checkpoint of a directory, or the one that is given; opened on every rank. Collective.
Checkpoint agreed_checkpoint(comm::Communicator& world, const std::string& given) {
  const std::string path = agreed_text(world, [&] { return open_checkpoint(given)->path(); });
  Checkpoint checkpoint;
  runtime::agree(world, [&] { checkpoint = storage::open_checkpoint(storage::real_file_system(), path); });
  return checkpoint;
}

// The run's plan as it was made for it. Collective.
runtime::RunPlan plan_of_run(comm::Communicator& world, const config::Config& config) {
  config::Config resolved = config;
  read_agreed_schedule(world, resolved);
  const std::optional<plan::CostModel> costs = agreed_profile(world, resolved);
  const config::Parallel& p = config.parallel;
  const std::int64_t replica = p.pipeline * p.tensor;
  runtime::RunPlan plan;
  runtime::agree(world, [&] {
    if (world.size() != replica) {
      const std::string start = replica == 1 ? "trainer replay" : fmt::format("mpiexec -n {} trainer replay", replica);
      throw Error(
          ExitCode::Usage,
          fmt::format("{} rank{} started, but a replica of this run is {} pipeline × {} tensor rank{}: {} RUNDIR",
                      world.size(), world.size() == 1 ? " is" : "s are", p.pipeline, p.tensor, replica == 1 ? "" : "s",
                      start));
    }
    plan = runtime::make_plan(resolved, p.data * replica + p.server.count, {costs ? &*costs : nullptr, {}});
  });
  return plan;
}

// Neither the run's checkpoints nor the one to begin behind may be in the way of what comes out.
void claim_output(const config::ReplayCommand& command, const storage::CheckpointReader& end,
                  const storage::CheckpointReader* start) {
  storage::FileSystem& files = storage::real_file_system();
  for (const storage::CheckpointReader* source : {&end, start}) {
    std::error_code none;
    if (source == nullptr || !std::filesystem::equivalent(command.output, source->path() + "/..", none)) continue;
    throw Error(ExitCode::Usage, fmt::format("--output: {} holds {}, which is read; choose another directory",
                                             command.output, source->path()));
  }
  if (!storage::checkpoint_steps(files, command.output).empty()) {
    if (!command.overwrite) {
      throw Error(ExitCode::Usage,
                  fmt::format("--output: {} holds a checkpoint already; replace it with --overwrite, or "
                              "choose another --output",
                              command.output));
    }
    storage::remove_checkpoints(files, command.output);
  }
  files.make_directories(command.output);
}

// Collective; the path, on rank 0.
std::string save(comm::Communicator& world, const runtime::SavedState& state, const storage::CheckpointRecord& record,
                 const std::string& directory) {
  storage::FileSystem& files = storage::real_file_system();
  const std::string partial = storage::partial_path(directory, record.step);
  std::string shard, path;
  runtime::agree(world, [&] {
    if (world.rank() != 0) return;
    files.remove_all(partial);
    files.make_directories(partial);
  });
  runtime::agree(world, [&] {
    const std::vector<storage::Piece> pieces = state.pieces();
    if (!pieces.empty()) shard = storage::write_shard(files, partial, world.rank(), pieces);
  });
  std::vector<std::string> shards = world.gather_strings(shard);
  std::erase(shards, "");
  runtime::agree(world, [&] {
    if (world.rank() == 0) path = storage::commit(files, directory, record, shards);
  });
  return path;
}

// The first tensor of `made` that `run` has with other bits; "": none.
std::string first_difference(const storage::CheckpointReader& made, const storage::CheckpointReader& run) {
  for (const storage::TensorEntry& tensor : made.tensors()) {
    const auto elements = static_cast<std::size_t>(tensor.shape.elements());
    std::vector<float> one(elements), other(elements);
    made.read(tensor.name, whole(tensor.shape), one.data());
    if (!run.has(tensor.name)) return tensor.name;
    run.read(tensor.name, whole(tensor.shape), other.data());
    if (std::memcmp(one.data(), other.data(), elements * sizeof(float)) != 0) return tensor.name;
  }
  return "";
}

}  // namespace

ExitCode replay(Context& context, const config::ReplayCommand& command) {
  comm::Communicator& world = context.world;
  const comm::NodePlan node = comm::plan_node(world, command.threads);
  comm::set_wait_policy({.yield = node.oversubscribed, .hang_seconds = 300, .progress = {}});
  const Checkpoint end = agreed_checkpoint(world, command.directory);
  const Checkpoint start = command.checkpoint.empty() ? nullptr : agreed_checkpoint(world, command.checkpoint);
  runtime::ExchangeRecording recording;
  runtime::agree(world, [&] {
    recording = runtime::read_recording(storage::real_file_system(), command.directory, start.get(), *end);
  });
  const runtime::RunPlan plan = plan_of_run(world, recording.config);
  std::unique_ptr<storage::Dataset> data;
  runtime::agree(world, [&] {
    data = storage::load_dataset(plan.config.data, runtime::model_input(plan.graph), plan.config.training.seed);
    if (world.rank() == 0) claim_output(command, *end, start.get());
  });

  const auto batches = std::count_if(recording.actions.begin(), recording.actions.end(), [](const auto& action) {
    return action.kind == runtime::ReplayAction::Kind::Compute;
  });
  if (world.rank() == 0) {
    note(fmt::format("replaying {} operations of {} server{}, {} batches, up to {}\n",
                     recording.actions.size() - static_cast<std::size_t>(batches), plan.servers(),
                     plan.servers() == 1 ? "" : "s", batches, end->path()));
    if (recording.left_out > 0) {
      note(fmt::format("{} operations behind that checkpoint are left out\n", recording.left_out));
    }
  }
  ThreadPool pool(node.threads, !node.oversubscribed);
  runtime::ExchangeReplay replay(world, plan, *data, pool);
  if (start != nullptr) {
    runtime::agree(world, [&] { replay.load(*start); });
  } else {
    replay.initialise();
  }
  replay.run(recording.actions, recording.updates_less);
  const std::string path = save(world, replay, end->record(), command.output);
  std::string difference;
  runtime::agree(world, [&] {
    if (world.rank() != 0) return;
    const Checkpoint made = storage::open_checkpoint(storage::real_file_system(), path);
    difference = first_difference(*made, *end);
    if (!difference.empty()) {
      throw Error(ExitCode::Storage,
                  fmt::format("{} is not what {} holds: {} differs; the run was made on another CPU or with another "
                              "binary, data set or --kernels, or one of the two is damaged",
                              path, end->path(), difference));
    }
    print(fmt::format("{}: the same bits as {}\n", path, end->path()));
  });
  return ExitCode::Done;
}

}  // namespace trainer::app
