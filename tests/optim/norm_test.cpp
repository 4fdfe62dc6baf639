// The gradient norm: its promised order of additions, its accuracy, and that nothing hides from it.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "optim/dispatch.hpp"
#include "trainer/core/random.hpp"
#include "trainer/optim/optimizer.hpp"

namespace trainer::optim {
namespace {

std::vector<float> random_values(std::size_t count) {
  const RandomStream stream(3, "norm");
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i)
    values[i] = stream.normal(i) * std::ldexp(1.0f, static_cast<int>(i % 31) - 15);
  return values;
}

double norm_squared(int threads, const std::vector<float>& values, const Kernels& kernels) {
  ThreadPool pool(threads, false);
  std::vector<double> scratch(static_cast<std::size_t>(norm_scratch(static_cast<std::int64_t>(values.size()))), -1e300);
  return sum_of_squares(pool, values, scratch.data(), kernels);
}

/// The contract, word for word: blocks of 4096, 16 lanes, a tree over the lanes, blocks in ascending order.
double by_contract(const std::vector<float>& values) {
  double sum = 0;
  for (std::size_t begin = 0; begin < values.size(); begin += 4096) {
    double lane[16] = {};
    for (std::size_t i = begin; i < std::min(values.size(), begin + 4096); ++i) {
      lane[(i - begin) % 16] += static_cast<double>(values[i]) * static_cast<double>(values[i]);
    }
    for (const std::size_t distance : {8, 4, 2, 1}) {
      for (std::size_t l = 0; l < distance; ++l) lane[l] += lane[l + distance];
    }
    sum += lane[0];
  }
  return sum;
}

TEST_CASE("the norm's bits are those of its contract, for any threads and instruction set") {
  for (const std::size_t count : {0, 1, 15, 16, 17, 4095, 4096, 4097, 12288, 50001}) {
    CAPTURE(count);
    const std::vector<float> values = random_values(count);
    const double expected = by_contract(values);
    for (const Kernels* kernels : runnable_kernels()) {
      CAPTURE(kernels->name);
      for (int threads = 1; threads <= 3; ++threads) CHECK(norm_squared(threads, values, *kernels) == expected);
    }
  }
}

TEST_CASE("the norm is accurate") {
  // Squares of floats are exact in double. A term passes at most 256 additions in its lane, 4 in the tree and one for
  // each block; all terms are positive, so the relative error is at most that many times 2^-53 (second order: 1%).
  const std::vector<float> values = random_values(200000);
  long double exact = 0;
  for (const float x : values) exact += static_cast<long double>(x) * static_cast<long double>(x);
  const double additions = 256 + 4 + 200000.0 / 4096 + 1;
  const double bound = 1.01 * additions * 0x1p-53 * static_cast<double>(exact);
  CHECK(std::abs(norm_squared(2, values, *runnable_kernels().front()) - static_cast<double>(exact)) <= bound);
}

TEST_CASE("squares that float32 could not hold are kept") {
  CHECK(norm_squared(1, {1e30f}, *runnable_kernels().front()) ==
        static_cast<double>(1e30f) * static_cast<double>(1e30f));
  CHECK(norm_squared(1, {1e-30f}, *runnable_kernels().front()) > 0);
}

TEST_CASE("a value that is not finite shows in the norm, wherever it is") {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const Kernels* kernels : runnable_kernels()) {
    CAPTURE(kernels->name);
    for (const std::size_t at : {0, 17, 4095, 4096, 8200, 8210}) {
      CAPTURE(at);
      std::vector<float> values(8211, 1.0f);
      values[at] = std::numeric_limits<float>::quiet_NaN();
      CHECK(std::isnan(norm_squared(2, values, *kernels)));
      values[at] = -kInfinity;
      CHECK(std::isinf(norm_squared(2, values, *kernels)));
    }
  }
}

TEST_CASE("the clip is PyTorch's") {
  CHECK(clip_scale(10.0, 0.0) == 1.0f);
  CHECK(clip_scale(0.0, 1.0) == 1.0f);
  CHECK(clip_scale(0.5, 1.0) == 1.0f);
  CHECK(clip_scale(4.0, 1.0) == static_cast<float>(1.0 / (4.0 + 1e-6)));
  CHECK(clip_scale(1.0, 1.0) == static_cast<float>(1.0 / (1.0 + 1e-6)));
  CHECK(clip_scale(1.0, 1.0) < 1.0f);
  CHECK(clip_scale(std::numeric_limits<double>::infinity(), 1.0) == 0.0f);
  CHECK(std::isnan(clip_scale(std::nan(""), 1.0)));
}

}  // namespace
}  // namespace trainer::optim
