#include <doctest/doctest.h>

#include <atomic>
#include <vector>

#include "trainer/core/thread_pool.hpp"

using namespace trainer;

TEST_CASE("every index runs exactly once, for any number of threads, loop after loop") {
  for (int threads : {1, 2, 3, 5}) {
    for (bool spin : {true, false}) {
      ThreadPool pool(threads, spin);
      CHECK(pool.threads() == threads);
      for (std::int64_t count : {0, 1, 2, 3, 7, 100}) {
        for (int repeat = 0; repeat < 50; ++repeat) {
          std::vector<std::atomic<int>> hits(static_cast<std::size_t>(count));
          std::atomic<bool> thread_in_range{true};
          pool.for_each(count, [&](std::int64_t i, int thread) {
            hits[static_cast<std::size_t>(i)].fetch_add(1);
            if (thread < 0 || thread >= threads) thread_in_range = false;
          });
          bool once = true;
          for (auto& hit : hits) once = once && hit.load() == 1;
          REQUIRE(once);
          REQUIRE(thread_in_range);
        }
      }
    }
  }
}
