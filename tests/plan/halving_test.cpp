// Successive halving: who goes on, and with how many steps.
#include "trainer/plan/halving.hpp"

#include <doctest/doctest.h>

using namespace trainer;

TEST_CASE("rounds double their steps up to the last, which has two candidates at most") {
  using Steps = std::vector<std::int64_t>;
  CHECK(plan::halving_rounds(1, 20) == Steps{20});
  CHECK(plan::halving_rounds(2, 20) == Steps{20});
  CHECK(plan::halving_rounds(3, 20) == Steps{10, 20});
  CHECK(plan::halving_rounds(4, 20) == Steps{10, 20});
  CHECK(plan::halving_rounds(5, 20) == Steps{5, 10, 20});
  CHECK(plan::halving_rounds(8, 20) == Steps{5, 10, 20});
  CHECK(plan::halving_rounds(64, 20) == Steps{3, 3, 3, 5, 10, 20});
  CHECK(plan::halving_rounds(8, 2) == Steps{2, 2, 2});
  for (std::int64_t candidates = 1; candidates <= 100; ++candidates) {
    std::int64_t left = candidates;
    const auto rounds = plan::halving_rounds(candidates, 50);
    for (std::size_t round = 0; round + 1 < rounds.size(); ++round) {
      CHECK(left > 2);
      left = (left + 1) / 2;
    }
    CHECK(left <= 2);
  }
}

TEST_CASE("the faster half goes on, in its order; of equals the earlier") {
  using Kept = std::vector<std::size_t>;
  CHECK(plan::faster_half({}).empty());
  CHECK(plan::faster_half({1}) == Kept{0});
  CHECK(plan::faster_half({1, 4, 2, 3}) == Kept{1, 3});
  CHECK(plan::faster_half({1, 4, 2}) == Kept{1, 2});
  CHECK(plan::faster_half({2, 2, 2, 2}) == Kept{0, 1});
}
