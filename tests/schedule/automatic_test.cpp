// Schedules made for given times: valid, within the cap, never slower than the published ones, and the bound is one.
#include <doctest/doctest.h>

#include <algorithm>
#include <random>

#include "check_table.hpp"
#include "tables.hpp"
#include "trainer/core/error.hpp"
#include "trainer/schedule/automatic.hpp"

using namespace trainer;
using namespace trainer::schedule;
using namespace trainer::schedule::test;

namespace {

/// Calls visit(name, table) for every published order with this shape, B joint and split.
template <class Visit>
void for_each_published(std::int64_t ranks, std::int64_t chunks, std::int64_t micro_batches, Visit&& visit) {
  for (const Generator& generator : generators()) {
    if (generator.chunks != 0 && generator.chunks != chunks) continue;
    for (const bool split : {true, false}) {
      if (!split && generator.always_splits) continue;
      visit(generator.name, generator.make({ranks * chunks, micro_batches, split, chunks}));
    }
  }
}

bool fits(const Schedule& table, std::int64_t cap) {
  const std::vector<std::int64_t> held = most_held(table);
  return cap == 0 || *std::max_element(held.begin(), held.end()) <= cap;
}

}  // namespace

TEST_CASE("never slower than a published order on a thousand random cost profiles, and never faster than the bound") {
  std::mt19937 random(5);
  const auto time = [&] { return 0.25 * static_cast<double>(1 + random() % 16); };
  int better = 0;
  int proven = 0;
  for (int trial = 0; trial < 1000; ++trial) {
    AutomaticOptions options;
    const auto chunks = static_cast<std::int64_t>(1 + random() % 2);
    options.ranks = static_cast<std::int64_t>(1 + random() % 4);
    options.micro_batches = static_cast<std::int64_t>(1 + random() % 10);
    options.transfer = random() % 2 == 0 ? 0 : 0.25 * static_cast<double>(random() % 4);
    options.most_held = random() % 2 == 0 ? 0 : chunks * options.ranks + static_cast<std::int64_t>(random() % 6);
    options.tries = 20;
    std::vector<StageTimes> times;
    for (std::int64_t s = 0; s < options.ranks * chunks; ++s) times.push_back({time(), time(), time()});
    CAPTURE(trial);

    const Automatic found = automatic(times, options);
    const Schedule full = lowered(found.schedule);
    REQUIRE_FALSE(verify(full));
    CHECK(simulate(found.schedule, times, options.transfer).step == found.step);
    CHECK(fits(found.schedule, options.most_held));
    CHECK(found.step >= found.lower_bound);
    double fastest = 1e300;
    for_each_published(options.ranks, chunks, options.micro_batches, [&](std::string_view name, const Schedule& table) {
      CAPTURE(name);
      const double step = simulate(table, times, options.transfer).step;
      // Quarters: exact. The bound holds for every table that keeps to the cap.
      if (!fits(table, options.most_held)) return;
      CHECK(found.step <= step);
      CHECK(step >= step_lower_bound(table.rank_of_stage, times, options));
      fastest = std::min(fastest, step);
    });
    better += found.step < fastest ? 1 : 0;
    proven += found.gap() == 0 ? 1 : 0;
  }
  MESSAGE(better << " of 1000 faster than every published order, " << proven << " proven to be the fastest there are");
  CHECK(better > 300);
  CHECK(proven > 100);
}

TEST_CASE("proven best where the published zero-bubble order is") {
  for (const std::int64_t p : {2, 4, 8}) {
    AutomaticOptions options;
    options.ranks = p;
    options.micro_batches = 4 * p;
    const Automatic found = automatic(std::vector<StageTimes>(static_cast<std::size_t>(p), {1, 1, 1}), options);
    CHECK(found.step == static_cast<double>(3 * options.micro_batches + p - 1));
    CHECK(found.gap() == 0);
  }
}

TEST_CASE("a list schedule keeps every promise of the executor") {
  AutomaticOptions options;
  options.ranks = 3;
  options.micro_batches = 7;
  std::mt19937 random(9);
  int lists = 0;
  for (std::uint32_t trial = 0; trial < 40; ++trial) {
    const std::size_t chunks = 1 + random() % 2;
    std::vector<StageTimes> times(3 * chunks);
    for (StageTimes& t : times) {
      t = {static_cast<double>(1 + random() % 5), static_cast<double>(1 + random() % 5),
           static_cast<double>(1 + random() % 5)};
    }
    const Automatic found = automatic(times, options);
    check_table(lowered(found.schedule), trial);
    lists += found.origin == "list" ? 1 : 0;
    CHECK(automatic(times, options).schedule == found.schedule);
  }
  CHECK(lists > 5);
}

TEST_CASE("uneven stages are worth a tenth of 1F1B's step somewhere") {
  AutomaticOptions options;
  options.ranks = 8;
  options.micro_batches = 16;
  // A light embedding, a heavy head.
  std::vector<StageTimes> times(8, {2, 2, 2});
  times.front() = {1, 1, 1};
  times.back() = {3, 3, 1};
  const Automatic found = automatic(times, options);
  CHECK(found.gap() == 0);
  CHECK(simulate(one_f_one_b({8, 16, true}), times).step >= 1.1 * found.step);
}

TEST_CASE("a cap that nothing keeps is said") {
  AutomaticOptions options;
  options.ranks = 2;
  options.micro_batches = 2;
  options.most_held = 1;
  CHECK_THROWS_AS(automatic(std::vector<StageTimes>(4), options), Error);  // two stages a rank hold two
  options.ranks = 4;
  CHECK(most_held(automatic(std::vector<StageTimes>(4), options).schedule) == std::vector<std::int64_t>{1, 1, 1, 1});
}
