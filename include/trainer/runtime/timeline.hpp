// The ranks' logs brought together.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "trainer/comm/clock.hpp"
#include "trainer/comm/communicator.hpp"
#include "trainer/core/action_log.hpp"
#include "trainer/observe/timeline.hpp"
#include "trainer/runtime/run_plan.hpp"

namespace trainer::runtime {

/// Which steps a trace shows: `first` to `last`, or the newest `newest` ones where `last` is 0.
struct TraceWindow {
  std::int64_t first = 0, last = 0;
  std::int64_t newest = 5;
};

/// About how many spans this rank records in a step.
std::int64_t spans_of_step(const RunPlan& plan, std::int64_t rank);

/// Spans that a log without a trace keeps: some steps, at most kMostSpans (2 MiB).
std::size_t usual_log_capacity(const RunPlan& plan, std::int64_t rank);
/// Spans for a trace of these steps, at most kMostTraceSpans (32 MiB).
std::size_t trace_log_capacity(const RunPlan& plan, std::int64_t rank, const TraceWindow& window);
inline constexpr std::size_t kMostSpans = std::size_t{1} << 16;
inline constexpr std::size_t kMostTraceSpans = std::size_t{1} << 20;

/// Collective: what all ranks have kept of the steps that all have kept whole; on rank 0, empty elsewhere. Without
/// `window` only the typical step. Steps are left out from the oldest on until at most kMostGatheredSpans (or
/// kMostTypicalSpans) are left over all ranks.
observe::Timeline gather_timeline(comm::Communicator& world, const RunPlan& plan, const ActionLog& log,
                                  const comm::ClockSample& before, const comm::ClockSample& after, int threads,
                                  const TraceWindow* window);
inline constexpr double kMostGatheredSpans = 4e6;
inline constexpr double kMostTypicalSpans = 2e5;

}  // namespace trainer::runtime
