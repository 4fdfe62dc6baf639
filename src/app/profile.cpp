// `trainer profile`: what the parts of a run cost on this machine, as a file.
#include "trainer/runtime/profiler.hpp"

#include <fmt/format.h>

#include <chrono>
#include <set>

#include "app.hpp"
#include "costs.hpp"
#include "trainer/comm/topology.hpp"
#include "trainer/observe/reporters.hpp"
#include "trainer/ops/matmul.hpp"
#include "trainer/plan/cost_file.hpp"
#include "trainer/runtime/agreement.hpp"
#include "trainer/runtime/run_plan.hpp"
#include "trainer/runtime/worker.hpp"

namespace trainer::app {

namespace {

// The batch may be given by its parts; layouts cut the whole.
void fill_batch(config::Config& config) {
  config::Training& t = config.training;
  if (t.batch_size > 0) return;
  t.batch_size = std::max<std::int64_t>(1, config.parallel.data) * t.micro_batches * t.micro_batch_size;
}

std::string report(const plan::CostModel& costs, const std::string& path, double seconds) {
  std::set<std::string> pieces;
  for (const plan::MeasuredPiece& piece : costs.pieces) pieces.insert(piece.piece);
  return fmt::format(
      "measured {} pieces of the model at {} sizes, {} rank{} × {} thread{} at the same time, in {}\n"
      "core {:.0f} GFLOP/s; message {:.1f} µs + {:.1f} GB/s; agreement {:.0f} µs\n"
      "profile: {}\n",
      pieces.size(), costs.pieces.size() / std::max<std::size_t>(1, pieces.size()), costs.machine.ranks,
      costs.machine.ranks == 1 ? "" : "s", costs.machine.threads, costs.machine.threads == 1 ? "" : "s",
      observe::human_duration(seconds), costs.core_flops / 1e9, 1e6 * costs.within.latency,
      costs.within.bandwidth / 1e9, 1e6 * costs.agreement.at(1), path);
}

}  // namespace

ExitCode profile(Context& context, const config::ProfileCommand& command) {
  const auto begin = std::chrono::steady_clock::now();
  comm::Communicator& world = context.world;
  config::Config config = agreed_config(world, command.config_path, command.overrides);
  fill_batch(config);
  const comm::NodePlan node = comm::plan_node(world, command.threads);
  comm::set_wait_policy({.yield = node.oversubscribed, .hang_seconds = config.training.hang_timeout, .progress = {}});
  std::unique_ptr<storage::Dataset> data;
  runtime::agree(world, [&] {
    runtime::require_precision(config);
    if (world.rank() == 0) require_writable(command.output);
    data = storage::load_dataset(config.data, runtime::model_input(model::build(config)), config.training.seed);
  });
  runtime::ProfileOptions options;
  options.ranks = command.ranks;
  options.seconds = command.seconds;
  options.threads = node.threads;
  options.spin = !node.oversubscribed;
  options.machine = this_machine();
  options.machine.cores = node.cores;
  options.core_flops = world.rank() == 0 ? ops::measure_peak_flops(runtime::matmul_precision(config)) : 0;
  double peak[1] = {options.core_flops};
  world.max(peak);
  options.core_flops = peak[0];
  const plan::CostModel costs = runtime::profile(world, config, *data, options);
  runtime::agree(world, [&] {
    if (world.rank() == 0) write_whole(command.output, plan::to_json(costs));
  });
  if (world.rank() == 0) {
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    print(report(costs, command.output, taken.count()));
  }
  return ExitCode::Done;
}

}  // namespace trainer::app
