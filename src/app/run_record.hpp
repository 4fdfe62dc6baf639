// What a run leaves beside its metrics for those who look at it later: run.json, actions.json, a trace.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "train_report.hpp"
#include "trainer/config/command_line.hpp"
#include "trainer/observe/timeline.hpp"
#include "trainer/runtime/run_plan.hpp"
#include "trainer/runtime/train.hpp"

namespace trainer::app {

/// logging.directory, or checkpoint.directory where that is empty; "": nothing is left.
const std::string& record_directory(const config::Config& config);

/// DIRECTORY/run.json: what is known before the first step; removes what an earlier run said at its end. On rank 0; the
/// directory is there. Throws Error(Storage).
void write_run_facts(const runtime::RunPlan& plan, const Expectation& expected, int threads, std::size_t data_bytes,
                     std::int64_t resumed_step, std::int64_t total_steps);

/// DIRECTORY/actions.json: the typical step; removed when none was kept whole. On rank 0. Failures are a warning.
void write_actions(const runtime::RunPlan& plan, const observe::Timeline& timeline);

/// The steps that --trace and --trace-steps ask for; nothing without --trace. Throws Error(Usage) for steps that a run
/// of `total_steps` does not have.
std::optional<runtime::TraceWindow> trace_window(const config::TrainCommand& command, std::int64_t total_steps);

/// Writes it under another name first, so that the file is whole or absent. Failures are a warning.
void write_trace(const std::string& path, const observe::Timeline& timeline);

}  // namespace trainer::app
