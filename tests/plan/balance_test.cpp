// Shares of micro-batches against brute force.
#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>

#include "trainer/core/random.hpp"
#include "trainer/plan/balance.hpp"

namespace trainer::plan {
namespace {

using Shares = std::vector<std::int64_t>;

// The least time of any split of `left` over the replicas from `at` on, where the others take `shares`.
double best_of_all(const std::vector<double>& seconds, Shares& shares, std::size_t at, std::int64_t left,
                   std::int64_t fill) {
  const auto others = static_cast<std::int64_t>(seconds.size() - at - 1);
  if (others == 0) {
    shares[at] = left;
    return split_seconds(seconds, shares, fill);
  }
  double best = 1e300;
  for (shares[at] = 1; shares[at] + others <= left; ++shares[at]) {
    const std::int64_t mine = shares[at];
    best = std::min(best, best_of_all(seconds, shares, at + 1, left - mine, fill));
    shares[at] = mine;
  }
  return best;
}

}  // namespace

TEST_CASE("no split of micro-batches is done sooner") {
  const RandomStream random(3, "balance");
  std::uint64_t at = 0;
  for (std::size_t replicas = 1; replicas <= 4; ++replicas) {
    for (std::int64_t total = static_cast<std::int64_t>(replicas); total <= 14; ++total) {
      for (const std::int64_t fill : {0, 1, 3}) {
        for (int sample = 0; sample < 8; ++sample) {
          std::vector<double> seconds(replicas);
          for (double& s : seconds) s = sample % 2 == 0 ? 0.05 + random.uniform(at++) : 1.0 + random.bits(at++) % 4;
          const Shares shares = split_by_speed(seconds, total, fill);
          CHECK(std::accumulate(shares.begin(), shares.end(), std::int64_t{0}) == total);
          CHECK(*std::min_element(shares.begin(), shares.end()) >= 1);
          Shares scratch(replicas);
          CHECK(split_seconds(seconds, shares, fill) == best_of_all(seconds, scratch, 0, total, fill));
        }
      }
    }
  }
}

TEST_CASE("who is four times slower gets a quarter, and who is as fast as much") {
  CHECK(split_by_speed(std::vector{1.0, 1.0, 1.0, 4.0}, 13, 0) == Shares{4, 4, 4, 1});
  CHECK(split_by_speed(std::vector{4.0, 1.0}, 10, 0) == Shares{2, 8});
  CHECK(split_by_speed(std::vector{1.0, 1.0, 1.0}, 8, 0) == Shares{3, 3, 2});
  CHECK(split_evenly(8, 3) == Shares{3, 3, 2});
  // One that is slower than all others together still takes one.
  CHECK(split_by_speed(std::vector{1000.0, 1.0}, 6, 0) == Shares{1, 5});
  // A pipeline's fill costs the slow one more, so it gets less.
  CHECK(split_by_speed(std::vector{2.0, 1.0}, 9, 0) == Shares{3, 6});
  CHECK(split_by_speed(std::vector{2.0, 1.0}, 9, 3) == Shares{2, 7});
}

TEST_CASE("noise moves nothing, a difference does") {
  const Shares even{4, 4};
  CHECK(rebalanced(std::vector{1.0, 1.04}, even, 0, 0.05) == even);
  CHECK(rebalanced(std::vector{1.0, 1.25}, even, 0, 0.05) == even);  // 5 · 1.0 and 3 · 1.25 take as long as 4 · 1.25
  CHECK(rebalanced(std::vector{1.0, 1.3}, even, 0, 0.05) == even);   // 4% better
  CHECK(rebalanced(std::vector{1.0, 1.35}, even, 0, 0.05) == Shares{5, 3});
  // And back only when it is as clear.
  const Shares uneven{5, 3};
  CHECK(rebalanced(std::vector{1.0, 1.2}, uneven, 0, 0.05) == uneven);
  CHECK(rebalanced(std::vector{1.0, 1.0}, uneven, 0, 0.05) == even);
}

}  // namespace trainer::plan
