// The largest table that is promised: 1F1B on 1,024 ranks with 8,192 micro-batches, in seconds of one core and in
// memory in proportion to the table.
#include <doctest/doctest.h>
#include <sys/resource.h>

#include <ctime>
#include <utility>

#include "tables.hpp"

using namespace trainer::schedule;
using namespace trainer::schedule::test;

namespace {

double processor_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

double peak_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return 1024.0 * static_cast<double>(usage.ru_maxrss);
}

}  // namespace

TEST_CASE("fifty million actions are generated, lowered and verified within twenty seconds of one core") {
  const double begin = processor_seconds();
  const double before = peak_bytes();
  Schedule schedule = lowered(one_f_one_b({1024, 8192, false}));
  const double made = processor_seconds();
  const std::optional<Violation> violation = verify(schedule);
  const double end = processor_seconds();
  REQUIRE_MESSAGE(!violation, violation->message);

  std::size_t actions = 0;
  for (const std::vector<Action>& row : schedule.ranks) actions += row.size();
  // Each micro-batch: F and B on every stage, two sends and two receives on every boundary; and the reductions.
  CHECK(actions == std::size_t{8192} * (2 * 1024 + 4 * 1023) + 1024);
  const double table = static_cast<double>(actions * sizeof(Action));
  MESSAGE(actions << " actions: made in " << made - begin << " s, verified in " << end - made << " s, "
                  << (peak_bytes() - before) / table << " times the table's memory");
  CHECK(end - begin < 20);
  CHECK(peak_bytes() - before < 2 * table);
}
