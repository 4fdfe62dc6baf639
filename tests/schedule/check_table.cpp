#include "check_table.hpp"

#include <doctest/doctest.h>

#include <random>

#include "tables.hpp"

namespace trainer::schedule::test {
namespace {

std::vector<StageTimes> seconds(const std::vector<Ticks>& ticks) {
  std::vector<StageTimes> times;
  for (const Ticks& t : ticks) {
    times.push_back({static_cast<double>(t.forward), static_cast<double>(t.backward_input),
                     static_cast<double>(t.backward_weight)});
  }
  return times;
}

std::vector<Ticks> random_ticks(std::int64_t stages, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<Ticks> ticks(static_cast<std::size_t>(stages));
  for (Ticks& t : ticks) {
    t = {static_cast<int>(random() % 5), static_cast<int>(random() % 5), static_cast<int>(random() % 5)};
  }
  return ticks;
}

}  // namespace

void check_slots(const Replayed& run, const std::vector<StageSlots>& slots) {
  for (std::size_t s = 0; s < slots.size(); ++s) {
    CAPTURE(s);
    CHECK(run.peaks[s].activation == slots[s].activation_count);
    CHECK(run.peaks[s].weight_input == slots[s].weight_input_count);
    CHECK(run.peaks[s].weight_gradient == slots[s].weight_gradient_count);
    CHECK(run.peaks[s].output_gradient == slots[s].output_gradient_count);
  }
}

void check_table(const Schedule& schedule, std::uint32_t seed) {
  INFO(to_csv(schedule));
  const std::optional<Violation> violation = verify(schedule);
  REQUIRE_MESSAGE(!violation, violation->message);

  const std::vector<StageSlots> slots = assign_slots(schedule);
  const std::vector<Ticks> ticks = random_ticks(schedule.stages, seed);
  const int transfer = static_cast<int>(seed % 3);
  const Replayed eager = replay(schedule, slots, ticks, {true, transfer, seed});
  CHECK(eager.fault == "");
  CHECK(eager.finished);
  check_slots(eager, slots);

  const Replayed rendezvous = replay(schedule, slots, ticks, {false, transfer, seed});
  CHECK(rendezvous.fault == "");
  CHECK(rendezvous.finished);
  check_slots(rendezvous, slots);

  // Integers: exact in double.
  const Timing timing = simulate(schedule, seconds(ticks), transfer);
  CHECK(timing.step == static_cast<double>(rendezvous.step));
  for (std::size_t r = 0; r < schedule.ranks.size(); ++r) {
    REQUIRE(timing.start[r].size() == schedule.ranks[r].size());
    for (std::size_t i = 0; i < schedule.ranks[r].size(); ++i) {
      if (rendezvous.start[r][i] >= 0) CHECK(timing.start[r][i] == static_cast<double>(rendezvous.start[r][i]));
    }
  }
}

}  // namespace trainer::schedule::test
