// Every generator over stages × micro-batches: valid, slots sound and minimal, no deadlock, times as replayed.
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <random>

#include "check_table.hpp"
#include "replay.hpp"
#include "tables.hpp"

using namespace trainer;
using namespace trainer::schedule;
using namespace trainer::schedule::test;

TEST_CASE("every generated table is valid, fits its slots and comes to its end") {
  std::uint32_t seed = 1;
  for (std::int64_t p = 1; p <= 8; ++p) {
    for (std::int64_t m = 1; m <= 12; ++m) {
      CAPTURE(p);
      CAPTURE(m);
      for (bool split : {false, true}) {
        check_table(lowered(gpipe({p, m, split})), seed++);
        check_table(lowered(one_f_one_b({p, m, split})), seed++);
      }
      check_table(lowered(zero_bubble_h1({p, m, true})), seed++);
      check_table(lowered(forward_only({p, m, true})), seed++);
    }
  }
}

TEST_CASE("tables with several stages a rank are too") {
  std::uint32_t seed = 1;
  for (const std::vector<std::int32_t>& ranks : std::vector<std::vector<std::int32_t>>{
           {0, 0}, {0, 1, 0, 1}, {0, 1, 2, 0, 1, 2}, {0, 0, 1, 1}, {0, 1, 1, 0}, {1, 0, 2, 2, 1}}) {
    for (std::int64_t m = 1; m <= 6; ++m) {
      for (bool split : {false, true}) check_table(lowered(chunked_gpipe(m, ranks, split)), seed++);
    }
  }
}

TEST_CASE("peak activations are the published ones, plus the posted receive") {
  for (std::int64_t p = 1; p <= 8; ++p) {
    for (std::int64_t m = 1; m <= 12; ++m) {
      for (bool split : {false, true}) {
        const std::vector<StageSlots> interleaved = assign_slots(lowered(one_f_one_b({p, m, split})));
        const std::vector<StageSlots> gpiped = assign_slots(lowered(gpipe({p, m, split})));
        for (std::int64_t r = 0; r < p; ++r) {
          const StageSlots& a = interleaved[static_cast<std::size_t>(r)];
          CHECK(a.activation_count == std::min(p - r, m));
          CHECK(a.weight_input_count == std::min(p - r + (r > 0 ? 1 : 0), m));
          const StageSlots& b = gpiped[static_cast<std::size_t>(r)];
          CHECK(b.activation_count == m);
          CHECK(b.weight_input_count == m);
          for (const StageSlots& slots : {a, b}) {
            CHECK(slots.weight_gradient_count == 1);
            // The one that is read and the one that is posted.
            CHECK(slots.output_gradient_count == (r + 1 == p ? 0 : std::min<std::int64_t>(2, m)));
          }
        }
        const std::vector<StageSlots> late = assign_slots(lowered(zero_bubble_h1({p, m, true})));
        for (std::int64_t r = 0; r < p; ++r) {
          const StageSlots& d = late[static_cast<std::size_t>(r)];
          CHECK(d.activation_count == std::min(p - r, m));  // I frees them as 1F1B's does
          CHECK(d.weight_input_count <= std::min(p + (r > 0 ? 1 : 0), m));
          CHECK(d.weight_gradient_count <= std::min(p, m));
        }
        const std::vector<StageSlots> evaluation = assign_slots(add_communication(forward_only({p, m, split})));
        for (std::int64_t r = 0; r < p; ++r) {
          const StageSlots& c = evaluation[static_cast<std::size_t>(r)];
          CHECK(c.activation_count == 1);
          CHECK(c.weight_input_count == std::min<std::int64_t>(r > 0 ? 2 : 1, m));
          CHECK(c.weight_gradient_count == 0);
          CHECK(c.output_gradient_count == 0);
        }
      }
    }
  }
}

TEST_CASE("the verifier and the replay agree on tables with random damage") {
  std::mt19937 random(3);
  int valid = 0;
  int deadlocks = 0;
  for (std::uint32_t trial = 0; trial < 6000; ++trial) {
    const auto p = static_cast<std::int64_t>(2 + random() % 3);
    const auto m = static_cast<std::int64_t>(1 + random() % 5);
    Schedule schedule = lowered(random() % 2 == 0 ? one_f_one_b({p, m, random() % 2 == 0})
                                                  : chunked_gpipe(m, {0, 1, 1, 0, 1}, random() % 2 == 0));
    for (std::uint32_t damage = 1 + random() % 3; damage > 0; --damage) {
      std::vector<Action>& row = schedule.ranks[random() % schedule.ranks.size()];
      const std::size_t from = random() % row.size();
      const std::size_t to = random() % 2 == 0 ? std::min(from + 1, row.size() - 1) : random() % row.size();
      const Action moved = row[from];
      row.erase(row.begin() + static_cast<std::ptrdiff_t>(from));
      row.insert(row.begin() + static_cast<std::ptrdiff_t>(to), moved);
    }
    INFO(to_csv(schedule));
    const std::optional<Violation> violation = verify(schedule);
    const bool deadlock = violation && violation->message.starts_with("deadlock");
    if (violation && !deadlock) continue;
    if (violation) INFO(violation->message);
    const std::vector<Ticks> ticks(static_cast<std::size_t>(schedule.stages));
    const std::vector<StageSlots> slots = assign_slots(schedule);
    const Replayed run = replay(schedule, slots, ticks, {false, 0, trial});
    CHECK(run.finished == !deadlock);
    // A value that a neighbour on the same rank has not made is a fault to the replay, a wait to the verifier.
    CHECK((run.fault == "" || run.fault.ends_with("not received")));
    ++(deadlock ? deadlocks : valid);
    if (deadlock) continue;
    check_slots(run, slots);
    CHECK(replay(schedule, slots, ticks, {true, 0, trial}).finished);
  }
  CHECK(valid > 300);
  CHECK(deadlocks > 200);
}

TEST_CASE("a large table is lowered and verified at once") {
  const auto begin = std::chrono::steady_clock::now();
  const Schedule schedule = lowered(one_f_one_b({64, 512, true}));
  CHECK_FALSE(verify(schedule));
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
  MESSAGE("64 stages, 512 micro-batches: " << elapsed.count() << " s");
  CHECK(elapsed.count() < 1.0);  // takes a few hundredths; a quadratic pass would take minutes
}
