// Steps of plans by hand, and the search over layouts.
#include <doctest/doctest.h>

#include <ctime>

#include "trainer/core/error.hpp"
#include "trainer/plan/cost_file.hpp"
#include "trainer/runtime/planner.hpp"

using namespace trainer;
using namespace trainer::runtime;

// A build with sanitizers is many times as slow.
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define TRAINER_SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define TRAINER_SANITIZED 1
#endif

namespace {

#ifdef TRAINER_SANITIZED
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

config::Config mlp(std::int64_t batch) {
  config::Config c;
  c.model = config::MlpModel{8, {8, 8, 8}, 8, config::Activation::Relu};
  c.training.batch_size = batch;
  c.training.steps = 1;
  return c;
}

config::Config gpt(std::int64_t batch) {
  config::Config c = mlp(batch);
  c.model = config::GptModel{32, 64, 32, 3, 4, 0.0, true};
  c.training.sequence_length = 64;
  return c;
}

config::Config laid_out(config::Config c, std::int64_t data, std::int64_t pipeline, std::int64_t micro_batches) {
  c.parallel = {};
  c.parallel.data = data;
  c.parallel.pipeline = pipeline;
  c.parallel.tensor = 1;
  c.parallel.split_backward = false;
  c.training.micro_batches = micro_batches;
  return c;
}

// Every piece: a sample takes 1 s forward, 2 s backward. An element takes 1 ms to update and to square.
plan::CostModel even_costs(const config::Config& config) {
  const model::Graph graph = model::build(config);
  plan::CostModel costs;
  costs.measured = true;
  costs.within = {0.25, 1e15};
  for (const model::Unit& piece : graph.pieces) {
    const std::string text = plan::signature(graph, piece);
    const auto same = [&](const plan::MeasuredPiece& m) { return m.piece == text; };
    if (std::any_of(costs.pieces.begin(), costs.pieces.end(), same)) continue;
    costs.pieces.push_back({text, 1, 1, 1, {1, 1, 1, 2, 0}});
  }
  costs.norm.points = costs.optimizer.points = {{1, 1e-3}};
  costs.agreement.points = {{1000, 0.5}};
  return plan::parse_profile(plan::to_json(costs), "sorted");
}

double parameters(const config::Config& config) {
  return static_cast<double>(model::parameter_elements(model::build(config)));
}

std::string order(const PlannedLayouts& planned) {
  std::string text;
  for (const PlannedLayout& layout : planned.ranked) text += config::to_json(layout.config) + layout.stages;
  return text;
}

}  // namespace

TEST_CASE("one rank: micro-batches one behind the other, norm and update") {
  const config::Config c = laid_out(mlp(8), 1, 1, 2);
  const plan::CostModel costs = even_costs(c);
  const Prediction p = predict(make_plan(c, 1), costs);
  CHECK(p.pass_seconds == doctest::Approx(2 * 4 * 4 * 3.0));  // micro-batches, samples, pieces, F + B
  CHECK(p.optimizer == doctest::Approx(2e-3 * parameters(c)));
  CHECK(p.step_seconds == doctest::Approx(p.pass_seconds + p.optimizer));  // nobody to agree with
  CHECK(p.bubble == doctest::Approx(0));
  CHECK(p.measured_share == 1);
}

TEST_CASE("a pipeline of two equal stages takes the formula of 1F1B, its messages and the agreement") {
  const config::Config c = laid_out(mlp(4), 1, 2, 4);
  plan::CostModel costs = even_costs(c);
  const RunPlan plan = make_plan(c, 2);
  const double f = 2;  // of two pieces
  const double b = 4;
  CHECK(predict(plan, costs).pass_seconds ==
        doctest::Approx(schedule::simulate(plan.training, {{f, b / 2, b / 2}, {f, b / 2, b / 2}}, 0.25).step));
  costs.within.latency = 0;
  const Prediction p = predict(plan, costs);
  CHECK(p.pass_seconds == doctest::Approx(4 * (f + b) + (f + b)));
  CHECK(p.bubble == doctest::Approx(1 / 5.0));
  CHECK(p.step_seconds == doctest::Approx(p.pass_seconds + 0.5 + 2e-3 * parameters(c) / 2).epsilon(0.01));
}

TEST_CASE("slower ranks and held-up ranks take longer in proportion") {
  const config::Config c = laid_out(mlp(8), 2, 1, 2);
  plan::CostModel costs = even_costs(c);
  const RunPlan plan = make_plan(c, 2);
  const double even = predict(plan, costs).pass_seconds;
  CHECK(predict(plan, costs, {1, 0.5}).pass_seconds == doctest::Approx(2 * even));
  costs.unevenness = 1.25;
  CHECK(predict(plan, costs).pass_seconds == doctest::Approx(1.25 * even));
}

TEST_CASE("what the backward computes again comes on top of it") {
  config::Config c = laid_out(gpt(8), 1, 1, 2);
  const plan::CostModel costs = even_costs(c);
  const double kept = predict(make_plan(c, 1), costs).pass_seconds;
  c.training.recompute = config::Recompute::Full;
  const double again = predict(make_plan(c, 1), costs).pass_seconds;
  CHECK(again > kept * 1.1);
  CHECK(again < kept * 4 / 3);  // not every forward is run again
}

TEST_CASE("all layouts of few ranks: ranked, each what make_plan and predict say, the same every time") {
  PlannerRequest request;
  request.config = mlp(8);
  const plan::CostModel costs = even_costs(request.config);
  request.ranks = 4;
  request.costs.model = &costs;
  request.wanted = 0;
  const PlannedLayouts planned = plan_all(request);
  REQUIRE(planned.ranked.size() > 30);
  CHECK(planned.bounded == 0);
  double before = 0;
  for (const PlannedLayout& layout : planned.ranked) {
    CHECK(layout.prediction.step_seconds >= before);
    before = layout.prediction.step_seconds;
    const RunPlan plan = make_plan(layout.config, 4, request.costs);
    CHECK(predict(plan, costs).step_seconds == layout.prediction.step_seconds);
    CHECK(peak_memory(plan, 1, 0) == layout.memory);
    CHECK(config::parse(config::to_json(layout.config), "best") == plan.config);
  }
  CHECK(order(plan_all(request)) == order(planned));
}

TEST_CASE("a cap on memory leaves out what needs more, or has it recompute") {
  PlannerRequest request;
  request.config = gpt(64);
  const plan::CostModel costs = even_costs(request.config);
  request.ranks = 2;
  request.costs.model = &costs;
  request.wanted = 0;
  std::size_t most = 0;
  std::size_t least = SIZE_MAX;
  for (const PlannedLayout& layout : plan_all(request).ranked) {
    most = std::max(most, layout.memory);
    least = std::min(least, layout.memory);
  }
  request.memory = static_cast<double>(most + least) / 2;
  const PlannedLayouts capped = plan_all(request);
  REQUIRE(!capped.ranked.empty());
  bool recomputes = false;
  for (const PlannedLayout& layout : capped.ranked) {
    CHECK(static_cast<double>(layout.memory) <= request.memory);
    recomputes = recomputes || layout.recompute == "auto";
  }
  CHECK(recomputes);
  request.memory = static_cast<double>(least) / 4;
  const PlannedLayouts nothing = plan_all(request);
  CHECK(nothing.ranked.empty());
  CHECK(!nothing.rejected.empty());
}

TEST_CASE("planning for 4,096 ranks takes less than ten seconds of a core" * doctest::skip(kSanitized)) {
  PlannerRequest request;
  request.config.model = config::GptModel{50304, 2048, 4096, 32, 32, 0.0, true};
  request.config.training.batch_size = 4096;
  request.config.training.sequence_length = 2048;
  request.config.training.steps = 1;
  const plan::Cluster cluster = plan::parse_cluster(
      R"({"nodes": [{"count": 64, "cores": 64, "gflops_per_core": 60}],
          "between_nodes": {"latency_us": 3, "bandwidth_gb_s": 12}})",
      "cluster");
  const plan::CostModel costs = plan::estimated_costs(60e9, 1);
  request.ranks = 4096;
  request.costs.model = &costs;
  request.costs.machines.node_of_rank = plan::place(cluster, 4096).node_of_rank;
  for (const double memory : {0.0, 0x1p32}) {
    request.memory = memory;
    const std::clock_t begin = std::clock();
    const PlannedLayouts planned = plan_all(request);
    const double taken = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
    CHECK(planned.ranked.size() >= 10);
    CHECK(taken < 10);
  }
}
