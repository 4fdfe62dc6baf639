// The bfloat16 matrix multiply against its contract, written out, by ==: the instruction and every emulation of it.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "matmul_bf16.hpp"
#include "matmul_case.hpp"

using namespace trainer;
using namespace trainer::test;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

/// To the nearest of bfloat16's values by looking at both neighbours, ties to the even one; denormals are zero.
float rounded(float x) {
  if (std::isnan(x) || std::isinf(x)) return x;
  const std::uint32_t bits = bits_of(x);
  if ((bits & 0x7f800000U) == 0) return float_of(bits & 0x80000000U);
  const std::uint32_t below = bits & 0xffff0000U, above = below + 0x10000U;  // towards zero, away from it
  // The neighbour of the largest value stands for 2¹²⁸, where rounding to nearest puts the bound of infinity.
  const double next = std::isinf(float_of(above)) ? std::copysign(0x1p128, x) : static_cast<double>(float_of(above));
  const double to_below = std::abs(static_cast<double>(x) - static_cast<double>(float_of(below)));
  const double to_above = std::abs(next - static_cast<double>(x));
  if (to_below != to_above) return float_of(to_below < to_above ? below : above);
  return float_of((below & 0x10000U) == 0 ? below : above);
}

/// The contract of include/trainer/ops/matmul.hpp. This thread flushes denormals, so std::fma does.
Floats chain_reference(const Case& x, bool accumulate, bool with_bias) {
  Floats c = x.c;
  const MatmulShape& s = x.shape;
  for (std::int64_t i = 0; i < s.m; ++i) {
    for (std::int64_t j = 0; j < s.n; ++j) {
      float& element = c[static_cast<std::size_t>(i * s.ldc + j)];
      if (!accumulate && s.k == 0) element = 0;
      for (std::int64_t start = 0; start < s.k; start += kBlockKBFloat16) {
        const std::int64_t end = std::min(s.k, start + kBlockKBFloat16);
        float block = 0;
        for (std::int64_t p = start; p < end; p += 2) {
          const bool pair = p + 1 < end;
          block = std::fma(pair ? rounded(x.a_at(i, p + 1)) : 0.0F, pair ? rounded(x.b_at(p + 1, j)) : 0.0F, block);
          block = std::fma(rounded(x.a_at(i, p)), rounded(x.b_at(p, j)), block);
        }
        element = start == 0 && !accumulate ? block : element + block;
      }
      if (with_bias) element += x.bias[static_cast<std::size_t>(j)];
    }
  }
  return c;
}

/// As same_bits, but one NaN is as good as another.
bool same_values(const Floats& x, const Floats& y) {
  const auto same = [](float a, float b) { return bits_of(a) == bits_of(b) || (std::isnan(a) && std::isnan(b)); };
  return x.size() == y.size() && std::equal(x.begin(), x.end(), y.begin(), same);
}

MatmulShape bf16_shape(Layout layout, std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t gap = 0) {
  MatmulShape shape = shape_of(layout, m, n, k, gap);
  shape.precision = MatmulPrecision::BFloat16;
  return shape;
}

/// Runs a body on every kernel of this CPU, on a thread that flushes denormals (as the threads of its pools then do),
/// and leaves the process-wide choice as it was.
template <class Body>
void on_every_kernel(const Body& body) {
  flush_denormals();
  const auto on = [&](Isa isa, bool instruction) {
    set_bf16_kernel(isa, instruction);
    if (bf16_kernel().instruction != instruction) return;
    INFO(describe_matmul(MatmulPrecision::BFloat16));
    body();
  };
  for (Isa isa : available_isas()) on(isa, false);
  on(available_isas().back(), true);
  set_bf16_kernel(available_isas().back(), true);
}

/// A pool of threads that flush denormals.
struct FlushingPool : ThreadPool {
  explicit FlushingPool(int threads) : ThreadPool((flush_denormals(), threads), false) {}
};

/// Every accumulate and bias of one shape on every kernel.
void check_chain(ThreadPool& pool, const MatmulShape& shape) {
  const Case x(shape);
  for (bool accumulate : {false, true}) {
    for (bool with_bias : {false, true}) {
      INFO(name_of(shape), " threads ", pool.threads(), " accumulate ", accumulate, " bias ", with_bias);
      const Floats expected = chain_reference(x, accumulate, with_bias);
      on_every_kernel([&] {
        REQUIRE(same_bits(run(pool, x, accumulate, with_bias), expected));
        if (!with_bias) REQUIRE(same_bits(run_block(x, accumulate), expected));
      });
    }
  }
}

}  // namespace

TEST_CASE("bfloat16: bits are the chain's, for every kernel, layout and small size") {
  FlushingPool pool(2);
  for (Layout layout : kLayouts) {
    for (std::int64_t i = 1; i <= 70; ++i) {
      check_chain(pool, bf16_shape(layout, i, (i * 37) % 70 + 1, (i * 11) % 71 + 1, i % 3));
      check_chain(pool, bf16_shape(layout, (i * 29) % 70 + 1, i, (i * 13) % 67 + 1, i % 2));
    }
  }
}

TEST_CASE("bfloat16: bits are the chain's around the bounds of k-blocks and of blocks of rows and columns") {
  FlushingPool pool(3);
  for (Layout layout : kLayouts) {
    for (std::int64_t k : {1, 2, 31, 32, 33, 766, 767, 768, 769, 770, 1535, 1536, 1537}) {
      check_chain(pool, bf16_shape(layout, 5, 35, k, k % 5));
    }
    check_chain(pool, bf16_shape(layout, 113, 41, 769, 3));
    check_chain(pool, bf16_shape(layout, 97, 520, 5));
    check_chain(pool, bf16_shape(layout, 1031, 33, 3));
    check_chain(pool, bf16_shape(layout, 2060, 9, 2, 1));
    check_chain(pool, bf16_shape(layout, 98, 2100, 3));
  }
  check_chain(pool, bf16_shape(Layout::TN, 520, 70, 300));  // packing cut along k
  check_chain(pool, bf16_shape(Layout::NN, 70, 520, 300));
}

TEST_CASE("bfloat16: kernels and thread counts agree bit for bit on larger shapes") {
  MatmulShape wide{Layout::NN, 130, 70, 500, 1024, 70, 71, MatmulPrecision::BFloat16};
  MatmulShape page_apart{Layout::TN, 130, 70, 500, 1024, 2048, 71, MatmulPrecision::BFloat16};
  for (const MatmulShape& shape :
       {bf16_shape(Layout::NT, 200, 300, 801, 5), bf16_shape(Layout::NN, 97, 1111, 130),
        bf16_shape(Layout::TN, 300, 500, 97, 1), bf16_shape(Layout::NN, 64, 64, 2048), wide, page_apart}) {
    const Case x(shape);
    flush_denormals();
    const Floats expected = chain_reference(x, true, true);
    on_every_kernel([&] {
      for (int threads : {1, 2, 4}) {
        FlushingPool pool(threads);
        INFO(name_of(shape), " threads ", threads);
        CHECK(same_bits(run(pool, x, true, true), expected));
      }
    });
  }
}

TEST_CASE("bfloat16: operands are rounded to nearest, ties to even, denormals to zero") {
  // One times a value is the value as it was packed. Every exponent with the bits that decide, and each sign.
  Floats values;
  for (std::uint32_t exponent = 0; exponent < 256; ++exponent) {
    for (std::uint32_t high : {0U, 1U, 2U, 0x3fU, 0x7eU, 0x7fU}) {
      for (std::uint32_t low : {0U, 1U, 0x7fffU, 0x8000U, 0x8001U, 0xffffU}) {
        const std::uint32_t bits = exponent << 23 | high << 16 | low;
        values.push_back(float_of(bits));
        values.push_back(float_of(bits | 0x80000000U));
      }
    }
  }
  const auto count = static_cast<std::int64_t>(values.size());
  on_every_kernel([&] {
    ThreadPool pool(2, false);
    const Floats one{1.0F};
    const auto product = [&](MatmulShape shape, const Floats& a, const Floats& b) {
      shape.precision = MatmulPrecision::BFloat16;
      Floats c(values.size(), kNan);
      Buffer workspace(matmul_workspace_bytes(shape, pool.threads()));
      matmul(pool, shape, a.data(), b.data(), c.data(), false, nullptr, workspace.data());
      return c;
    };
    Floats expected;
    for (const float value : values) expected.push_back(0.0F + rounded(value));  // chains begin at +0
    CHECK(same_values(product({Layout::NN, 1, count, 1, 1, count, count}, one, values), expected));
    CHECK(same_values(product({Layout::NT, 1, count, 1, 1, 1, count}, one, values), expected));
    CHECK(same_values(product({Layout::NN, count, 1, 1, 1, 1, 1}, values, one), expected));
    CHECK(same_values(product({Layout::TN, count, 1, 1, count, 1, 1}, values, one), expected));
  });
}

TEST_CASE("bfloat16: sums that underflow flush, and infinities and NaNs go their way, the same on every kernel") {
  // Exponents at both ends, so that products and sums fall below the smallest normal number, cancel and overflow.
  const RandomStream stream(11, "extremes");
  const auto extreme = [&](std::uint64_t i) {
    const auto word = static_cast<std::uint32_t>(stream.bits(i) >> 32);
    const std::uint32_t kind = word >> 28 & 7U;
    if (kind == 0 && (word & 0xf000U) == 0) return kInfinity;
    if (kind == 1 && (word & 0xf800U) == 0) return kNan;
    const std::uint32_t exponent = kind == 2          ? word >> 20 & 0xffU
                                   : (word & 1U) == 0 ? 60 + kind
                                                      : 62 + (word >> 8 & 3U);
    return float_of((word & 0x807fffffU) | exponent << 23);
  };
  std::int64_t flushed = 0, finite = 0, not_numbers = 0;
  for (std::int64_t k : {1, 2, 3, 7, 64}) {
    Case x(bf16_shape(Layout::NN, 120, 90, k));
    std::uint64_t at = static_cast<std::uint64_t>(k) << 32;
    for (Floats* operand : {&x.a, &x.b}) {
      for (float& value : *operand) value = extreme(at++);
    }
    flush_denormals();
    const Floats expected = chain_reference(x, false, false);
    for (const float value : expected) {
      not_numbers += std::isnan(value) ? 1 : 0;
      finite += std::isfinite(value) && value != 0 ? 1 : 0;
      flushed += value == 0 ? 1 : 0;
    }
    on_every_kernel([&] {
      ThreadPool pool(1);
      CHECK(same_values(run(pool, x, false, false), expected));
    });
  }
  CHECK(flushed > 1000);
  CHECK(finite > 1000);
  CHECK(not_numbers > 1000);
}

TEST_CASE("bfloat16: a partial sum that underflows is lost") {
  // 2⁻⁷⁰ · 2⁻⁷⁰ twice, then 1 · 2⁻¹²⁶, whose sum has a float of its own.
  const Floats a{0x1p-70F, 0x1p-70F, 0, 1}, b{0x1p-70F, 0x1p-70F, 0, 0x1p-126F};
  on_every_kernel([&] {
    ThreadPool pool(1);
    MatmulShape shape = bf16_shape(Layout::NT, 1, 1, 4);
    Buffer workspace(matmul_workspace_bytes(shape, 1));
    float c = kNan;
    matmul(pool, shape, a.data(), b.data(), &c, false, nullptr, workspace.data());
    CHECK(c == 0x1p-126F);
  });
}

TEST_CASE("bfloat16: the distance to the exact product is within the rounding bound") {
  // Each operand is rounded once to 8 bits, u = 2⁻⁸ / 2, and each product passes at most k + 3 roundings of float32:
  // |error| ≤ ((1 + u)² (1 + γ(k + 3)) − 1) · Σ|a·b| (Higham: Accuracy and Stability of Numerical Algorithms, 3.1).
  on_every_kernel([] {
    ThreadPool pool(2, false);
    for (Layout layout : kLayouts) {
      const Case x(bf16_shape(layout, 110, 53, 900, 3));
      const Floats c = run(pool, x, false, false);
      const double u = 0x1p-9, gamma = (900 + 3) * 0x1p-24 / (1 - (900 + 3) * 0x1p-24);
      double worst = 0;
      for (std::int64_t i = 0; i < x.shape.m; ++i) {
        for (std::int64_t j = 0; j < x.shape.n; ++j) {
          double exact = 0, magnitude = 0;
          for (std::int64_t p = 0; p < x.shape.k; ++p) {
            const double term = static_cast<double>(x.a_at(i, p)) * static_cast<double>(x.b_at(p, j));
            exact += term;
            magnitude += std::abs(term);
          }
          const double bound = ((1 + u) * (1 + u) * (1 + gamma) - 1) * magnitude;
          const double value = c[static_cast<std::size_t>(i * x.shape.ldc + j)];
          worst = std::max(worst, std::abs(value - exact) / bound);
        }
      }
      CHECK(worst <= 1);
      CHECK(worst > 1e-3);  // it is not float32 that was multiplied
      CHECK(gaps_untouched(x, c));
    }
  });
}

TEST_CASE("bfloat16: empty sizes") {
  FlushingPool pool(2);
  for (Layout layout : kLayouts) {
    check_chain(pool, bf16_shape(layout, 3, 4, 0, 1));
    for (const auto& [m, n] : {std::pair<std::int64_t, std::int64_t>{0, 4}, {4, 0}, {0, 0}}) {
      const Case x(bf16_shape(layout, m, n, 5, 2));
      CHECK(same_bits(run(pool, x, false, true), x.c));
    }
  }
}

TEST_CASE("bfloat16: a workspace serves every smaller shape, is every kernel's, and is not overrun") {
  on_every_kernel([] {
    std::size_t before = 0;
    for (std::int64_t size : {1, 31, 33, 96, 97, 384, 769, 2048, 5000}) {
      const std::size_t bytes = matmul_workspace_bytes(bf16_shape(Layout::NN, size, size, size), 2);
      CHECK(bytes >= before);
      CHECK(bytes >= matmul_workspace_bytes(bf16_shape(Layout::TN, size, size - 1, size), 1));
      before = bytes;
    }
    for (Layout layout : kLayouts) {
      for (const auto& [m, n, k] : {std::array<std::int64_t, 3>{1, 1, 1},
                                    {15, 33, 1500},
                                    {96, 40, 770},
                                    {97, 65, 33},
                                    {1100, 20, 40},
                                    {98, 1050, 20},
                                    {29, 1, 3}}) {
        const Case x(bf16_shape(layout, m, n, k));
        const std::size_t bytes = matmul_workspace_bytes(x.shape, 2);
        std::vector<std::byte> guarded(bytes + 256, std::byte{0x5A});
        ThreadPool pool(2, false);
        Floats c = x.c;
        matmul(pool, x.shape, x.a.data(), x.b.data(), c.data(), false, nullptr, guarded.data() + 64 + 4);
        CHECK(same_bits(c, chain_reference(x, false, false)));
        const auto untouched = [](std::byte b) { return b == std::byte{0x5A}; };
        CHECK(std::all_of(guarded.begin(), guarded.begin() + 68, untouched));
        CHECK(std::all_of(guarded.begin() + 68 + static_cast<std::ptrdiff_t>(bytes), guarded.end(), untouched));
      }
    }
  });
  flush_denormals();
  std::size_t bytes = 0;
  on_every_kernel([&] {
    const std::size_t mine = matmul_workspace_bytes(bf16_shape(Layout::NN, 500, 700, 900), 3);
    CHECK((bytes == 0 || bytes == mine));
    bytes = mine;
  });
}

TEST_CASE("bfloat16: what runs it is said, and its peak measured") {
  on_every_kernel([] {
    CHECK(has_bfloat16() == bf16_kernel().instruction);
    const std::string text = describe_matmul(MatmulPrecision::BFloat16);
    CHECK(text.ends_with(", bfloat16 emulated") == !has_bfloat16());
    const double peak = measure_peak_flops(MatmulPrecision::BFloat16);
    CHECK(peak > 1e6);
    // Two instructions a cycle of 16 lanes and 4 operations, below 6.5 GHz.
    CHECK(peak < 6.5e9 * 2 * 16 * (has_bfloat16() ? 4 : 2));
  });
}
