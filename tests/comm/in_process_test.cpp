// The in-process communicator, eager and rendezvous, and the faulty one over it.
#include <doctest/doctest.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/communicator_cases.hpp"
#include "trainer/comm/communicator.hpp"
#include "trainer/core/error.hpp"

using namespace trainer;
using comm::Communicator;
using comm::SendMode;

namespace {

constexpr SendMode kModes[] = {SendMode::Eager, SendMode::Rendezvous};

// More threads than cores, mostly; restores what was set.
struct PolitePolicy {
  comm::WaitPolicy before = comm::wait_policy();
  PolitePolicy() { comm::set_wait_policy({.yield = true, .hang_seconds = 30, .progress = {}}); }
  ~PolitePolicy() { comm::set_wait_policy(before); }
};

}  // namespace

TEST_CASE("in-process ranks do what a communicator must do") {
  const PolitePolicy polite;
  for (const SendMode mode : kModes) {
    for (int ranks = 1; ranks <= 8; ++ranks) {
      CAPTURE(ranks);
      comm::run_in_process(
          ranks, [&](Communicator& c) { test::check_communicator(c, ranks == 3 || ranks == 8); }, mode);
    }
  }
}

TEST_CASE("delays and other orders change nothing") {
  const PolitePolicy polite;
  for (const SendMode mode : kModes) {
    for (const int ranks : {1, 2, 3, 5}) {
      comm::run_in_process(
          ranks,
          [&](Communicator& c) {
            const auto faulty = comm::make_faulty(c, 11 + static_cast<std::uint64_t>(ranks), 300e-6);
            test::check_communicator(*faulty, false);
          },
          mode);
    }
  }
}

TEST_CASE("ranks that play several nodes share memory with their own node only") {
  const PolitePolicy polite;
  comm::run_in_process(
      5,
      [&](Communicator& c) {
        test::check_communicator(c, false);
        const auto memory = c.share(8, 1);
        for (int r = 0; r < c.size(); ++r) CHECK((memory->part(r) != nullptr) == (r / 2 == c.rank() / 2));
        CHECK_FALSE(comm::covers(memory.get(), c.size()));
        const auto node = c.split_node();
        CHECK(node->size() == (c.rank() == 4 ? 1 : 2));
        CHECK(comm::covers(node->share(8, 1).get(), node->size()));
      },
      SendMode::Eager, 2);
}

TEST_CASE("a rendezvous send waits for its receive, an eager one does not") {
  for (const SendMode mode : kModes) {
    comm::run_in_process(
        2,
        [&](Communicator& c) {
          int value = 41 + c.rank();
          if (c.rank() == 0) {
            const auto send = c.make_send(&value, sizeof(value), 1, 5);
            send->start();
            CHECK(send->test() == (mode == SendMode::Eager));
            c.barrier();
            comm::wait(*send, {"message"});
          } else {
            const auto receive = c.make_receive(&value, sizeof(value), 0, 5);
            CHECK(receive->test());
            c.barrier();
            receive->start();
            comm::wait(*receive, {"message"});
            CHECK(value == 41);
          }
        },
        mode);
  }
}

TEST_CASE("the first failure of a rank is reported and ends the others' waits") {
  const PolitePolicy polite;
  const auto body = [](Communicator& c) {
    if (c.rank() == 1) throw Error(ExitCode::Data, "rank 1 found no data");
    float value = 0;
    const auto receive = c.make_receive(&value, sizeof(value), 1, 0);
    receive->start();
    if (c.rank() == 0) comm::wait(*receive, {"message", 1});
    c.barrier();
  };
  for (const SendMode mode : kModes) {
    try {
      comm::run_in_process(3, body, mode);
      FAIL("the failure of rank 1 was lost");
    } catch (const Error& e) {
      CHECK(e.code() == ExitCode::Data);
      CHECK(std::string(e.what()) == "rank 1 found no data");
    }
  }
}

TEST_CASE("misuse of transfers is an internal error") {
  comm::run_in_process(2, [](Communicator& c) {
    int value = 0;
    if (c.rank() == 0) {
      const auto receive = c.make_receive(&value, sizeof(value), 1, 0);
      receive->start();
      CHECK_THROWS_AS(receive->start(), Error);
      CHECK_THROWS_AS(c.make_send(&value, sizeof(value), 2, 0), Error);
      CHECK_THROWS_AS(c.make_send(&value, sizeof(value), 1, -1), Error);
    }
    c.barrier();
    std::vector<float> data(10);
    const auto all_reduce = c.make_all_reduce(data.data(), 10);
    all_reduce->start();
    CHECK_THROWS_AS(all_reduce->start(), Error);
    comm::wait(*all_reduce, {"all-reduce"});
  });
}

TEST_CASE("messages of different size than expected are named") {
  const auto body = [](Communicator& c) {
    double value = 0;
    const auto transfer = c.rank() == 0 ? c.make_send(&value, 8, 1, 4) : c.make_receive(&value, 4, 0, 4);
    transfer->start();
    comm::wait(*transfer, {"message"});
    c.barrier();
  };
  try {
    comm::run_in_process(2, body);
    FAIL("the sizes differ");
  } catch (const Error& e) {
    CHECK(std::strstr(e.what(), "8 bytes were sent and 4 are expected") != nullptr);
  }
}

TEST_CASE("memory of an all-reduce is stated and bounded") {
  constexpr std::size_t kMiB = std::size_t{1} << 20;
  for (const int ranks : {1, 2, 3, 8, 100}) {
    const std::size_t bound = 2 * std::max(kMiB, static_cast<std::size_t>(ranks) * (32 << 10)) + 64 * 200;
    for (const std::int64_t count : {0LL, 1LL, 1000LL, 100000LL, 1000000LL, 5000000000LL}) {
      CHECK(Communicator::all_reduce_extra_bytes(count, ranks) <= bound);
    }
  }
  CHECK(Communicator::all_reduce_extra_bytes(1000000, 1) == 0);
  CHECK(Communicator::all_reduce_extra_bytes(0, 4) == 0);
  CHECK(Communicator::all_reduce_extra_bytes(16, 2) == 64);
}

TEST_CASE("tags of all-reduces that live are not given twice") {
  comm::run_in_process(2, [](Communicator& c) {
    std::vector<float> data(2);
    std::vector<std::unique_ptr<comm::AllReduce>> alive;
    const auto make_too_many = [&] {
      for (int i = 0; i < 20000; ++i) alive.push_back(c.make_all_reduce(data.data(), 2));
    };
    CHECK_THROWS_AS(make_too_many(), Error);
    CHECK(alive.size() == 16384);
    alive.clear();
    alive.push_back(c.make_all_reduce(data.data(), 2));
    CHECK(alive.size() == 1);
    c.barrier();
  });
}
