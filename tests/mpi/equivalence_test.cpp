// Any layout gives what one rank gives, over MPI: every layout of as many ranks as were started.
#include <doctest/doctest.h>
#include <unistd.h>

#include <cstdlib>

#include "support/equivalence.hpp"
#include "support/mpi_world.hpp"

using namespace trainer;

namespace {

// One folder that all ranks name alike.
std::string scratch(comm::Communicator& world) {
  static int count = 0;
  const char* tmp = std::getenv("TMPDIR");
  const std::string mine =
      std::string(tmp ? tmp : "/tmp") + "/trainer-mpi-" + std::to_string(getpid()) + "-" + std::to_string(count++);
  return world.gather_strings(mine).front();
}

test::Trained run_alone(const test::Case& c, const std::string& directory) {
  test::Trained result;
  comm::run_in_process(1, [&](comm::Communicator& alone) { result = test::run(alone, c, directory); });
  return result;
}

}  // namespace

TEST_CASE("any layout is one rank") {
  comm::Communicator& world = test::world();
  comm::WaitPolicy policy = comm::wait_policy();
  policy.hang_seconds = 120;  // others wait while rank 0 trains the reference
  comm::set_wait_policy(policy);
  std::map<std::string, test::Trained> references;
  for (const test::Case& c : test::layouts(world.size())) {
    CAPTURE(c.name());
    const test::Case one = c.reference();
    const std::string directory = scratch(world);
    if (world.rank() == 0 && !references.contains(one.name()))
      references[one.name()] = run_alone(one, directory + "-one");
    world.barrier();
    const test::Trained trained = test::run(world, c, directory);
    if (world.rank() != 0) continue;
    const test::Distance d = test::distance(trained, references[one.name()]);
    CAPTURE(d.where);
    if (test::keeps_bits(c)) CHECK(d.same_bits);
    CHECK(d.loss <= 5e-6);
    CHECK(d.weight <= 1e-4);
  }
}
