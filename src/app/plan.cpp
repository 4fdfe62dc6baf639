// `trainer plan`: every layout of a model over ranks, predicted, fastest first.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "app.hpp"
#include "costs.hpp"
#include "trainer/observe/plan_report.hpp"
#include "trainer/observe/reporters.hpp"
#include "trainer/ops/matmul.hpp"
#include "trainer/plan/cost_file.hpp"
#include "trainer/runtime/planner.hpp"
#include "trainer/runtime/worker.hpp"

namespace trainer::app {

namespace {

// What the plan is made for, from the profile, the cluster or a look at this machine.
struct Basis {
  plan::CostModel costs;
  runtime::Machines machines;
  double memory = 0;  // bytes a rank; 0: any
  std::string text;   // for people
};

plan::CostModel costs_of(const config::PlanCommand& command, const plan::Cluster* cluster, const config::Config& config,
                         std::string& text) {
  if (!command.profile.empty()) {
    const std::string hint = "--profile takes the path of what `trainer profile` has written";
    plan::CostModel costs = plan::parse_profile(read_file(command.profile, hint.c_str()), command.profile);
    const plan::Machine& machine = costs.machine;
    const char* precision = config.training.precision == config::Precision::BFloat16 ? "bfloat16" : "float32";
    if (machine.precision != precision) {
      throw Error(ExitCode::Usage,
                  fmt::format("{} was measured in {}, but training.precision is \"{}\"; profile with it",
                              command.profile, machine.precision, precision));
    }
    text = fmt::format("times: measured, {} ({} rank{} × {} thread{})", command.profile, machine.ranks,
                       machine.ranks == 1 ? "" : "s", machine.threads, machine.threads == 1 ? "" : "s");
    return costs;
  }
  const std::int64_t threads = std::max(1, command.threads);
  if (cluster != nullptr) {
    const plan::NodeGroup& first = cluster->groups.front();
    plan::CostModel costs =
        plan::estimated_costs(first.core_flops, std::max<std::int64_t>(1, first.cores / first.ranks));
    if (first.memory_bandwidth > 0) costs.memory_bandwidth = first.memory_bandwidth;
    text = fmt::format("times: estimated from {:.4g} GFLOP/s a core", first.core_flops / 1e9);
    return costs;
  }
  // Two digits: more would change from one call to the next, and an estimate has not even these.
  const double peak = ops::measure_peak_flops(runtime::matmul_precision(config));
  const double unit = std::pow(10.0, std::floor(std::log10(peak)) - 1);
  const double rounded = std::round(peak / unit) * unit;
  text = fmt::format("times: estimated from {:.4g} GFLOP/s a core, measured now; --profile would be nearer",
                     rounded / 1e9);
  return plan::estimated_costs(rounded, threads);
}

Basis basis_of(const config::PlanCommand& command, const config::Config& config) {
  Basis basis;
  std::optional<plan::Cluster> cluster;
  if (!command.cluster.empty()) {
    const char* hint = "--cluster takes the path of a description of machines";
    cluster = plan::parse_cluster(read_file(command.cluster, hint), command.cluster);
  }
  basis.costs = costs_of(command, cluster ? &*cluster : nullptr, config, basis.text);
  if (cluster) {
    basis.costs.within = cluster->within;
    basis.costs.between = cluster->between;
    const plan::RankPlaces places = plan::place(*cluster, command.ranks);
    basis.machines.node_of_rank = places.node_of_rank;
    for (const double flops : places.rank_flops) basis.machines.speed.push_back(flops / basis.costs.rank_flops());
    basis.memory = *std::min_element(places.rank_memory.begin(), places.rank_memory.end());
    basis.text +=
        fmt::format("; cluster: {}, {} of {} nodes", command.cluster, places.node_of_rank.back() + 1, cluster->nodes());
  } else if (!command.profile.empty()) {
    const std::string difference = taken_elsewhere(basis.costs.machine, command.profile);
    if (!difference.empty()) note(fmt::format("warning: {}\n", difference));
    if (basis.costs.machine.ranks != command.ranks) {
      note(fmt::format("warning: {} was measured with {} ranks at the same time, this plan is for {}\n",
                       command.profile, basis.costs.machine.ranks, command.ranks));
    }
  }
  if (!command.memory_per_rank.empty()) {
    const std::optional<std::int64_t> bytes = config::bytes_of(command.memory_per_rank);
    basis.memory = bytes ? static_cast<double>(*bytes) : 0;
    if (basis.memory <= 0) {
      throw Error(ExitCode::Usage, fmt::format("plan: --memory-per-rank is \"{}\"; expected a size, for example 8GiB",
                                               command.memory_per_rank));
    }
  }
  return basis;
}

// Its memory is in the plan where it can be read.
std::size_t data_bytes(const config::Config& config) {
  try {
    const auto input = runtime::model_input(model::build(config));
    return storage::load_dataset(config.data, input, config.training.seed)->bytes();
  } catch (const Error& error) {
    if (error.code() != ExitCode::Data) throw;
    note(fmt::format("warning: the plan is without the memory of the data set, which cannot be read here: {}\n",
                     error.what()));
    return 0;
  }
}

observe::PlanRow row_of(const runtime::PlannedLayout& layout) {
  const runtime::Prediction& p = layout.prediction;
  const config::Parallel& parallel = layout.config.parallel;
  return {.data = layout.size.data,
          .pipeline = layout.size.pipeline,
          .tensor = layout.size.tensor,
          .micro_batches = layout.size.micro_batches,
          .samples = layout.size.samples,
          .schedule = config::name_of(parallel.schedule),
          .split_backward = parallel.split_backward,
          .chunks = parallel.chunks,
          .partition = config::name_of(parallel.partition),
          .stages = layout.stages,
          .recompute = layout.recompute,
          .step_seconds = p.step_seconds,
          .bubble = p.bubble,
          .communication = p.communication,
          .optimizer = p.optimizer,
          .memory = static_cast<double>(layout.memory)};
}

}  // namespace

ExitCode plan_layouts(const config::PlanCommand& command) {
  runtime::PlannerRequest request;
  request.config = config::parse(read_config(command.config_path), command.config_path, command.overrides);
  if (request.config.parallel.exchange != config::Exchange::AllReduce) {
    note(
        "warning: this plan is for parallel.exchange \"all_reduce\", as if all ranks computed and summed gradients in "
        "every step; it does not know what servers or local steps would take\n");
  }
  request.config.parallel = {};
  request.config.parallel.profile = command.profile;
  config::Training& training = request.config.training;
  if (training.batch_size == 0) {
    throw Error(ExitCode::Usage, fmt::format("{}: training.batch_size is missing; a plan cuts a whole batch, for "
                                             "example --set training.batch_size=32",
                                             command.config_path));
  }
  const Basis basis = basis_of(command, request.config);
  if (!command.profile.empty()) {
    const std::string difference = taken_of_another(basis.costs, model::build(request.config), command.profile);
    if (!difference.empty()) note(fmt::format("warning: {}\n", difference));
  }
  request.ranks = command.ranks;
  request.costs = {&basis.costs, basis.machines};
  request.threads = static_cast<int>(basis.costs.machine.threads);
  request.memory = basis.memory;
  request.data_bytes = data_bytes(request.config);
  request.wanted = command.top;
  const runtime::PlannedLayouts planned = runtime::plan_all(request);

  observe::PlanReport report;
  report.basis = basis.text;
  report.ranks = command.ranks;
  report.bounded = planned.bounded;
  report.wanted = command.top;
  for (const runtime::PlannedLayout& layout : planned.ranked) report.rows.push_back(row_of(layout));
  for (const plan::RejectedLayouts& r : planned.rejected) report.rejected.push_back({r.reason, r.count, r.example});
  if (!planned.ranked.empty() && !command.best.empty()) {
    write_whole(command.best, config::to_json(planned.ranked.front().config));
    report.best = command.best;
  }
  print(command.json ? observe::to_json(report) : observe::to_text(report));
  if (!planned.ranked.empty()) return ExitCode::Done;
  throw Error(ExitCode::Usage,
              fmt::format("plan: no layout of {} ranks is possible; the reasons are above", command.ranks));
}

}  // namespace trainer::app
