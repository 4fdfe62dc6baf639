// Prints GFLOP/s and the share of the measured multiply-add peak at the shapes of a small GPT. Not a test.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "trainer/core/tensor.hpp"
#include "trainer/ops/matmul.hpp"

using namespace trainer;
using namespace trainer::ops;

namespace {

using Clock = std::chrono::steady_clock;

struct Operands {
  explicit Operands(std::int64_t m, std::int64_t n, std::int64_t k)
      : a(bytes(m * k)), b(bytes(k * n)), c(bytes(m * n)) {
    fill(a, 1);
    fill(b, 2);
  }
  static std::size_t bytes(std::int64_t elements) { return static_cast<std::size_t>(elements) * sizeof(float); }
  static void fill(Buffer& buffer, std::uint32_t state) {
    for (std::size_t i = 0; i < buffer.size() / sizeof(float); ++i) {
      state = state * 1664525U + 1013904223U;
      buffer.f32()[i] = static_cast<float>(state >> 8) * 0x1p-24F - 0.5F;
    }
  }
  Buffer a, b, c;
};

MatmulShape dense(Layout layout, std::int64_t m, std::int64_t n, std::int64_t k) {
  return {layout, m, n, k, layout == Layout::TN ? m : k, layout == Layout::NT ? k : n, n};
}

/// The fastest of many calls within a share of a second.
template <class Call>
double fastest_seconds(Call call) {
  constexpr auto kBudget = std::chrono::milliseconds(60);
  double best = 1e9;
  const auto end = Clock::now() + kBudget;
  call();
  do {
    const auto start = Clock::now();
    call();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  } while (Clock::now() < end);
  return best;
}

constexpr const char* kNames[] = {"NN", "NT", "TN"};

void line(const MatmulShape& s, int threads, double seconds, const char* what) {
  const double peak = measure_peak_flops(s.precision) * threads;
  const double rate = 2.0 * static_cast<double>(s.m * s.n * s.k) / seconds;
  fmt::print("{:22} {} {:5} x {:5} x {:5}  threads {}  {:8.1f} GFLOP/s  {:5.1f}% of peak\n", what,
             kNames[static_cast<int>(s.layout)], s.m, s.n, s.k, threads, rate * 1e-9, 100 * rate / peak);
  std::fflush(stdout);
}

void whole(ThreadPool& pool, const MatmulShape& s, bool accumulate) {
  Operands x(s.m, s.n, s.k);
  Buffer workspace(matmul_workspace_bytes(s, pool.threads()));
  const double seconds =
      fastest_seconds([&] { matmul(pool, s, x.a.f32(), x.b.f32(), x.c.f32(), accumulate, nullptr, workspace.data()); });
  line(s, pool.threads(), seconds, s.precision == MatmulPrecision::BFloat16 ? "bfloat16" : describe_matmul().c_str());
}

void block(const MatmulShape& s) {
  Operands x(s.lda * std::max(s.m, s.k), s.ldc, 1);
  Buffer b(Operands::bytes(s.ldb * std::max(s.n, s.k))), c(Operands::bytes(s.m * s.ldc));
  Operands::fill(b, 3);
  Buffer workspace(matmul_block_workspace_bytes(s));
  const double seconds =
      fastest_seconds([&] { matmul_block(s, x.a.f32(), b.f32(), c.f32(), false, workspace.data()); });
  line(s, 1, seconds, s.precision == MatmulPrecision::BFloat16 ? "block, bfloat16" : "block");
}

/// The shapes of a small GPT's micro-batch, of small models, and of one generated token.
void every_shape(ThreadPool& pool, MatmulPrecision precision) {
  constexpr std::int64_t kRows = 512;
  constexpr std::int64_t kSizes[][2] = {{384, 1152}, {384, 384}, {384, 1536}, {1536, 384}, {384, 4096}};
  const auto measure = [&](MatmulShape shape, bool accumulate) {
    shape.precision = precision;
    whole(pool, shape, accumulate);
  };
  for (const auto& [k, n] : kSizes) {
    measure(dense(Layout::NT, kRows, n, k), false);
    measure(dense(Layout::NN, kRows, k, n), false);
    measure(dense(Layout::TN, n, k, kRows), true);
  }
  measure(dense(Layout::NT, 512, 1536, 384), false);
  measure(dense(Layout::NT, 256, 1024, 256), false);
  measure(dense(Layout::NT, 64, 512, 784), false);
  measure(dense(Layout::NT, 64, 10, 512), false);
  measure(dense(Layout::NT, 1, 1536, 384), false);
}

}  // namespace

/// Arguments: native, bfloat16, onednn, block, in any number; none means all.
int main(int argc, char** argv) {
  flush_denormals();
  const auto wanted = [&](const char* what) {
    return argc == 1 || std::any_of(argv + 1, argv + argc, [&](const char* a) { return std::strcmp(a, what) == 0; });
  };
  fmt::print("peak {:.1f} GFLOP/s a core, bfloat16 {:.1f}\n", measure_peak_flops() * 1e-9,
             measure_peak_flops(MatmulPrecision::BFloat16) * 1e-9);
  for (int threads : {1, 2}) {
    ThreadPool pool(threads);
    if (wanted("native")) every_shape(pool, MatmulPrecision::Float32);
    if (wanted("bfloat16")) every_shape(pool, MatmulPrecision::BFloat16);
    if (!wanted("onednn")) continue;
    set_matmul_provider(MatmulProvider::OneDnn);
    every_shape(pool, MatmulPrecision::Float32);
    set_matmul_provider(MatmulProvider::Native);
  }
  for (MatmulPrecision precision : {MatmulPrecision::Float32, MatmulPrecision::BFloat16}) {
    if (!wanted("block")) break;
    for (std::int64_t length : {64, 256, 1024, 2048}) {
      block({Layout::NT, 64, length, 64, 1152, 1152, length, precision});
      block({Layout::NN, 64, 64, length, length, 1152, 384, precision});
      block({Layout::TN, length, 64, 64, length, 1152, 1152, precision});
    }
  }
}
