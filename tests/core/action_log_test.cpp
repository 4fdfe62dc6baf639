// The log of a rank: sums that add up, spans that are kept, a bounded memory.
#include <doctest/doctest.h>

#include <numeric>

#include "trainer/core/action_log.hpp"
#include "trainer/core/error.hpp"

namespace trainer {
namespace {

std::int64_t now = 0;
std::int64_t test_clock() { return now; }

std::int64_t at(const ActivityTimes& times, Activity activity) { return times[static_cast<std::size_t>(activity)]; }

std::int64_t sum(const ActivityTimes& times) { return std::accumulate(times.begin(), times.end(), std::int64_t{0}); }

// A step of 100,000 ns: data 3,000 in a forward of 20,000 of stage 1, then a receive of 7,000; agreement 5,000.
void one_step(ActionLog& log, std::int64_t step) {
  const ActivitySpan whole(&log, Activity::Step, -1, step);
  {
    const ActivitySpan pass(&log, Activity::Pass);
    {
      const ActivitySpan forward(&log, Activity::Forward, 1, 0);
      now += 10'000;
      {
        const ActivitySpan data(&log, Activity::Data);
        now += 3'000;
      }
      now += 7'000;
    }
    const ActivitySpan receive(&log, Activity::ReceiveBackward, 1, 0);
    now += 7'000;
  }
  now += 68'000;
  const ActivitySpan agreement(&log, Activity::Agreement);
  now += 5'000;
}

TEST_CASE("the times of a step are apart and sum to it") {
  ActionLog log(100, 2, test_clock);
  now = 12345;
  one_step(log, 1);
  CHECK(log.step_nanoseconds() == 100'000);
  CHECK(sum(log.times()) == 100'000);
  CHECK(at(log.times(), Activity::Forward) == 17'000);
  CHECK(at(log.times(), Activity::Data) == 3'000);
  CHECK(at(log.times(), Activity::ReceiveBackward) == 7'000);
  CHECK(at(log.times(), Activity::Agreement) == 5'000);
  CHECK(at(log.times(), Activity::Pass) == 0);
  CHECK(at(log.times(), Activity::Step) == 68'000);
  now += 1'000'000;  // between steps: nobody's
  one_step(log, 2);
  CHECK(log.step_nanoseconds() == 100'000);
  CHECK(sum(log.times()) == 200'000);
  CHECK(log.pass_nanoseconds() == 54'000);
  CHECK(log.stages()[1].nanoseconds[0] == 40'000);  // with the waits in them
  CHECK(log.stages()[1].count[0] == 2);
  CHECK(log.stages()[0].count[0] == 0);
}

TEST_CASE("what is inside an evaluation is its own business") {
  ActionLog log(100, 2, test_clock);
  one_step(log, 1);
  {
    const ActivitySpan evaluation(&log, Activity::Evaluation);
    const ActivitySpan forward(&log, Activity::Forward, 0, 0);
    const ActivitySpan wait(&log, Activity::TensorSum);
    now += 500;
  }
  CHECK(at(log.times(), Activity::Evaluation) == 500);
  CHECK(at(log.times(), Activity::TensorSum) == 0);
  CHECK(log.stages()[0].count[0] == 0);
  const std::vector<Span> kept = log.kept();
  CHECK(kept.back().activity == Activity::Evaluation);
  CHECK(kept.size() == 7);
}

TEST_CASE("kept are whole steps only, the newest") {
  ActionLog log(16, 2, test_clock);
  for (std::int64_t step = 1; step <= 9; ++step) one_step(log, step);
  const std::vector<Span> kept = log.kept();
  REQUIRE(kept.size() == 12);  // 6 a step; a third one has lost its beginning
  CHECK(kept[5].activity == Activity::Step);
  CHECK(kept[5].index == 8);
  CHECK(kept[11].index == 9);
  CHECK(kept[0].activity == Activity::Data);
  CHECK(kept[1].activity == Activity::Forward);
  CHECK(kept[1].stage == 1);
  CHECK(kept[1].begin <= kept[0].begin);
  CHECK(kept[1].end >= kept[0].end);
  for (std::size_t i = 1; i < kept.size(); ++i) CHECK(kept[i - 1].end <= kept[i].end);

  ActionLog small(5, 2, test_clock);  // a step does not fit: nothing is better than a part of it
  for (std::int64_t step = 1; step <= 3; ++step) one_step(small, step);
  CHECK(small.kept().empty());
  CHECK(sum(small.times()) == 300'000);
}

TEST_CASE("steps asked for") {
  ActionLog log(100, 2, test_clock);
  log.keep_steps(2, 3);
  for (std::int64_t step = 1; step <= 5; ++step) one_step(log, step);
  const std::vector<Span> kept = log.kept();
  REQUIRE(kept.size() == 12);
  CHECK(kept[5].index == 2);
  CHECK(kept[11].index == 3);
  CHECK(sum(log.times()) == 500'000);
}

TEST_CASE("waits too short to see are counted, not kept") {
  ActionLog log(100, 1, test_clock);
  {
    const ActivitySpan step(&log, Activity::Step, -1, 1);
    for (const std::int64_t nanoseconds : {999, 1000}) {
      const ActivitySpan wait(&log, Activity::SendWait);
      now += nanoseconds;
    }
  }
  CHECK(log.kept().size() == 2);
  CHECK(at(log.times(), Activity::SendWait) == 1999);
}

TEST_CASE("scopes that do not match are a mistake of ours") {
  ActionLog log(100, 1, test_clock);
  CHECK_THROWS_AS(log.end(), Error);
  for (int i = 0; i < 8; ++i) log.begin(Activity::Pass);
  CHECK_THROWS_AS(log.begin(Activity::Pass), Error);
}

TEST_CASE("every activity has a name of its own") {
  for (std::size_t a = 0; a < kActivities; ++a) {
    CHECK(!name_of(static_cast<Activity>(a)).empty());
    for (std::size_t b = 0; b < a; ++b) CHECK(name_of(static_cast<Activity>(a)) != name_of(static_cast<Activity>(b)));
  }
  CHECK(name_of(Activity::Checkpoint) == "checkpoint");
}

}  // namespace
}  // namespace trainer
