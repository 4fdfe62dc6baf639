// Generators with several stages a rank, and ZB-H2: valid for every shape, idle as published, memory as published.
#include <doctest/doctest.h>

#include <algorithm>

#include "check_table.hpp"
#include "tables.hpp"
#include "trainer/core/error.hpp"

using namespace trainer;
using namespace trainer::schedule;
using namespace trainer::schedule::test;

namespace {

/// Calls visit(generator, chunks, group) for each form that a generator has on `ranks` ranks with at most
/// `most_chunks`.
template <class Visit>
void for_each_form(std::int64_t ranks, std::int64_t most_chunks, Visit&& visit) {
  for (const Generator& generator : generators()) {
    if (generator.chunks > 0) {
      visit(generator, generator.chunks, 0);
      continue;
    }
    for (std::int64_t chunks = 1; chunks <= most_chunks; ++chunks) {
      for (const std::int64_t group : {std::int64_t{0}, ranks + 1, 2 * ranks}) visit(generator, chunks, group);
    }
  }
}

/// Times of a stage that make a rank's whole share {f, i, w}.
std::vector<StageTimes> shared(const Schedule& schedule, const StageTimes& t) {
  const auto chunks = static_cast<double>(schedule.stages) / static_cast<double>(schedule.ranks.size());
  return std::vector<StageTimes>(static_cast<std::size_t>(schedule.stages),
                                 {t.forward / chunks, t.backward_input / chunks, t.backward_weight / chunks});
}

/// Idle time of a rank under a barrier at the end of the step. Powers of two divide: exact.
double idle(const Schedule& schedule, const StageTimes& t) {
  const Timing timing = simulate(schedule, shared(schedule, t));
  for (const double busy : timing.busy) CHECK(busy == timing.busy[0]);
  return timing.step - timing.busy[0];
}

/// The longest that a rank idles between its own first and last action.
double idle_in_own_span(const Schedule& schedule, const StageTimes& t) {
  const std::vector<StageTimes> times = shared(schedule, t);
  const Timing timing = simulate(schedule, times);
  double most = 0;
  for (std::size_t r = 0; r < schedule.ranks.size(); ++r) {
    const ActionKind last = schedule.ranks[r].back().kind;
    REQUIRE(last == ActionKind::BackwardWeight);
    const double end = timing.start[r].back() + times[0].backward_weight;
    most = std::max(most, end - timing.start[r].front() - timing.busy[r]);
  }
  return most;
}

/// Most (stage, micro-batch) pairs of a rank between F and the end of their I (or B).
std::int64_t peak(const std::vector<Action>& row) {
  std::int64_t held = 0;
  std::int64_t most = 0;
  for (const Action& action : row) {
    if (action.kind == ActionKind::Forward) most = std::max(most, ++held);
    if (action.kind == ActionKind::Backward || action.kind == ActionKind::BackwardInput) --held;
  }
  return most;
}

/// DualPipe-V with each F and the whole B behind it as one block: nothing leaves before both are done. The last rank's
/// first pair stays apart, as published.
Schedule fused(const Schedule& schedule) {
  Schedule result = schedule;
  for (std::size_t r = 0; r < schedule.ranks.size(); ++r) {
    std::vector<Action>& row = result.ranks[r];
    const auto compute_behind = [&](std::size_t at) {
      for (++at; at < row.size() && row[at].kind > ActionKind::BackwardWeight;) ++at;
      return at;
    };
    bool apart = r + 1 == schedule.ranks.size();
    for (std::size_t i = 0; i < row.size(); ++i) {
      if (row[i].kind != ActionKind::Forward) continue;
      const std::size_t j = compute_behind(i);
      if (j >= row.size() || row[j].kind != ActionKind::Backward) continue;
      if (std::exchange(apart, false)) continue;
      // F send receive B → receive F B send: the sends, behind B; the receives of B, before F.
      const auto at = [&](std::size_t k) { return row.begin() + static_cast<std::ptrdiff_t>(k); };
      const auto is_send = [](const Action& a) {
        return a.kind == ActionKind::SendForward || a.kind == ActionKind::SendBackward;
      };
      std::stable_partition(at(i), at(j + 1),
                            [&](const Action& a) { return !is_send(a) && a.kind > ActionKind::BackwardWeight; });
      std::stable_partition(at(i), at(j + 1), [&](const Action& a) { return !is_send(a); });
      i = j;
    }
  }
  return result;
}

}  // namespace

TEST_CASE("every generator is valid for every shape") {
  std::int64_t tables = 0;
  for (std::int64_t ranks = 1; ranks <= 16; ++ranks) {
    for_each_form(ranks, std::max<std::int64_t>(2, 16 / ranks),
                  [&](const Generator& g, std::int64_t chunks, std::int64_t group) {
                    for (std::int64_t m = 1; m <= 40; ++m) {
                      const std::optional<Violation> violation = verify(generated(g, ranks, chunks, m, true, group));
                      ++tables;
                      if (!violation) continue;
                      FAIL(g.name << " on " << ranks << " ranks, " << chunks << " chunks, groups of " << group << ", "
                                  << m << " micro-batches: " << violation->message);
                    }
                  });
  }
  CHECK(tables > 10000);
}

TEST_CASE("what the executor does with several stages a rank is what slots, verifier and simulator say") {
  std::uint32_t seed = 1;
  for (std::int64_t ranks = 1; ranks <= 5; ++ranks) {
    for_each_form(ranks, 3, [&](const Generator& g, std::int64_t chunks, std::int64_t group) {
      CAPTURE(g.name);
      for (const std::int64_t m : {1, 2, 5, 8, 11}) {
        for (const bool split : {false, true}) {
          if (split || !g.always_splits) check_table(generated(g, ranks, chunks, m, split, group), seed++);
        }
      }
    });
  }
}

TEST_CASE("one chunk interleaved is 1F1B") {
  for (const bool split : {false, true}) {
    CHECK(interleaved({5, 9, split}) == one_f_one_b({5, 9, split}));
    CHECK(interleaved({4, 3, split}) == one_f_one_b({4, 3, split}));
  }
}

TEST_CASE("idle times of the published orders at four ranks and sixteen micro-batches") {
  const StageTimes equal{1, 1, 1};
  const StageTimes cheap_w{2, 3, 1};
  const auto v = [](std::int64_t chunks, bool split) { return interleaved({4 * chunks, 16, split, chunks}); };
  CHECK(idle(v(2, false), equal) == 4.5);
  CHECK(idle(v(4, false), equal) == 2.25);
  CHECK(idle(v(2, false), cheap_w) == 9);
  CHECK(idle(v(4, false), cheap_w) == 4.5);
  CHECK(idle(v(2, true), cheap_w) == 7.5);  // (p − 1)(F + I) / v: the gradient leaves before W

  const Schedule h2 = zero_bubble_h2({4, 16, true});
  CHECK(idle(h2, equal) == 3);
  CHECK(idle_in_own_span(h2, equal) == 0);
  CHECK(idle(h2, cheap_w) == 9);
  CHECK(idle_in_own_span(h2, cheap_w) == 9);

  const Schedule zbv = zero_bubble_v({8, 16, true, 2});
  CHECK(idle(zbv, equal) == 1.5);
  CHECK(idle_in_own_span(zbv, equal) == 0);
  CHECK(idle(zbv, cheap_w) == 6);
}

TEST_CASE("interleaving divides the bubble of 1F1B by the chunks") {
  for (std::int64_t p = 1; p <= 6; ++p) {
    for (const std::int64_t chunks : {1, 2, 4}) {
      for (const std::int64_t rounds : {1, 2, 3}) {
        const auto others = static_cast<double>(p - 1);
        const auto v = static_cast<double>(chunks);
        CHECK(idle(interleaved({p * chunks, p * rounds, false, chunks}), {2, 3, 1}) == others * 6 / v);
        CHECK(idle(interleaved({p * chunks, p * rounds, true, chunks}), {2, 3, 1}) == others * 5 / v);
      }
    }
  }
}

TEST_CASE("ZB-H2 idles (p - 1)(F + I - 2W), under a barrier never less than the last rank's start") {
  for (std::int64_t p = 1; p <= 6; ++p) {
    for (const std::int64_t m : {4 * p, 5 * p + 1}) {
      const auto others = static_cast<double>(p - 1);
      CHECK(idle(zero_bubble_h2({p, m, true}), {2, 3, 1}) == others * 3);
      CHECK(idle_in_own_span(zero_bubble_h2({p, m, true}), {1, 1, 1}) == 0);
      CHECK(idle(zero_bubble_h2({p, m, true}), {1, 1, 1}) == others);
    }
  }
}

// (p − 1)(F&B + B − 3W) in times of a half-stage counts F&B as one block; where nobody overlaps the two, F&B = F + B
// and its messages leave at its end. Our F and B are two actions, and F's message leaves before B: less idle than the
// formula.
TEST_CASE("DualPipe-V idles what is published where F&B is one block, and less where it is two actions") {
  for (const std::int64_t p : {2, 4, 6}) {
    CAPTURE(p);
    const Schedule apart = add_communication(dualpipe_v({2 * p, 16, true, 2}));
    const Schedule block = fused(apart);
    REQUIRE_FALSE(verify(block));
    const auto others = static_cast<double>(p - 1);
    CHECK(idle(block, {2, 2, 2}) == others * 2);
    CHECK(idle(apart, {2, 2, 2}) == others);
    // The formula's last terms are the cool-down's; where I is longer than F, part of it hides.
    CHECK(idle(block, {4, 6, 2}) <= others * 7);
    CHECK(idle(block, {4, 6, 2}) >= others * 7 - 2);
    CHECK(idle(apart, {4, 6, 2}) < idle(block, {4, 6, 2}));
  }
  CHECK(idle(dualpipe_v({8, 16, true, 2}), {1, 1, 1}) == 1.5);
  CHECK(idle(dualpipe_v({8, 16, true, 2}), {2, 3, 1}) == 6.5);
}

TEST_CASE("activations held at most are the published ones") {
  for (std::int64_t p = 1; p <= 8; ++p) {
    CAPTURE(p);
    const std::int64_t m = 4 * p;
    for (const std::int64_t chunks : {2, 3, 4}) {  // p + (p − 1)/v stages' worth on rank 0
      CHECK(peak(interleaved({p * chunks, m, false, chunks}).ranks[0]) == chunks * p + p - 1);
    }
    for (std::int64_t r = 0; r < p; ++r) {
      const auto rank = static_cast<std::size_t>(r);
      CHECK(peak(zero_bubble_h2({p, m, true}).ranks[rank]) == 2 * (p - r) - 1);
      CHECK(peak(zero_bubble_v({2 * p, m, true, 2}).ranks[rank]) == 2 * p);   // p stages' worth
      CHECK(peak(dualpipe_v({2 * p, m, true, 2}).ranks[rank]) <= 2 * p + 1);  // published with 2p stages a V
    }
  }
}

TEST_CASE("shapes that a generator does not have are refused") {
  CHECK_THROWS_AS(gpipe({4, 2, true, 2}), Error);
  CHECK_THROWS_AS(one_f_one_b({4, 2, true, 2}), Error);
  CHECK_THROWS_AS(zero_bubble_h2({4, 2, false}), Error);
  CHECK_THROWS_AS(zero_bubble_v({4, 2, true}), Error);
  CHECK_THROWS_AS(zero_bubble_v({4, 2, false, 2}), Error);
  CHECK_THROWS_AS(dualpipe_v({6, 2, true, 3}), Error);
  CHECK_THROWS_AS(interleaved({5, 2, true, 2}), Error);
  CHECK_THROWS_AS(interleaved({8, 8, true, 2, 3}), Error);
  CHECK(find_generator("zb-v") != nullptr);
  CHECK(find_generator("zbv") == nullptr);
}
