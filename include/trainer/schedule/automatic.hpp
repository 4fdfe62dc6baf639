// A schedule made for measured times: list scheduling under a memory cap, never slower than the published orders.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/schedule/schedule.hpp"

namespace trainer::schedule {

struct AutomaticOptions {
  std::int64_t micro_batches = 1;
  std::int64_t ranks = 1;      // divides the number of stages
  double transfer = 0;         // of a message, in the unit of the times
  std::int64_t most_held = 0;  // (stage, micro-batch) pairs that a rank may hold from F to W (or B); 0: no limit
  std::int64_t tries = 300;    // tables that are timed in search of a better one
};

struct Automatic {
  Schedule schedule;       // compute actions
  std::string origin;      // "zb-h1", or "list" for one that no generator makes
  double step = 0;         // as simulate() times it
  double lower_bound = 0;  // of the step of any table with this placement, cap and times
  /// How much slower than the bound it may be at most: 0 is proven best.
  double gap() const { return lower_bound > 0 ? step / lower_bound - 1 : 0; }
};

/// The fastest table found for these times (one entry a stage): the best of the generators that fit the cap and have
/// this many stages a rank, or a list schedule that beats it. Deterministic. Placement is the generators': in a loop,
/// or as a V where a rank has two stages; the bound is the lower of both. Throws Error(Usage) where nothing fits the
/// cap.
Automatic automatic(const std::vector<StageTimes>& times, const AutomaticOptions& options);

/// No table with this placement is faster: a rank cannot begin before its first input nor go backward before a
/// micro-batch has been through all stages; behind its last I come the I of the stages below and stage 0's W. Of F at
/// most `most_held` (0: all) run before the first I, of W as many wait behind the last I.
double step_lower_bound(const std::vector<std::int32_t>& rank_of_stage, const std::vector<StageTimes>& times,
                        const AutomaticOptions& options);

}  // namespace trainer::schedule
