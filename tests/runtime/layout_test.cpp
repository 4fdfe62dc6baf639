// Memory is booked right: nothing that is alive shares bytes, and what the plan says is what a rank takes.
#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "trainer/core/random.hpp"
#include "trainer/runtime/stage_layout.hpp"

using namespace trainer;
using runtime::Lifetime;

namespace {

/// Largest first, lowest offset that fits, by looking at all that were placed before.
std::size_t place_naively(std::vector<Lifetime>& all) {
  std::vector<Lifetime*> order;
  for (Lifetime& lifetime : all) order.push_back(&lifetime);
  std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) { return a->bytes > b->bytes; });
  std::size_t total = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    Lifetime& mine = *order[i];
    const auto fits = [&](std::size_t offset) {
      return std::none_of(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(i), [&](const Lifetime* other) {
        return other->first <= mine.last && mine.first <= other->last && other->offset < offset + mine.bytes &&
               offset < other->offset + other->bytes;
      });
    };
    mine.offset = 0;
    while (!fits(mine.offset)) mine.offset += 64;
    total = std::max(total, mine.offset + mine.bytes);
  }
  return total;
}

}  // namespace

TEST_CASE("lifetimes are placed where the written-out rule places them, short and long ones") {
  const RandomStream random(6, "lifetimes");
  for (std::uint64_t trial = 0; trial < 300; ++trial) {
    std::vector<Lifetime> fast;
    const std::uint64_t count = random.bits(trial, 0) % 60;
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::uint64_t bits = random.bits(trial * 100 + i, 1);
      const auto first = static_cast<std::int64_t>(bits % 40) - 20;  // the backward's times are negative
      const std::uint64_t longest = (bits >> 32) % 4 == 0 ? 40 : 3;
      fast.push_back(
          {64 * (1 + (bits >> 8) % 20), first, first + static_cast<std::int64_t>((bits >> 16) % longest), 0});
    }
    std::vector<Lifetime> naive = fast;
    CHECK(runtime::place_lifetimes(fast) == place_naively(naive));
    for (std::size_t i = 0; i < fast.size(); ++i) CHECK(fast[i].offset == naive[i].offset);
  }
}

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
