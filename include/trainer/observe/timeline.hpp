// What all ranks did when, on one time line, and what is made of it: a trace for Perfetto, and a step for the report.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/core/action_log.hpp"

namespace trainer::observe {

/// What a stage keeps of a micro-batch, in bytes.
struct HeldBytes {
  std::int64_t stage = 0;
  std::int64_t forward_to_input = 0;   // from F to I (or B)
  std::int64_t forward_to_weight = 0;  // from F to W (or B)
  std::int64_t input_to_weight = 0;    // from I to W
};

struct RankTimeline {
  std::string place;             // "stage 1, replica 0, tensor 1"
  std::int64_t column = 0;       // ranks of one pipeline have one
  std::vector<Span> spans;       // by rank 0's clock, ordered by end
  std::vector<HeldBytes> bytes;  // of the stages it holds
};

struct Timeline {
  std::vector<RankTimeline> ranks;
  std::int64_t typical = 0;      // the step whose duration on rank 0 is the median of those kept; 0: none kept
  std::int64_t clock_error = 0;  // nanoseconds, of the worst rank; 0: all share a clock
};

/// A span's name in a trace and in actions.json: "2F0", "step 12", "agreement".
std::string span_name(const Span& span);

/// Trace Event JSON: a process a rank, its activities as slices, an arrow from each send to its receive, a counter of
/// the activations it holds, and markers of steps. Loads in Perfetto and chrome://tracing.
std::string trace_json(const Timeline& timeline);

/// One step for the report: {"step", "seconds", "ranks": [{"rank", "place", "spans": [[name, begin, end], …]}, …]},
/// seconds from the step's beginning.
std::string actions_json(const Timeline& timeline, std::int64_t step);

}  // namespace trainer::observe
