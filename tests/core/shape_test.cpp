#include <doctest/doctest.h>

#include <vector>

#include "trainer/core/random.hpp"
#include "trainer/core/shape.hpp"

using namespace trainer;

TEST_CASE("split_range covers everything once, larger parts first") {
  for (std::int64_t n : {0, 1, 7, 12, 13, 257}) {
    for (std::int64_t parts : {1, 2, 3, 5, 16}) {
      std::int64_t at = 0;
      std::int64_t previous = n + 1;
      for (std::int64_t i = 0; i < parts; ++i) {
        const Range range = split_range(n, parts, i);
        CHECK(range.begin == at);
        CHECK(range.size() <= previous);
        CHECK(range.size() >= n / parts);
        previous = range.size();
        at = range.end;
      }
      CHECK(at == n);
    }
  }
}

TEST_CASE("scatter then gather through random boxes is the identity") {
  const RandomStream random(7, "boxes");
  for (std::uint64_t trial = 0; trial < 60; ++trial) {
    Shape shape;
    const int dims = 1 + static_cast<int>(random.bits(trial, 0) % 4);
    for (int d = 0; d < dims; ++d) shape.push_back(1 + static_cast<std::int64_t>(random.bits(trial, 1 + d) % 6));
    std::vector<float> global(static_cast<std::size_t>(shape.elements()));
    for (std::size_t i = 0; i < global.size(); ++i) global[i] = static_cast<float>(i + 1);

    // Cut one dim into parts; every part goes out through its own memory and comes back.
    const int dim = static_cast<int>(random.bits(trial, 9) % static_cast<std::uint64_t>(dims));
    const std::int64_t parts = 1 + static_cast<std::int64_t>(random.bits(trial, 10) % 3);
    std::vector<float> back(global.size(), 0.0f);
    for (std::int64_t p = 0; p < parts; ++p) {
      Box box = whole(shape);
      const Range range = split_range(shape[dim], parts, p);
      box.start[dim] = range.begin;
      box.extent[dim] = range.size();
      std::vector<float> local(static_cast<std::size_t>(box.elements()));
      copy_box(box, whole(shape), global.data(), box, local.data(), sizeof(float));
      copy_box(box, box, local.data(), whole(shape), back.data(), sizeof(float));
    }
    CHECK(back == global);
  }
}

TEST_CASE("intersect is empty where boxes are apart") {
  const Box a{{0, 0}, {4, 4}};
  CHECK(intersect(a, {{2, 3}, {4, 4}}) == Box{{2, 3}, {2, 1}});
  CHECK(intersect(a, {{4, 0}, {1, 1}}).elements() == 0);
}
