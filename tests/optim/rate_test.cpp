// Learning-rate curves at their key points, against the closed forms, and monotone.
#include <doctest/doctest.h>

#include <cmath>
#include <numbers>

#include "trainer/optim/optimizer.hpp"

namespace trainer::optim {
namespace {

config::Optimizer curve(config::RateCurve type, std::int64_t warmup, double final_ratio) {
  config::Optimizer c;
  c.learning_rate = 0.3;
  c.curve = type;
  c.warmup_steps = warmup;
  c.final_ratio = final_ratio;
  return c;
}

constexpr config::RateCurve kAll[] = {config::RateCurve::Constant, config::RateCurve::Linear,
                                      config::RateCurve::Cosine};

// A handful of roundings of numbers of at most 1, times the rate.
constexpr double kSlack = 8 * 0x1p-53 * 0.3;

TEST_CASE("warm-up is a straight line that starts above 0 and meets the rate exactly") {
  for (const auto type : kAll) {
    const config::Optimizer c = curve(type, 10, 0.1);
    CHECK(learning_rate(c, 1, 100) == 0.3 * 0.1);
    CHECK(learning_rate(c, 5, 100) == 0.3 * 0.5);
    CHECK(learning_rate(c, 10, 100) == 0.3);
    for (std::int64_t step = 1; step < 10; ++step) CHECK(learning_rate(c, step, 100) < learning_rate(c, step + 1, 100));
  }
}

TEST_CASE("the curves follow their closed forms and end at the final ratio") {
  const std::int64_t warmup = 20, total = 220;
  for (std::int64_t step = warmup; step <= total; ++step) {
    const double t = static_cast<double>(step - warmup) / static_cast<double>(total - warmup);
    CHECK(learning_rate(curve(config::RateCurve::Constant, warmup, 0.1), step, total) == 0.3);
    CHECK(std::abs(learning_rate(curve(config::RateCurve::Linear, warmup, 0.1), step, total) - 0.3 * (1 - 0.9 * t)) <=
          kSlack);
    const double cosine = 0.3 * (0.1 + 0.9 * 0.5 * (1 + std::cos(std::numbers::pi * t)));
    CHECK(std::abs(learning_rate(curve(config::RateCurve::Cosine, warmup, 0.1), step, total) - cosine) <= kSlack);
  }
  CHECK(std::abs(learning_rate(curve(config::RateCurve::Cosine, warmup, 0.1), 120, total) - 0.3 * 0.55) <= kSlack);
  for (const auto type : {config::RateCurve::Linear, config::RateCurve::Cosine}) {
    CHECK(learning_rate(curve(type, warmup, 0.1), total, total) == 0.3 * 0.1);
    CHECK(learning_rate(curve(type, warmup, 0.0), total, total) == 0.0);
    CHECK(learning_rate(curve(type, 0, 0.25), total, total) == 0.3 * 0.25);
  }
}

TEST_CASE("after warm-up the rate never rises, and without decay it stays") {
  for (const auto type : kAll) {
    for (const double final_ratio : {0.0, 0.1, 1.0}) {
      const config::Optimizer c = curve(type, 7, final_ratio);
      for (std::int64_t step = 7; step < 150; ++step) {
        // With a final ratio of 1 the curve is flat up to the rounding of its two halves.
        CHECK(learning_rate(c, step + 1, 150) <= learning_rate(c, step, 150) + kSlack);
        CHECK(learning_rate(c, step, 150) >= 0.3 * final_ratio - kSlack);
      }
    }
  }
}

TEST_CASE("a run shorter than its warm-up, and steps past the last one") {
  for (const auto type : kAll) {
    const config::Optimizer c = curve(type, 100, 0.1);
    for (const std::int64_t total : {1, 50, 100}) {
      CHECK(learning_rate(c, total, total) == 0.3 * (static_cast<double>(total) / 100));
      CHECK(learning_rate(c, 1, total) == 0.3 * 0.01);
    }
    CHECK(std::isfinite(learning_rate(c, 101, 100)));
    CHECK(learning_rate(c, 250, 200) == learning_rate(c, 200, 200));
    CHECK(learning_rate(curve(type, 0, 1.0), 1, 1) == doctest::Approx(0.3).epsilon(1e-15));
  }
}

}  // namespace
}  // namespace trainer::optim
