// The loops of the optimizers. kernels.cpp is compiled once for each instruction set, with equal bits from all of them:
// only IEEE operations, each rounded once (no contraction), and lanes that are part of the contract.
// This header goes into objects built for one instruction set, so it includes no inline code that another
// object could come to share.
#pragma once

#include <cstdint>

namespace trainer::optim {

/// The constants of one SGD step. g' = gradient_scale · g + decay · w; buf = momentum · buf + g'.
struct SgdStep {
  float gradient_scale;
  float decay;
  float momentum;
  float learning_rate;
};

/// The constants of one AdamW step, rounded once from double.
struct AdamWStep {
  float gradient_scale;
  float keep;         // 1 - learning_rate · weight_decay
  float mean_rate;    // 1 - beta1
  float beta2;        //
  float square_rate;  // 1 - beta2
  float correction;   // sqrt(1 - beta2^t)
  float eps;
  float step_size;  // learning_rate / (1 - beta1^t)
};

/// Elements of a block of the norm, and the partial sums inside one: element i goes to lane i mod kNormLanes, and the
/// lanes are added pairwise at distances 8, 4, 2, 1.
inline constexpr std::int64_t kNormBlock = 4096;
inline constexpr int kNormLanes = 16;

struct Kernels {
  const char* name;
  void (*sgd)(float* weight, const float* gradient, std::int64_t count, const SgdStep& step);
  void (*sgd_momentum)(float* weight, const float* gradient, float* momentum, std::int64_t count, const SgdStep& step);
  void (*sgd_nesterov)(float* weight, const float* gradient, float* momentum, std::int64_t count, const SgdStep& step);
  void (*adamw)(float* weight, const float* gradient, float* mean, float* square, std::int64_t count,
                const AdamWStep& step);
  /// Σ x² of at most kNormBlock elements.
  double (*sum_of_squares)(const float* values, std::int64_t count);
};

namespace baseline {
extern const Kernels kKernels;
}
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}

}  // namespace trainer::optim
