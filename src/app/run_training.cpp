#include "run_training.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "app.hpp"
#include "costs.hpp"
#include "trainer/comm/shared_memory.hpp"
#include "trainer/observe/reporters.hpp"
#include "trainer/ops/matmul.hpp"
#include "trainer/runtime/agreement.hpp"
#include "trainer/runtime/compression_plan.hpp"
#include "trainer/runtime/recompute.hpp"
#include "trainer/runtime/worker.hpp"

namespace trainer::app {

namespace {

using observe::human_bytes;

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

// Peak of all cores that the ranks compute on, from one measured while the others wait.
double total_peak_flops(comm::Communicator& world, const comm::NodePlan& node, ops::MatmulPrecision precision) {
  double facts[2] = {0, 0};
  if (world.rank() == 0) facts[0] = ops::measure_peak_flops(precision);
  facts[1] = static_cast<double>(std::min(node.cores, node.ranks_on_node * node.threads)) / node.ranks_on_node;
  world.sum(facts);
  return facts[0] * facts[1];
}

void require_precision(const config::Config& config, const std::string& kernels) {
  if (config.training.precision == config::Precision::BFloat16 && kernels == "onednn") {
    throw Error(ExitCode::Usage, "--kernels onednn multiplies in float32 only, but training.precision is \"bfloat16\"");
  }
  runtime::require_precision(config);
}

}  // namespace

std::string agreed_text(comm::Communicator& world, const std::function<std::string()>& read) {
  std::string text;
  runtime::agree(world, [&] {
    if (world.rank() == 0) text = read();
  });
  return world.gather_strings(text).front();
}

void read_agreed_schedule(comm::Communicator& world, config::Config& config) {
  if (config.parallel.schedule != config::ScheduleName::File) return;
  config.parallel.schedule_text = agreed_text(world, [&] { return read_schedule_file(config.parallel.schedule_file); });
}

std::shared_ptr<const storage::Dataset> DataCache::load(const config::Config& config,
                                                        const storage::ModelInput& model) {
  config::Config reads;  // of all keys, those that the data set depends on
  reads.data = config.data;
  reads.training.seed = config.training.seed;
  const std::string key = fmt::format("{}\n{} {} {} {} {} {}", config::to_json(reads), model.tokens, model.positions,
                                      model.vocabulary, model.features, model.outputs, model.classes);
  if (data_ == nullptr || key != key_) {
    data_.reset();
    data_ = storage::load_dataset(config.data, model, config.training.seed);
    key_ = key;
  }
  return data_;
}

plan::CostModel costs_of(const PreparedRun& run, double peak_flops) {
  if (run.costs) return *run.costs;
  const auto threads = static_cast<std::int64_t>(run.node.threads);
  return plan::estimated_costs(peak_flops / static_cast<double>(run.plan.mesh.size() * threads), threads);
}

PreparedRun prepare_run(comm::Communicator& world, RunRequest request, DataCache& cache) {
  ops::set_matmul_provider(request.kernels == "onednn" ? ops::MatmulProvider::OneDnn : ops::MatmulProvider::Native);
  PreparedRun run;
  run.node = comm::plan_node(world, request.threads);
  comm::set_wait_policy(
      {.yield = run.node.oversubscribed, .hang_seconds = request.config.training.hang_timeout, .progress = {}});
  run.costs = agreed_profile(world, request.config);
  runtime::agree(world, [&] {
    require_precision(request.config, request.kernels);
    run.plan = runtime::make_plan(std::move(request.config), request.ranks, {run.costs ? &*run.costs : nullptr, {}});
    runtime::require_compression(run.plan);
    run.data = cache.load(run.plan.config, runtime::model_input(run.plan.graph));
    runtime::check_samples(run.plan, *run.data);
  });
  return run;
}

void fit_memory(comm::Communicator& world, PreparedRun& run, std::int64_t ranks_here) {
  const runtime::MemoryLimit limit = memory_limit(world, run.plan.config, ranks_here);
  runtime::agree(world, [&] {
    // Of what the node has left, the data set is gone already.
    runtime::fit_recompute(run.plan, run.node.threads, limit.own ? 0 : run.data->bytes(), limit);
    runtime::require_memory_per_rank(run.plan, run.node.threads, run.data->bytes());
  });
}

runtime::TrainOptions start_run(comm::Communicator& world, PreparedRun& run, std::int64_t base_memory) {
  run.plan.node_of_rank = comm::node_of_rank(world);
  fit_memory(world, run, run.node.ranks_on_node);
  require_memory(world, run.plan, run.node);
  runtime::TrainOptions options;
  options.threads = run.node.threads;
  options.spin = !run.node.oversubscribed;
  options.peak_flops = total_peak_flops(world, run.node, runtime::matmul_precision(run.plan.config));
  options.base_memory = base_memory;
  options.build = version_text();
  options.stop = &stop_requested();
  options.allocations = allocation_count;
  return options;
}

}  // namespace trainer::app
