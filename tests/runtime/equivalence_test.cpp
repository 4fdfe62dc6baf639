// Any layout gives what one rank gives: ranks as threads of this process.
#include <doctest/doctest.h>

#include <unistd.h>

#include <cstdlib>

#include "support/equivalence.hpp"

using namespace trainer;

namespace {

std::string scratch() {
  static int count = 0;
  const char* tmp = std::getenv("TMPDIR");
  return std::string(tmp ? tmp : "/tmp") + "/trainer-equivalence-" + std::to_string(getpid()) + "-" +
         std::to_string(count++);
}

test::Trained run_threads(const test::Case& c) {
  test::Trained result;
  const std::string directory = scratch();
  comm::run_in_process(static_cast<int>(c.ranks()), [&](comm::Communicator& world) {
    test::Trained mine = test::run(world, c, directory);
    if (world.rank() == 0) result = std::move(mine);
  });
  return result;
}

}  // namespace

TEST_CASE("any layout is one rank") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  std::map<std::string, test::Trained> references;
  for (std::int64_t ranks = 1; ranks <= 4; ++ranks) {
    for (const test::Case& c : test::layouts(ranks)) {
      CAPTURE(c.name());
      const test::Case one = c.reference();
      if (!references.contains(one.name())) references[one.name()] = run_threads(one);
      const test::Distance d = test::distance(run_threads(c), references[one.name()]);
      CAPTURE(d.where);
      if (test::keeps_bits(c)) CHECK(d.same_bits);
      CHECK(d.loss <= 5e-6);
      CHECK(d.weight <= 1e-4);
      if (std::getenv("TRAINER_TEST_VERBOSE"))
        MESSAGE(c.name() << ": loss " << d.loss << " weight " << d.weight << " in " << d.where);
    }
  }
}
