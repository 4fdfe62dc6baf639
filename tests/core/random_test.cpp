#include <doctest/doctest.h>

#include <cmath>
#include <set>
#include <vector>

#include "trainer/core/random.hpp"

using namespace trainer;

TEST_CASE("philox 4x32-10 gives the published known answers (Random123 kat_vectors)") {
  CHECK(philox({0, 0, 0, 0}, {0, 0}) ==
        std::array<std::uint32_t, 4>{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u});
  const std::uint32_t ones = 0xffffffffu;
  CHECK(philox({ones, ones, ones, ones}, {ones, ones}) ==
        std::array<std::uint32_t, 4>{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu});
}

TEST_CASE("normal values have mean 0 and variance 1 within five standard errors") {
  const RandomStream stream(1, "normal");
  const int n = 100000;
  double sum = 0;
  double squares = 0;
  for (int i = 0; i < n; ++i) {
    const double x = stream.normal(static_cast<std::uint64_t>(i));
    sum += x;
    squares += x * x;
  }
  CHECK(std::abs(sum / n) < 5.0 / std::sqrt(n));
  CHECK(std::abs(squares / n - 1.0) < 5.0 * std::sqrt(2.0 / n));
}

TEST_CASE("streams differ by seed and name") {
  CHECK(RandomStream(1, "a").bits(0) != RandomStream(2, "a").bits(0));
  CHECK(RandomStream(1, "a").bits(0) != RandomStream(1, "b").bits(0));
}

TEST_CASE("a permutation hits every element once, for awkward sizes too") {
  for (std::uint64_t n : {1u, 2u, 3u, 5u, 17u, 64u, 1000u, 4097u}) {
    const RandomPermutation permutation(3, "order", n);
    std::vector<bool> seen(n, false);
    for (std::uint64_t i = 0; i < n; ++i) {
      const std::uint64_t to = permutation(i);
      REQUIRE(to < n);
      CHECK_FALSE(seen[to]);
      seen[to] = true;
    }
  }
}
