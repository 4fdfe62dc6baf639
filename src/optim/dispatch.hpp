// Which compiled kernels this processor can run, and optimizers over a given set of them (for tests).
#pragma once

#include <memory>
#include <span>

#include "kernels.hpp"
#include "trainer/optim/optimizer.hpp"

namespace trainer::optim {

/// Those that this processor can run, the widest first; the last is the baseline. All give the same bits.
std::span<const Kernels* const> runnable_kernels();

std::unique_ptr<Optimizer> make_optimizer(const config::Optimizer& config, const Kernels& kernels);
double sum_of_squares(ThreadPool& pool, std::span<const float> values, double* block_sums, const Kernels& kernels);

}  // namespace trainer::optim
