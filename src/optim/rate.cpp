// The learning rate as a function of the step.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "trainer/core/error.hpp"
#include "trainer/optim/optimizer.hpp"

namespace trainer::optim {

namespace {

/// What is left of the rate when the part t in [0, 1] of the steps after warm-up is done.
double decay_factor(const config::Optimizer& config, double t) {
  const double floor = config.final_ratio;
  switch (config.curve) {
    case config::RateCurve::Constant:
      return 1;
    case config::RateCurve::Linear:
      return floor * t + (1 - t);
    case config::RateCurve::Cosine:
      return floor + (1 - floor) * (0.5 * (1 + std::cos(std::numbers::pi * t)));
  }
  internal_error("an unknown learning-rate curve");
}

}  // namespace

double learning_rate(const config::Optimizer& config, std::int64_t step, std::int64_t total_steps) {
  if (step <= config.warmup_steps) {
    return config.learning_rate * (static_cast<double>(step) / static_cast<double>(config.warmup_steps));
  }
  // Steps past the last one (total ≤ warm-up included) stay at the end of the curve.
  const std::int64_t steps = std::max<std::int64_t>(1, total_steps - config.warmup_steps);
  const double t = static_cast<double>(std::min(steps, step - config.warmup_steps)) / static_cast<double>(steps);
  return config.learning_rate * decay_factor(config, t);
}

}  // namespace trainer::optim
