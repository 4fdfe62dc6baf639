// What a run says about itself in words: before it starts and after it has ended.
#pragma once

#include <cstddef>
#include <string>

#include "trainer/runtime/run_plan.hpp"
#include "trainer/runtime/train.hpp"

namespace trainer::app {

/// What was said about a run before it began, to be held against it. A cost model's prediction goes in here.
struct Expectation {
  double step_seconds = 0;  // 0: nothing was said
  double pass_seconds = 0;  // of the walk over the schedule; 0: nothing
  double bubble = 0;        // share of the ranks' time in the pass
  std::string source;       // for people: "cost model"
};

/// Model, mesh and schedule, a line each.
std::string summary(const runtime::RunPlan& plan);

/// The partition as people read it: a row a rank. `data_bytes`: of the data set.
std::string partition_table(const runtime::RunPlan& plan, int threads, std::size_t data_bytes);

/// The run's facts for people, on stdout, and for scripts, in summary.json, beside what was predicted before the run.
/// Throws OutputError.
void report(const runtime::RunPlan& plan, const runtime::TrainResult& result, const Expectation& expected = {});

}  // namespace trainer::app
