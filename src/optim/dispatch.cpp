// The choice of kernels, made once a process from what the processor says.
#include "dispatch.hpp"

#include <array>
#include <cstddef>

namespace trainer::optim {

namespace {

struct Runnable {
  std::array<const Kernels*, 3> kernels{};
  std::size_t count = 0;

  Runnable() {
#if defined(TRAINER_OPTIM_X86)
    // These read the operating system's word on register state too, not the processor's alone.
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    if (has_avx2 && has_avx512) kernels[count++] = &avx512::kKernels;
    if (has_avx2) kernels[count++] = &avx2::kKernels;
#endif
    kernels[count++] = &baseline::kKernels;
  }
};

}  // namespace

std::span<const Kernels* const> runnable_kernels() {
  static const Runnable runnable;
  return {runnable.kernels.data(), runnable.count};
}

std::unique_ptr<Optimizer> make_optimizer(const config::Optimizer& config) {
  return make_optimizer(config, *runnable_kernels().front());
}

double sum_of_squares(ThreadPool& pool, std::span<const float> values, double* block_sums) {
  return sum_of_squares(pool, values, block_sums, *runnable_kernels().front());
}

}  // namespace trainer::optim
