// main() of the test programs that run under mpiexec: every rank runs all cases, any rank's failure fails all ranks.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <iostream>
#include <sstream>
#include <string>

#include "support/mpi_world.hpp"
#include "trainer/comm/mpi.hpp"
#include "trainer/comm/topology.hpp"

namespace trainer::test {

namespace {
comm::Communicator* current_world = nullptr;
}

comm::Communicator& world() { return *current_world; }

}  // namespace trainer::test

namespace {

// A rank that failed in the middle of a collective leaves the others waiting; this ends them well before meson does.
constexpr double kHangSeconds = 20;
constexpr double kAgreementSeconds = 30;

void print(const std::string& report, int rank) {
  std::istringstream lines(report);
  std::string text;
  for (std::string line; std::getline(lines, line);) text += "[rank " + std::to_string(rank) + "] " + line + "\n";
  std::cout << text << std::flush;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace trainer::comm;
  MpiSession session(&argc, &argv);
  const auto world = session.world();
  trainer::test::current_world = world.get();
  const bool yield = plan_node(*world).oversubscribed;
  set_wait_policy({.yield = yield, .hang_seconds = kHangSeconds, .progress = {}});

  doctest::Context context(argc, argv);
  std::ostringstream report;
  context.setCout(&report);
  const int result = context.run();
  if (result != 0 || world->rank() == 0) print(report.str(), world->rank());
  if (context.shouldExit() && world->size() == 1) return result;

  set_wait_policy({.yield = yield, .hang_seconds = kAgreementSeconds, .progress = {}});
  try {
    double failed = result != 0 ? 1 : 0;
    world->sum({&failed, 1});
    if (world->rank() == 0 && failed > 0)
      std::cout << failed << " of " << world->size() << " ranks failed" << std::endl;
    return failed > 0 ? 1 : 0;
  } catch (const std::exception& e) {
    print(std::string("the ranks did not come to agree whether the tests passed: ") + e.what(), world->rank());
    session.abort(1);
  }
}
