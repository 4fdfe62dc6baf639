// What a run says about itself in words: before it starts and after it has ended.
#pragma once

#include <cstddef>
#include <string>

#include "trainer/runtime/run_plan.hpp"
#include "trainer/runtime/train.hpp"

namespace trainer::app {

/// Model, mesh and schedule, a line each.
std::string summary(const runtime::RunPlan& plan);

/// The partition as people read it: a row a rank. `data_bytes`: of the data set.
std::string partition_table(const runtime::RunPlan& plan, int threads, std::size_t data_bytes);

/// The run's facts for people, on stdout, and for scripts, in summary.json. Throws OutputError.
void report(const runtime::RunPlan& plan, const runtime::TrainResult& result);

}  // namespace trainer::app
