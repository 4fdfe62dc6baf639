// The outer optimizer of local SGD and DiLoCo: what a round of local steps does to the model that replicas share.
#pragma once

#include <span>

#include "trainer/core/thread_pool.hpp"

namespace trainer::optim {

struct OuterStep {
  double learning_rate = 0.7;  // η
  double momentum = 0.9;       // μ
  bool nesterov = true;
};

/// One outer step (Douillard et al.: DiLoCo, 2023). With mean = sum / replicas, Δ = θ − mean and u' = μ·u + Δ:
///   θ' = θ − η·(Δ + μ·u') with nesterov, else θ − η·u'
/// each element in double, as (1 − η)·θ + η·mean − η·μ·(u' or u), rounded once, so that η = 1 and μ = 0 (local SGD)
/// give the mean itself. `weights`: in the sum of the replicas' weights, out θ'. `theta`: θ, then θ'. `u`: u, then u';
/// may be empty where μ is 0. Bits do not depend on the number of threads. Allocates nothing.
void outer_step(ThreadPool& pool, const OuterStep& step, int replicas, std::span<float> weights, std::span<float> theta,
                std::span<float> u);

}  // namespace trainer::optim
