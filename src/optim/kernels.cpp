// The optimizers' loops, compiled once for each instruction set into the namespace that the build names.
// Multiplications and additions are rounded apart, so that machines without fused multiply-add agree.
#include "kernels.hpp"

namespace trainer::optim::TRAINER_OPTIM_ISA {

namespace {

void sgd(float* __restrict weight, const float* __restrict gradient, std::int64_t count, const SgdStep& step) {
  const SgdStep s = step;
  for (std::int64_t i = 0; i < count; ++i) {
    const float g = gradient[i] * s.gradient_scale + s.decay * weight[i];
    weight[i] -= s.learning_rate * g;
  }
}

void sgd_momentum(float* __restrict weight, const float* __restrict gradient, float* __restrict momentum,
                  std::int64_t count, const SgdStep& step) {
  const SgdStep s = step;
  for (std::int64_t i = 0; i < count; ++i) {
    const float g = gradient[i] * s.gradient_scale + s.decay * weight[i];
    const float m = s.momentum * momentum[i] + g;
    momentum[i] = m;
    weight[i] -= s.learning_rate * m;
  }
}

void sgd_nesterov(float* __restrict weight, const float* __restrict gradient, float* __restrict momentum,
                  std::int64_t count, const SgdStep& step) {
  const SgdStep s = step;
  for (std::int64_t i = 0; i < count; ++i) {
    const float g = gradient[i] * s.gradient_scale + s.decay * weight[i];
    const float m = s.momentum * momentum[i] + g;
    momentum[i] = m;
    weight[i] -= s.learning_rate * (g + s.momentum * m);
  }
}

void adamw(float* __restrict weight, const float* __restrict gradient, float* __restrict mean, float* __restrict square,
           std::int64_t count, const AdamWStep& step) {
  const AdamWStep s = step;
  for (std::int64_t i = 0; i < count; ++i) {
    const float g = gradient[i] * s.gradient_scale;
    const float m = mean[i] + s.mean_rate * (g - mean[i]);
    const float v = s.beta2 * square[i] + s.square_rate * (g * g);
    mean[i] = m;
    square[i] = v;
    const float denominator = __builtin_sqrtf(v) / s.correction + s.eps;
    weight[i] = s.keep * weight[i] - s.step_size * (m / denominator);
  }
}

// x² of a float is exact in double, so a fused multiply-add here would round alike.
double sum_of_squares(const float* values, std::int64_t count) {
  double lane[kNormLanes] = {};
  std::int64_t i = 0;
  for (; i + kNormLanes <= count; i += kNormLanes) {
    for (int l = 0; l < kNormLanes; ++l) {
      const double x = values[i + l];
      lane[l] += x * x;
    }
  }
  for (int l = 0; i < count; ++i, ++l) {
    const double x = values[i];
    lane[l] += x * x;
  }
  for (int distance = kNormLanes / 2; distance > 0; distance /= 2) {
    for (int l = 0; l < distance; ++l) lane[l] += lane[l + distance];
  }
  return lane[0];
}

}  // namespace

const Kernels kKernels = {.name = TRAINER_OPTIM_ISA_NAME,
                          .sgd = sgd,
                          .sgd_momentum = sgd_momentum,
                          .sgd_nesterov = sgd_nesterov,
                          .adamw = adamw,
                          .sum_of_squares = sum_of_squares};

}  // namespace trainer::optim::TRAINER_OPTIM_ISA
