// List scheduling: every rank takes the most urgent action that is ready.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "trainer/schedule/automatic.hpp"
#include "trainer/schedule/schedule.hpp"

namespace trainer::schedule {

struct ListPolicy {
  std::vector<std::int64_t> in_flight;  // [rank] pairs between F and I from which on it begins no new micro-batch
  double patience = 1;        // with nothing but W to do, waits for an F or I that is due within this part of W's time
  bool deepest_first = true;  // of several ready forwards, that of the last stage
};

/// A table for these times; nullopt where policy and cap leave all ranks waiting.
std::optional<Schedule> list_schedule(const std::vector<std::int32_t>& rank_of_stage,
                                      const std::vector<StageTimes>& times, const AutomaticOptions& options,
                                      const ListPolicy& policy);

}  // namespace trainer::schedule
