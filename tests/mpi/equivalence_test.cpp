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

/// One-rank runs that rank 0 has made.
using References = std::map<std::string, test::Trained>;

/// Trains every case beside its one-rank reference and holds the distance to what `allowed(reference case)` says. Other
/// ranks than 0 wait and check nothing.
template <class Allowed>
void hold(comm::Communicator& world, const std::vector<test::Case>& cases, References& references,
          const Allowed& allowed) {
  comm::WaitPolicy policy = comm::wait_policy();
  policy.hang_seconds = 120;  // others wait while rank 0 trains the reference
  comm::set_wait_policy(policy);
  for (const test::Case& c : cases) {
    CAPTURE(c.name());
    const test::Case one = c.reference();
    const std::string directory = scratch(world);
    test::Distance most;
    if (world.rank() == 0) {
      if (!references.contains(one.name())) references[one.name()] = run_alone(one, directory + "-one");
      most = allowed(one, directory + "-allowed");
    }
    world.barrier();
    const test::Trained trained = test::run(world, c, directory);
    if (world.rank() != 0) continue;
    const test::Distance d = test::distance(trained, references[one.name()]);
    CAPTURE(d.where);
    if (test::keeps_bits(c)) CHECK(d.same_bits);
    CHECK(d.loss <= most.loss);
    CHECK(d.weight <= most.weight);
  }
}

}  // namespace

TEST_CASE("any layout is one rank") {
  comm::Communicator& world = test::world();
  References references;
  hold(world, test::layouts(world.size()), references, [](const test::Case&, const std::string&) {
    return test::Distance{.loss = 5e-6, .weight = 1e-4, .where = {}, .same_bits = false};
  });
}

// The bound is that of tests/runtime/equivalence_test.cpp: twice what rounding to bfloat16 does.
TEST_CASE("any layout is one rank, in bfloat16 too") {
  comm::Communicator& world = test::world();
  References references;
  hold(world, test::bfloat16_layouts(world.size()), references, [&](test::Case one, const std::string& directory) {
    const test::Trained& rounded = references[one.name()];
    one.precision = "float32";
    if (!references.contains(one.name())) references[one.name()] = run_alone(one, directory);
    test::Distance rounding = test::distance(rounded, references[one.name()]);
    rounding.loss *= 2;
    rounding.weight *= 2;
    return rounding;
  });
}
