// Memory is booked right: nothing that is alive shares bytes, and what the plan says is what a rank takes.
#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "trainer/core/random.hpp"
#include "trainer/runtime/stage_layout.hpp"

using namespace trainer;
using runtime::Lifetime;

TEST_CASE("lifetimes that overlap in time never overlap in memory, and the total is no more than their sum") {
  const RandomStream random(5, "lifetimes");
  for (std::uint64_t trial = 0; trial < 200; ++trial) {
    std::vector<Lifetime> all;
    const std::uint64_t count = 1 + random.bits(trial, 0) % 30;
    std::size_t sum = 0;
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::uint64_t bits = random.bits(trial * 100 + i, 1);
      const auto first = static_cast<std::int64_t>(bits % 20);
      all.push_back({64 * (1 + (bits >> 8) % 50), first, first + static_cast<std::int64_t>((bits >> 16) % 8), 0});
      sum += all.back().bytes;
    }
    const std::size_t total = runtime::place_lifetimes(all);
    CHECK(total <= sum);
    std::size_t peak = 0;  // what is alive at one time: a lower bound of any placement
    for (std::int64_t time = 0; time < 30; ++time) {
      std::size_t alive = 0;
      for (const Lifetime& a : all) alive += a.first <= time && time <= a.last ? a.bytes : 0;
      peak = std::max(peak, alive);
    }
    CHECK(total >= peak);
    for (std::size_t i = 0; i < all.size(); ++i) {
      CHECK(all[i].offset + all[i].bytes <= total);
      for (std::size_t j = 0; j < i; ++j) {
        const bool same_time = all[i].first <= all[j].last && all[j].first <= all[i].last;
        const bool same_bytes =
            all[i].offset < all[j].offset + all[j].bytes && all[j].offset < all[i].offset + all[i].bytes;
        CHECK_FALSE((same_time && same_bytes));
      }
    }
  }
}
