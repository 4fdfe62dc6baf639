// The simulator against closed forms. All times are small integers, so sums in double are exact and compared with ==.
#include <doctest/doctest.h>

#include <algorithm>

#include "tables.hpp"

using namespace trainer;
using namespace trainer::schedule;
using namespace trainer::schedule::test;

namespace {

std::vector<StageTimes> uniform(std::int64_t stages, const StageTimes& times) {
  return std::vector<StageTimes>(static_cast<std::size_t>(stages), times);
}

const std::vector<StageTimes> kTimes{{1, 1, 1}, {2, 3, 1}, {1, 2, 3}, {3, 1, 1}, {1, 5, 0}, {7, 1, 2}, {1, 1, 9}};

/// Each rank's idle time is `idle`.
void check_idle(const Schedule& schedule, const StageTimes& times, double idle) {
  const std::vector<StageTimes> all = uniform(schedule.stages, times);
  const Timing timing = simulate(schedule, all);
  CAPTURE(times.forward);
  CAPTURE(times.backward_input);
  CAPTURE(times.backward_weight);
  INFO(draw(schedule, all));
  const double stage = times.forward + (schedule.forward_only ? 0 : times.backward_input + times.backward_weight);
  for (double busy : timing.busy) {
    CHECK(busy == static_cast<double>(schedule.micro_batches) * stage);
    CHECK(timing.step - busy == idle);
  }
}

}  // namespace

TEST_CASE("idle times are the published closed forms") {
  for (std::int64_t p = 1; p <= 7; ++p) {
    for (std::int64_t m = 1; m <= 14; ++m) {
      for (const StageTimes& t : kTimes) {
        const auto others = static_cast<double>(p - 1);
        const double joint = others * (t.forward + t.backward_input + t.backward_weight);
        const double split = others * (t.forward + t.backward_input);
        check_idle(gpipe({p, m, false}), t, joint);
        check_idle(gpipe({p, m, true}), t, split);
        check_idle(one_f_one_b({p, m, false}), t, joint);
        check_idle(one_f_one_b({p, m, true}), t, split);
        check_idle(forward_only({p, m, true}), t, others * t.forward);
      }
    }
  }
}

TEST_CASE("the worked example of four stages and sixteen micro-batches") {
  const auto idle = [](const Schedule& schedule, const StageTimes& t) {
    const Timing timing = simulate(schedule, uniform(4, t));
    return timing.step - timing.busy[0];
  };
  CHECK(idle(one_f_one_b({4, 16, false}), {1, 1, 1}) == 9);
  CHECK(idle(one_f_one_b({4, 16, false}), {2, 3, 1}) == 18);
  CHECK(idle(one_f_one_b({4, 16, true}), {2, 3, 1}) == 15);
  CHECK(idle(zero_bubble_h1({4, 16, true}), {1, 1, 1}) == 3);
  CHECK(idle(zero_bubble_h1({4, 16, true}), {2, 3, 1}) == 12);
}

TEST_CASE("ZB-H1 idles (p - 1)(F + I - W) where W fits the gaps, and never more than 1F1B") {
  for (std::int64_t p = 1; p <= 7; ++p) {
    for (std::int64_t m = 1; m <= 20; ++m) {
      for (const StageTimes& t : kTimes) {
        CAPTURE(p);
        CAPTURE(m);
        CHECK(simulate(zero_bubble_h1({p, m, true}), uniform(p, t)).step <=
              simulate(one_f_one_b({p, m, true}), uniform(p, t)).step);
        const bool fits = t.backward_weight <= t.forward && t.backward_weight <= t.backward_input;
        const auto others = static_cast<double>(p - 1);
        if (m < 2 * p || !fits) continue;
        check_idle(zero_bubble_h1({p, m, true}), t, others * (t.forward + t.backward_input - t.backward_weight));
      }
    }
  }
}

TEST_CASE("the bubble is (p - 1) / (m + p - 1) for GPipe") {
  // Both sides are one rounded division of exact integers, and 1 - x rounds once more.
  const Timing timing = simulate(gpipe({4, 8, false}), uniform(4, {1, 1, 1}));
  CHECK(timing.bubble() == doctest::Approx(3.0 / 11.0).epsilon(1e-15));
  CHECK(Timing{}.bubble() == 0);
}

TEST_CASE("messages take their time, and leave the sender free") {
  // F, t, F, I, t, B on the longest way, with W of the last stage beside it.
  CHECK(simulate(one_f_one_b({2, 1, true}), uniform(2, {2, 3, 1}), 5).step == 2 + 5 + 2 + 3 + 5 + 4);
  CHECK(simulate(one_f_one_b({2, 1, false}), uniform(2, {2, 3, 1}), 5).step == 2 + 5 + 2 + 4 + 5 + 4);
  // Rank 0 computes F1 while F0's outputs travel.
  const Timing timing = simulate(gpipe({2, 2, false}), uniform(2, {2, 3, 1}), 5);
  CHECK(timing.start[0][1] == 2);
  CHECK(timing.start[1][0] == 7);
}

TEST_CASE("a sender waits for a ring entry, not for more") {
  // Messages take 10 and follow one another as receives are posted: message k is received at 11 + 10k. F2 needs message
  // 0's entry (11), F3 message 1's (21).
  const Schedule schedule = add_communication(forward_only({2, 4, true}));
  const Timing timing = simulate(schedule, uniform(2, {1, 1, 1}), 10);
  const std::vector<double>& start = timing.start[0];  // F0 S0 F1 S1 F2 S2 F3 S3
  CHECK(start[0] == 0);
  CHECK(start[2] == 1);
  CHECK(start[4] == 11);
  CHECK(start[6] == 21);
  CHECK(timing.step == 42);  // message 3 received at 41
}

TEST_CASE("communication in the table changes no time, and starts are given for the table's own actions") {
  for (const Schedule& compute : {one_f_one_b({4, 6, true}), chunked_gpipe(5, {0, 1, 0, 1}, true)}) {
    const std::vector<StageTimes> times = uniform(4, {2, 3, 1});
    const Schedule full = lowered(compute);
    const Timing a = simulate(compute, times, 1);
    const Timing b = simulate(full, times, 1);
    CHECK(a.step == b.step);
    CHECK(a.busy == b.busy);
    for (std::size_t r = 0; r < compute.ranks.size(); ++r) {
      REQUIRE(a.start[r].size() == compute.ranks[r].size());
      REQUIRE(b.start[r].size() == full.ranks[r].size());
      CHECK(std::is_sorted(b.start[r].begin(), b.start[r].end()));
    }
  }
}

TEST_CASE("several stages a rank are timed as one rank") {
  // One rank: no idling whatever the chunks.
  CHECK(simulate(chunked_gpipe(3, {0, 0, 0}, true), uniform(3, {2, 3, 1})).bubble() == 0);
  // Two ranks, two chunks each, one micro-batch: strictly one after the other.
  CHECK(simulate(chunked_gpipe(1, {0, 1, 0, 1}, false), uniform(4, {2, 3, 1}), 1).step == 4 * (2 + 4) + 6);
}

TEST_CASE("the drawing shows who idles") {
  const std::string picture = draw(one_f_one_b({2, 2, false}), uniform(2, {1, 1, 1}));
  CHECK(picture ==
        "rank 0  F0 F1 ......B0--- ...B1---\n"
        "rank 1  ...F0 B0--- F1 B1--- ......\n");
}

TEST_CASE("the drawing names the stage where a rank holds several, and cuts labels of very short actions") {
  CHECK(draw(chunked_gpipe(1, {0, 1, 0}, false), uniform(3, {1, 1, 0})) ==
        "rank 0  0F0 ....2F0 2B0 ....0B0\n"
        "rank 1  ....1F0 ........1B0 ....\n");
  // The embedding's stage takes a hundredth of the other's time: no column, rather than hundreds for the others.
  const std::string picture = draw(one_f_one_b({2, 1, false}), {{0.01, 0.01, 0}, {1, 1, 0}});
  CHECK(picture == "rank 0  " + std::string(48, '.') + "\nrank 1  F0" + std::string(21, '-') + " B0" +
                       std::string(21, '-') + "\n");
}

TEST_CASE("without a barrier zero-bubble orders lose what the end of a step cost them") {
  const auto idle = [](const Schedule& schedule, const StageTimes& t) {
    const Timing timing = simulate_without_barrier(add_reductions(add_communication(schedule)), uniform(4, t));
    return timing.step - timing.busy[0];
  };
  // ZB-H2's published idle time, (p - 1)(F + I - 2W), is a rank's own span; a barrier adds (p - 1)W.
  CHECK(idle(zero_bubble_h2({4, 16, true}), {1, 1, 1}) == 0);
  CHECK(idle(zero_bubble_h2({4, 16, true}), {2, 3, 1}) == 9);
  CHECK(idle(zero_bubble_h1({4, 16, true}), {1, 1, 1}) == 3);
  CHECK(idle(one_f_one_b({4, 16, true}), {1, 1, 1}) == 6);
  for (std::int64_t p = 1; p <= 6; ++p) {
    for (const StageTimes& t : kTimes) {
      for (const Schedule& schedule : {gpipe({p, 5, true}), one_f_one_b({p, 9, true}), zero_bubble_h1({p, 12, true}),
                                       zero_bubble_h2({p, 12, true})}) {
        const Timing with = simulate(schedule, uniform(p, t));
        const Timing without = simulate_without_barrier(schedule, uniform(p, t));
        CHECK(without.step <= with.step);
        CHECK(without.step >= with.busy[0]);
        CHECK(without.busy == with.busy);
      }
    }
  }
}
