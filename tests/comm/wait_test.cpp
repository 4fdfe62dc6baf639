// The blocking wait: patience, politeness, and what it says when it gives up.
#include <doctest/doctest.h>
#include <time.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <string>
#include <thread>

#include "trainer/comm/communicator.hpp"
#include "trainer/core/error.hpp"

using namespace trainer;
using comm::wait_until;

namespace {

struct Countdown {
  int polls = 0;
  bool test() { return polls-- <= 0; }
};

struct Never {
  bool test() { return false; }
};

struct Policy {
  explicit Policy(comm::WaitPolicy policy) { comm::set_wait_policy(std::move(policy)); }
  ~Policy() { comm::set_wait_policy({}); }
};

double cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

}  // namespace

TEST_CASE("what is done is not waited for") {
  Countdown now;
  CHECK(comm::wait(now, {"nothing"}) == 0);
  Countdown soon{5};
  CHECK(comm::wait(soon, {"something"}) > 0);
}

TEST_CASE("a hang says what, which, with whom and how long") {
  const Policy policy({.yield = false, .hang_seconds = 0.02, .progress = {}});
  Never never;
  try {
    comm::wait(never, {"gradients of micro-batch", 3, 12});
    FAIL("waited for ever");
  } catch (const Error& e) {
    CHECK(e.code() == ExitCode::Hang);
    const std::string text = e.what();
    CHECK(text.find("gradients of micro-batch 12") != std::string::npos);
    CHECK(text.find("rank 3") != std::string::npos);
    CHECK(text.find("0.0 seconds") != std::string::npos);
  }
}

TEST_CASE("long waits let other traffic progress, and its failure ends them") {
  int calls = 0;
  const Policy policy({.yield = true, .hang_seconds = 10, .progress = [&] {
                         if (++calls == 10) throw Error(ExitCode::Data, "other traffic failed");
                       }});
  Never never;
  CHECK_THROWS_WITH_AS(comm::wait(never, {"something"}), "other traffic failed", Error);
  CHECK(calls == 10);
}

TEST_CASE("a polite wait costs little and ends in time") {
  const Policy policy({.yield = true, .hang_seconds = 10, .progress = {}});
  std::atomic<bool> flag{false};
  std::thread other([&] {
    const timespec length{0, 200'000'000};
    nanosleep(&length, nullptr);
    flag = true;
  });
  const auto done = [&] { return flag.load(); };
  const double before = cpu_seconds();
  const double waited = wait_until(std::ref(done), {"a flag"});
  const double used = cpu_seconds() - before;
  other.join();
  CHECK(waited > 0.15);
  // Sleeps of at least 20 µs that grow to 1 ms: some hundred polls of some µs each.
  CHECK(used < 0.05);
}
