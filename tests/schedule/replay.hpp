// The executor's rules once more, written apart from the room's own engine: ticks of an integer clock, every buffer
// with the name of its owner. It checks slots, deadlock and time at once.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/schedule/schedule.hpp"

namespace trainer::schedule::test {

struct Ticks {
  int forward = 1, backward_input = 1, backward_weight = 1;
};

struct ReplayOptions {
  bool eager = false;  // a send completes at once; else when its receive is posted and the message is over
  int transfer = 0;
  std::uint32_t seed = 0;  // order in which ranks are asked, which must not matter
};

/// Most slots taken at once.
struct Peaks {
  std::int32_t activation = 0, weight_input = 0, weight_gradient = 0, output_gradient = 0;
};

struct Replayed {
  std::string fault;      // a rule broken: a slot taken twice, a value missing; "" when none
  bool finished = false;  // false without a fault: nobody can move
  std::int64_t step = 0;
  std::vector<std::vector<std::int64_t>> start;  // [rank][action]; −1 for communication
  std::vector<Peaks> peaks;                      // [stage]
};

Replayed replay(const Schedule& schedule, const std::vector<StageSlots>& slots, const std::vector<Ticks>& ticks,
                const ReplayOptions& options);

}  // namespace trainer::schedule::test
