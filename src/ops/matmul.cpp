// The entry to matrix multiplication: provider, argument check, peak measurement, thread set-up.
#include "trainer/ops/matmul.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <ctime>
#include <functional>

#include "matmul_bf16.hpp"
#include "matmul_native.hpp"
#include "matmul_onednn.hpp"
#include "trainer/core/error.hpp"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace trainer::ops {

namespace {

std::atomic<MatmulProvider>& provider() {
  static std::atomic<MatmulProvider> chosen{MatmulProvider::Native};
  return chosen;
}

void check(const MatmulShape& shape) {
  const bool a_by_k = shape.layout == Layout::TN;
  const bool b_by_n = shape.layout == Layout::NT;
  const bool fits = shape.m >= 0 && shape.n >= 0 && shape.k >= 0 && shape.lda >= (a_by_k ? shape.m : shape.k) &&
                    shape.ldb >= (b_by_n ? shape.k : shape.n) && shape.ldc >= shape.n;
  if (fits) return;
  constexpr const char* kNames[] = {"NN", "NT", "TN"};
  internal_error(fmt::format("a matrix multiply {} of m {}, n {}, k {} was asked for with row strides {}, {}, {}",
                             kNames[static_cast<int>(shape.layout)], shape.m, shape.n, shape.k, shape.lda, shape.ldb,
                             shape.ldc));
}

/// Empty sums have no operands to round.
bool is_bf16(const MatmulShape& shape) { return shape.precision == MatmulPrecision::BFloat16 && shape.k > 0; }

}  // namespace

void set_matmul_provider(MatmulProvider chosen) { provider().store(chosen, std::memory_order_relaxed); }

MatmulProvider matmul_provider() { return provider().load(std::memory_order_relaxed); }

std::string describe_matmul(MatmulPrecision precision) {
  if (precision == MatmulPrecision::BFloat16) {
    return fmt::format("native {}{}", bf16_kernel().name, has_bfloat16() ? "" : ", bfloat16 emulated");
  }
  if (matmul_provider() == MatmulProvider::OneDnn) return describe_onednn();
  return fmt::format("native {}", matmul_kernel().name);
}

std::size_t matmul_workspace_bytes(const MatmulShape& shape, int threads) {
  return shape.precision == MatmulPrecision::BFloat16 ? bf16_workspace_bytes(shape, threads)
                                                      : native_workspace_bytes(shape, threads);
}

void matmul(ThreadPool& pool, const MatmulShape& shape, const float* a, const float* b, float* c, bool accumulate,
            const float* bias, std::byte* workspace) {
  check(shape);
  if (is_bf16(shape)) {
    bf16_matmul(&pool, shape, a, b, c, accumulate, bias, workspace);
  } else if (matmul_provider() == MatmulProvider::OneDnn && shape.m > 0 && shape.n > 0 && shape.k > 0) {
    onednn_matmul(pool, shape, a, b, c, accumulate, bias);
  } else {
    native_matmul(&pool, shape, a, b, c, accumulate, bias, workspace);
  }
}

std::size_t matmul_block_workspace_bytes(const MatmulShape& shape) { return matmul_workspace_bytes(shape, 1); }

void matmul_block(const MatmulShape& shape, const float* a, const float* b, float* c, bool accumulate,
                  std::byte* workspace) {
  check(shape);
  if (is_bf16(shape)) return bf16_matmul(nullptr, shape, a, b, c, accumulate, nullptr, workspace);
  native_matmul(nullptr, shape, a, b, c, accumulate, nullptr, workspace);
}

double measure_peak_flops(MatmulPrecision precision) {
  const auto run_chains =
      precision == MatmulPrecision::BFloat16 ? bf16_kernel().multiply_add_chains : matmul_kernel().multiply_add_chains;
  // The best of short runs, what the core does when nobody disturbs it: as many as it takes for the three best to
  // agree.
  constexpr double kRunSeconds = 200e-6;
  constexpr int kFewestRuns = 8, kMostRuns = 100;
  constexpr double kAgree = 0.995;
  // In this thread's own time: what others do on the core is not the core's speed.
  const auto thread_seconds = [] {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  };
  const auto seconds_of = [&](std::int64_t rounds, double& flops) {
    const double start = thread_seconds();
    flops = run_chains(rounds);
    return thread_seconds() - start;
  };
  double flops = 0;
  std::int64_t rounds = 1000;
  while (seconds_of(rounds, flops) < kRunSeconds) rounds *= 2;
  std::array<double, 3> best{};  // descending
  for (int run = 0; run < kMostRuns; ++run) {
    const double seconds = seconds_of(rounds, flops);
    const double rate = seconds > 0 ? flops / seconds : 0;
    if (rate > best.back()) best.back() = rate;
    std::sort(best.begin(), best.end(), std::greater<>());
    if (run + 1 >= kFewestRuns && best.back() >= kAgree * best.front()) break;
  }
  return best.front();
}

void flush_denormals() {
#if defined(__x86_64__)
  constexpr unsigned kFlushResults = 0x8000, kDenormalsAreZero = 0x0040;
  _mm_setcsr(_mm_getcsr() | kFlushResults | kDenormalsAreZero);
#elif defined(__aarch64__)
  std::uint64_t control;
  asm volatile("mrs %0, fpcr" : "=r"(control));
  asm volatile("msr fpcr, %0" : : "r"(control | (std::uint64_t{1} << 24)));
#endif
}

}  // namespace trainer::ops
