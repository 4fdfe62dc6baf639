// The split of a step: its arithmetic, and real runs whose parts must add up and whose spans must fit the schedule.
#include <doctest/doctest.h>

#include <set>

#include "support/equivalence.hpp"
#include "trainer/observe/timeline.hpp"
#include "trainer/runtime/time_split.hpp"

using namespace trainer;
using runtime::ForcedIdle;

TEST_CASE("what the simulator waits too is bubble, the rest stays where it was, the sum stays") {
  TimeSplit split;
  split.receive = 10;
  split.send = 2;
  split.gradients = 3;
  split.agreement = 5;
  split.forward = 100;
  const double step = split.step();
  SUBCASE("less than was waited") {
    runtime::attribute_bubble(split, {.in_pass = 11, .at_end = 4}, 1);
    CHECK(split.receive == 0);
    CHECK(split.send == 1);
    CHECK(split.gradients == 2);  // of which 1 is tied parameters'
    CHECK(split.agreement == 2);
    CHECK(split.bubble == 15);
  }
  SUBCASE("more than was waited") {
    runtime::attribute_bubble(split, {.in_pass = 50, .at_end = 50}, 3);
    CHECK(split.receive == 0);
    CHECK(split.send == 0);
    CHECK(split.gradients == 0);
    CHECK(split.agreement == 0);
    CHECK(split.bubble == 20);
  }
  SUBCASE("none") {
    runtime::attribute_bubble(split, {}, 3);
    CHECK(split.bubble == 0);
  }
  CHECK(split.step() == step);
}

TEST_CASE("forced idle time is the simulator's: before, between and behind a rank's actions") {
  // 1F1B, joint: rank r of p idles (p − 1)(F + B), of which behind its last action what the ranks before need: r · B.
  for (std::int64_t p = 1; p <= 5; ++p) {
    const auto schedule = schedule::add_reductions(
        schedule::add_communication(schedule::one_f_one_b({.stages = p, .micro_batches = 7, .split_backward = false})));
    const std::vector<schedule::StageTimes> times(static_cast<std::size_t>(p), {2, 3, 1});
    const std::vector<ForcedIdle> idle = runtime::forced_idle(schedule, times);
    REQUIRE(idle.size() == static_cast<std::size_t>(p));
    for (std::int64_t r = 0; r < p; ++r) {
      CHECK(idle[static_cast<std::size_t>(r)].at_end == static_cast<double>(4 * r));
      CHECK(idle[static_cast<std::size_t>(r)].in_pass == static_cast<double>(6 * (p - 1) - 4 * r));
    }
  }
}

TEST_CASE("the simulator's times are means of whole actions; I and W count where a stage has both kinds") {
  ActionLog::StageSum sum;
  sum.nanoseconds = {2'000'000'000, 6'000'000'000, 0, 0};
  sum.count = {2, 3, 0, 0};
  CHECK(runtime::stage_times(sum).forward == 1);
  CHECK(runtime::stage_times(sum).backward_input == 2);
  CHECK(runtime::stage_times(sum).backward_weight == 0);
  sum.nanoseconds = {2'000'000'000, 6'000'000'000, 3'000'000'000, 1'000'000'000};
  sum.count = {2, 3, 1, 1};
  CHECK(runtime::stage_times(sum).backward_input == 3);
  CHECK(runtime::stage_times(sum).backward_weight == 1);
  CHECK(runtime::stage_times({}).forward == 0);
}

namespace {

struct SplitKeeper final : Observer {
  std::vector<StepReport>& reports;
  std::vector<std::vector<TimeSplit>>& splits;
  SplitKeeper(std::vector<StepReport>& r, std::vector<std::vector<TimeSplit>>& s) : reports(r), splits(s) {}
  void step(const StepReport& report) override {
    reports.push_back(report);
    splits.emplace_back(report.splits.begin(), report.splits.end());
  }
};

struct Traced {
  runtime::RunPlan plan;
  runtime::TrainResult result;
  std::vector<StepReport> reports;
  std::vector<std::vector<TimeSplit>> splits;
};

Traced traced_run(const std::vector<std::string>& set, std::int64_t ranks, std::optional<runtime::TraceWindow> window) {
  Traced traced;
  const auto config = config::parse(test::model_json("gpt tied"), "test", set);
  traced.plan = runtime::make_plan(config, ranks);
  const auto data = storage::load_dataset(traced.plan.config.data, runtime::model_input(traced.plan.graph), 1);
  comm::set_wait_policy({.yield = true, .hang_seconds = 30, .progress = {}});
  comm::run_in_process(static_cast<int>(ranks), [&](comm::Communicator& world) {
    runtime::TrainOptions options;
    options.spin = false;
    options.trace = window;
    options.observers = [&](std::int64_t, std::int64_t) {
      return std::make_unique<SplitKeeper>(traced.reports, traced.splits);
    };
    auto result = runtime::train(world, traced.plan, *data, storage::real_file_system(), options);
    if (world.rank() == 0) traced.result = std::move(result);
  });
  comm::set_wait_policy({});
  return traced;
}

// Each rank's spans of `step` that compute, by name: exactly its row of the table.
void check_actions(const Traced& traced, std::int64_t step) {
  for (std::size_t r = 0; r < traced.result.timeline.ranks.size(); ++r) {
    CAPTURE(r);
    const auto& spans = traced.result.timeline.ranks[r].spans;
    std::multiset<std::string> expected, found;
    const auto pipeline = static_cast<std::size_t>(traced.plan.mesh.coordinates(static_cast<std::int64_t>(r)).pipeline);
    for (const schedule::Action& action : traced.plan.training.ranks[pipeline]) {
      if (action.kind != schedule::ActionKind::ReduceGradients) expected.insert(schedule::to_string(action));
    }
    const auto whole = std::find_if(spans.begin(), spans.end(), [&](const Span& span) {
      return span.activity == Activity::Step && span.index == step;
    });
    REQUIRE(whole != spans.end());
    for (const Span& span : spans) {
      const bool action = is_compute(span.activity) ||
                          (span.activity >= Activity::ReceiveForward && span.activity <= Activity::SendBackward);
      if (action && span.begin >= whole->begin && span.end <= whole->end) found.insert(observe::span_name(span));
    }
    CHECK(found == expected);
  }
}

}  // namespace

TEST_CASE("parts of a step sum to it, on every rank, in every layout; spans are the schedule's actions") {
  const std::vector<std::pair<std::vector<std::string>, std::int64_t>> layouts{
      {{}, 1},
      {{"parallel.pipeline=2"}, 2},
      {{"parallel.pipeline=2", "parallel.schedule=zb-h1"}, 2},
      {{"parallel.pipeline=2", "parallel.schedule=interleaved", "parallel.chunks=2"}, 2},
      {{"parallel.tensor=2"}, 2},
      {{"parallel.data=2", "parallel.pipeline=2", "parallel.tensor=2"}, 8}};
  for (const auto& layout : layouts) {
    std::vector<std::string> set = layout.first;
    const std::int64_t ranks = layout.second;
    CAPTURE(ranks);
    set.insert(set.end(), {"training.steps=6", "training.micro_batches=3", "logging.every_steps=2",
                           "data.validation_fraction=0.25", "training.eval_every=2"});
    const Traced traced = traced_run(set, ranks, std::nullopt);
    const runtime::TrainResult& result = traced.result;
    REQUIRE(result.splits.size() == static_cast<std::size_t>(ranks));
    REQUIRE(traced.reports.size() == 6);
    double others = 0;  // steps but the first
    for (std::size_t i = 0; i < 6; ++i) {
      const bool logged = i == 0 || i % 2 == 1;
      CHECK(traced.splits[i].size() == (logged ? static_cast<std::size_t>(ranks) : 0));
      if (i > 0) others += traced.reports[i].step_seconds;
      if (!logged) continue;
      // Nanoseconds, some twenty of them added up in double.
      CHECK(traced.splits[i][0].step() == doctest::Approx(traced.reports[i].step_seconds).epsilon(1e-9));
      for (const TimeSplit& split : traced.splits[i]) {
        CHECK(split.forward > 0);
        CHECK(split.evaluation == 0);
        for (std::size_t p = 0; p < kStepParts; ++p) CHECK(split.*kTimeParts[p].seconds >= 0);
        if (traced.plan.mesh.pipeline == 1) CHECK(split.bubble == 0);
        if (traced.plan.mesh.tensor == 1) CHECK(split.tensor == 0);
      }
    }
    CHECK(result.splits[0].step() == doctest::Approx(others / 5).epsilon(1e-9));
    for (const TimeSplit& split : result.splits) CHECK(split.evaluation > 0);
    REQUIRE(result.timeline.typical >= 1);
    check_actions(traced, result.timeline.typical);
    REQUIRE(result.passes.size() == static_cast<std::size_t>(ranks));
    for (const runtime::RankPass& pass : result.passes) {
      CHECK(pass.busy > 0);
      CHECK(pass.busy <= pass.whole);
    }
  }
}

TEST_CASE("a trace has the steps that were asked for, whole, on one time line") {
  const std::vector<std::string> set{"parallel.pipeline=2", "training.steps=9", "training.micro_batches=4"};
  for (const auto& [window, first, last] :
       {std::tuple<runtime::TraceWindow, std::int64_t, std::int64_t>{{.first = 3, .last = 4}, 3, 4}, {{}, 5, 9}}) {
    const Traced traced = traced_run(set, 2, window);
    for (std::int64_t step = first; step <= last; ++step) check_actions(traced, step);
    for (const observe::RankTimeline& rank : traced.result.timeline.ranks) {
      std::set<std::int64_t> steps;
      for (const Span& span : rank.spans) {
        if (span.activity == Activity::Step) steps.insert(span.index);
      }
      CHECK(*steps.begin() == first);
      CHECK(*steps.rbegin() == last);
      CHECK(steps.size() == static_cast<std::size_t>(last - first + 1));
      REQUIRE(rank.bytes.size() == 1);
      CHECK(rank.bytes[0].forward_to_weight > 0);
    }
    CHECK(traced.result.timeline.clock_error == 0);
    CHECK(traced.result.timeline.typical >= first);
    CHECK(traced.result.timeline.typical <= last);
  }
  // Nothing to show where the steps asked for were not run.
  CHECK(traced_run(set, 2, runtime::TraceWindow{.first = 20, .last = 30}).result.timeline.typical == 0);
}
