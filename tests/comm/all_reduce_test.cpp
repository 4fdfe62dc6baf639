// The algorithms of all-reduce over ranks as threads, and what their plans say.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <numeric>

#include "all_reduce_plan.hpp"
#include "bfloat16.hpp"
#include "support/all_reduce_cases.hpp"
#include "trainer/core/error.hpp"
#include "trainer/core/shape.hpp"

using namespace trainer;
using comm::AllReduceAlgorithm;
using comm::AllReduceOptions;
using comm::Communicator;
using comm::SendMode;
using comm::Wire;

namespace {

// More threads than cores, mostly; restores what was set.
struct PolitePolicy {
  comm::WaitPolicy before = comm::wait_policy();
  PolitePolicy() { comm::set_wait_policy({.yield = true, .hang_seconds = 30, .progress = {}}); }
  ~PolitePolicy() { comm::set_wait_policy(before); }
};

constexpr SendMode kModes[] = {SendMode::Eager, SendMode::Rendezvous};

std::vector<std::vector<int>> groupings(int ranks) {
  return {{}, test::nodes_of(ranks, 2, false), test::nodes_of(ranks, 3, true), test::nodes_of(ranks, 1, false)};
}

}  // namespace

TEST_CASE("every algorithm gives the bits that it is defined to give") {
  const PolitePolicy polite;
  for (const SendMode mode : kModes) {
    for (int ranks = 1; ranks <= 8; ++ranks) {
      if (mode == SendMode::Rendezvous && ranks % 2 == 0 && ranks < 8) continue;
      CAPTURE(ranks);
      comm::run_in_process(
          ranks,
          [&](Communicator& c) {
            std::vector<std::int64_t> counts{0, 1, 7, 1025, 5003};
            if (ranks == 3) counts.push_back(600011);  // several pieces
            test::check_algorithms(c, counts);
            test::check_several_algorithms_in_flight(c);
          },
          mode);
    }
  }
}

TEST_CASE("which algorithms have the bits of the direct one") {
  const PolitePolicy polite;
  for (int ranks = 2; ranks <= 8; ++ranks) comm::run_in_process(ranks, test::check_equal_to_direct);
}

TEST_CASE("delays and other orders change no sum") {
  const PolitePolicy polite;
  for (const SendMode mode : kModes) {
    for (const int ranks : {2, 3, 5}) {
      comm::run_in_process(
          ranks,
          [&](Communicator& c) {
            const auto faulty = comm::make_faulty(c, 5 + static_cast<std::uint64_t>(ranks), 300e-6);
            test::check_algorithms(*faulty, {1, 2001});
            test::check_several_algorithms_in_flight(*faulty);
          },
          mode);
    }
  }
}

TEST_CASE("infinities and NaN reach every rank") {
  const PolitePolicy polite;
  for (const int ranks : {1, 2, 3, 4, 7}) comm::run_in_process(ranks, test::check_not_finite);
}

TEST_CASE("bfloat16 on the wire: the stated bound holds") {
  const PolitePolicy polite;
  for (const int ranks : {2, 3, 4, 5, 8}) comm::run_in_process(ranks, test::check_wire_errors);
  CHECK(comm::wire_error_bound(1, {AllReduceAlgorithm::Ring, Wire::BFloat16, {}}) == 0);
  CHECK(comm::wire_error_bound(2, {AllReduceAlgorithm::Direct, Wire::BFloat16, {}}) ==
        doctest::Approx(0x1p-8).epsilon(1e-4));
  CHECK(comm::wire_error_bound(4, {AllReduceAlgorithm::Direct, Wire::Float32, {}}) < 2e-7);
}

TEST_CASE("rounding to bfloat16 is to nearest even, for every class of numbers") {
  std::size_t wrong = 0;
  const auto check = [&](std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    const float result = comm::from_bfloat16(comm::to_bfloat16(value));
    if (std::isnan(value)) {
      wrong += std::isnan(result) ? 0 : 1;
    } else {
      wrong += test::bits_of(result) == test::bits_of(test::rounded(value)) ? 0 : 1;
    }
  };
  for (std::uint32_t high = 0; high < 0x10000; ++high) {
    for (const std::uint32_t low : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) check(high << 16 | low);
  }
  CHECK(wrong == 0);
}

TEST_CASE("the library's algorithm, where there is no library, is the direct one") {
  const PolitePolicy polite;
  comm::run_in_process(3, [](Communicator& c) {
    const std::vector<float> sums =
        test::sum_over(c, test::addend(c.rank(), 5001), {AllReduceAlgorithm::Mpi, Wire::Float32, {}});
    CHECK(test::same_bits(sums, test::serial_sum(3, 5001)));
  });
}

// ---- plans ------------------------------------------------------------------------------------------------------

TEST_CASE("plans of all ranks fit together: each message has one sender and one receiver of the same size") {
  for (int ranks = 2; ranks <= 9; ++ranks) {
    for (const auto& named : test::kOurAlgorithms) {
      const char* const name = named.name;
      const AllReduceAlgorithm algorithm = named.algorithm;
      for (const Wire wire : {Wire::Float32, Wire::BFloat16}) {
        for (const std::vector<int>& nodes : groupings(ranks)) {
          for (const std::int64_t count : {1, 1000, 50021}) {
            const comm::AllReducePlan plan = comm::plan_all_reduce(count, ranks, {algorithm, wire, nodes});
            std::map<std::tuple<int, int, int>, std::int64_t> bytes;  // from, to, phase
            for (int rank = 0; rank < ranks; ++rank) {
              const comm::PiecePlan piece = comm::plan_piece(plan, count, ranks, rank, nodes);
              for (const auto& queue : piece.queues) {
                for (const comm::Step& step : queue) {
                  const std::int64_t size = 1 + step.count * (step.place.in == comm::Place::In::Wire ? 2 : 4);
                  CHECK(step.phase < plan.phases);
                  if (step.kind == comm::Step::Kind::Send) bytes[{rank, step.peer, step.phase}] += size;
                  if (step.kind == comm::Step::Kind::Receive) bytes[{step.peer, rank, step.phase}] -= size;
                }
              }
            }
            const bool matched = std::all_of(bytes.begin(), bytes.end(), [](const auto& b) { return b.second == 0; });
            CHECK_MESSAGE(matched, name, " over ", ranks, " ranks");
          }
        }
      }
    }
  }
}

TEST_CASE("bytes that an all-reduce sends are those of the published counts") {
  constexpr std::int64_t kCount = 3 * 5 * 7 * 8 * 2048;
  constexpr std::int64_t kBytes = kCount * 4;
  const auto sent = [&](AllReduceAlgorithm algorithm, int ranks, int rank, std::vector<int> nodes = {},
                        Wire wire = Wire::Float32) {
    return comm::all_reduce_cost(kCount, ranks, rank, {algorithm, wire, std::move(nodes)}).sent_bytes;
  };
  for (const int ranks : {4, 8}) {
    const std::vector<int> pairs = test::nodes_of(ranks, 2, false);
    for (int rank = 0; rank < ranks; ++rank) {
      CHECK(sent(AllReduceAlgorithm::Direct, ranks, rank) == 2 * (ranks - 1) * kBytes / ranks);
      CHECK(sent(AllReduceAlgorithm::Ring, ranks, rank) == (rank < ranks - 2 ? 2 : 1) * kBytes);
      CHECK(sent(AllReduceAlgorithm::Direct, ranks, rank, {}, Wire::BFloat16) * 2 ==
            sent(AllReduceAlgorithm::Direct, ranks, rank));
      // Half to the neighbour on the node, twice; between pairs a half, as Direct over as many nodes.
      const std::int64_t between = ranks == 4 ? kBytes / 2 : 2 * 3 * kBytes / 2 / 4;
      CHECK(sent(AllReduceAlgorithm::Hierarchy, ranks, rank, pairs) == kBytes + between);
    }
    CHECK(sent(AllReduceAlgorithm::Tree, ranks, 0) == (ranks == 4 ? 2 : 3) * kBytes);
    CHECK(sent(AllReduceAlgorithm::Tree, ranks, ranks - 1) == kBytes);
  }
  CHECK(sent(AllReduceAlgorithm::Direct, 2, 1) == kBytes);
  CHECK(sent(AllReduceAlgorithm::Ring, 1, 0) == 0);
}

TEST_CASE("memory of every algorithm is bounded whatever the count") {
  constexpr std::size_t kMiB = std::size_t{1} << 20;
  for (const int ranks : {2, 3, 8, 40}) {
    for (const auto& named : test::kOurAlgorithms) {
      const char* const name = named.name;
      const AllReduceAlgorithm algorithm = named.algorithm;
      for (const Wire wire : {Wire::Float32, Wire::BFloat16}) {
        for (const std::vector<int>& nodes : groupings(ranks)) {
          for (const std::int64_t count : {1LL, 100000LL, 5000000000LL}) {
            for (const int rank : {0, ranks - 1}) {
              const std::size_t bytes = comm::all_reduce_cost(count, ranks, rank, {algorithm, wire, nodes}).extra_bytes;
              CHECK_MESSAGE(bytes <= 6 * kMiB + 64 * 200, name, " over ", ranks, " ranks: ", bytes);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("auto takes no ring that would go to and fro between nodes") {
  constexpr std::int64_t kCount = 1 << 20;
  const auto taken = [&](const std::vector<int>& nodes) {
    return comm::plan_all_reduce(kCount, 8, {AllReduceAlgorithm::Automatic, Wire::Float32, nodes}).algorithm;
  };
  CHECK(taken({0, 0, 0, 0, 1, 1, 1, 1}) == AllReduceAlgorithm::Ring);
  CHECK(taken({0, 1, 0, 1, 0, 1, 0, 1}) == AllReduceAlgorithm::Direct);
  CHECK(taken({}) == AllReduceAlgorithm::Direct);
}

TEST_CASE("what auto takes depends on size, ranks and nodes alone, and always has the direct one's bits") {
  for (const std::int64_t count : {1LL, 1000LL, 100000LL, 10000000LL}) {
    for (int ranks = 2; ranks <= 64; ranks *= 2) {
      for (int nodes = 1; nodes <= ranks; nodes *= 2) {
        const AllReduceAlgorithm wide = comm::choose_all_reduce(count, ranks, nodes, Wire::Float32);
        const bool shared_links = nodes > 1 && (nodes == 2 ? ranks > 4 : ranks >= 2 * nodes);
        CHECK((wide == AllReduceAlgorithm::Ring) == (shared_links && count > 65535));
        CHECK((wide == AllReduceAlgorithm::Ring || wide == AllReduceAlgorithm::Direct));
        CHECK(comm::choose_all_reduce(count, ranks, nodes, Wire::BFloat16) == AllReduceAlgorithm::Direct);
      }
    }
  }
}
