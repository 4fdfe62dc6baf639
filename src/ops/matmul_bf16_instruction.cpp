// bfloat16 by VDPBF16PS (AVX-512 BF16): 14 × 32 tiles as in float32, two multiply-adds a lane and instruction.
// Compiled with AVX-512 BF16 switches; see matmul_tile.hpp on linkage.
#include <immintrin.h>

#include "matmul_bf16_kernel.hpp"
#include "matmul_tile.hpp"

namespace trainer::ops::kernel {

namespace {

/// Words are pairs of bfloat16 in the multiply and floats in C.
struct Pairs {
  using Type = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kRows = 14;
  static constexpr int kVectors = 2;

  static __mmask16 mask(std::int64_t part) { return static_cast<__mmask16>((1U << part) - 1U); }
  static Type zero() { return _mm512_setzero_ps(); }
  static Type broadcast(const float* from) { return _mm512_set1_ps(*from); }
  static Type load(const float* from) { return _mm512_loadu_ps(from); }
  static Type load_part(const float* from, std::int64_t part) { return _mm512_maskz_loadu_ps(mask(part), from); }
  static void store(float* to, Type x) { _mm512_storeu_ps(to, x); }
  static void store_part(float* to, Type x, std::int64_t part) { _mm512_mask_storeu_ps(to, mask(part), x); }
  static Type add(Type x, Type y) { return _mm512_add_ps(x, y); }
  static Type fma(Type x, Type y, Type z) { return _mm512_dpbf16_ps(z, (__m512bh)x, (__m512bh)y); }
};

/// 16 neighbouring pairs of one row: the 32 values at `from`.
__m512 pairs_of_row(const float* from) {
  return (__m512)_mm512_cvtne2ps_pbh(Pairs::load(from + 16), Pairs::load(from));
}

/// The same where only the first `valid` < 32 values are there; zeros behind.
__m512 pairs_of_row(const float* from, std::int64_t valid) {
  if (valid <= 16) return (__m512)_mm512_cvtne2ps_pbh(Pairs::zero(), Pairs::load_part(from, valid));
  return (__m512)_mm512_cvtne2ps_pbh(Pairs::load_part(from + 16, valid - 16), Pairs::load(from));
}

void convert_rows(const float* from, std::int64_t step, std::int64_t count, std::int64_t k, std::int64_t to_step,
                  float* to) {
  for (std::int64_t i = 0; i < count; ++i, from += step, to += to_step) {
    std::int64_t p = 0;
    for (; p + 32 <= k; p += 32) Pairs::store(to + p / 2, pairs_of_row(from + p));
    if (p < k) Pairs::store_part(to + p / 2, pairs_of_row(from + p, k - p), (k - p + 1) / 2);
  }
}

struct Interleave {
  __m512i order;
  Interleave() {
    alignas(64) std::uint16_t lanes[32];
    for (std::uint16_t i = 0; i < 16; ++i) {
      lanes[2 * i] = i;
      lanes[2 * i + 1] = static_cast<std::uint16_t>(16 + i);
    }
    order = _mm512_load_si512(lanes);
  }
  /// Lane by lane the pair (even, odd).
  __m512 operator()(__m512 even, __m512 odd) const {
    return (__m512)_mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
  }
};

void pack_columns(const float* from, std::int64_t k_step, std::int64_t count, std::int64_t k, std::int64_t width,
                  std::int64_t panel_step, bool fill, float* to) {
  // Rows may be pages apart, beyond the hardware's prefetcher: without this, five times slower from memory.
  constexpr std::int64_t kRowsAhead = 8;
  const Interleave interleave;
  for (std::int64_t p = 0; p < k; p += 2, from += 2 * k_step, to += width) {
    const bool pair = p + 1 < k;
    const float* odd = pair ? from + k_step : from;
    float* line = to;
    for (std::int64_t i = 0; i < count; i += width, line += panel_step) {
      for (std::int64_t v = 0; v < width; v += 16) {
        const std::int64_t wide = width - v < 16 ? width - v : 16;
        const std::int64_t left = count - i - v;
        const std::int64_t there = left < wide ? (left > 0 ? left : 0) : wide;
        const float* at = from + i + v;
        __builtin_prefetch(at + kRowsAhead * k_step);
        __builtin_prefetch(at + (kRowsAhead + 1) * k_step);
        const __m512 high = pair ? Pairs::load_part(odd + i + v, there) : Pairs::zero();
        Pairs::store_part(line + v, interleave(Pairs::load_part(at, there), high), fill ? wide : there);
      }
    }
  }
}

/// Transposes each 128-bit lane of four vectors as a 4 × 4 matrix of words.
void transpose_lanes(__m512& r0, __m512& r1, __m512& r2, __m512& r3) {
  const __m512d low01 = (__m512d)_mm512_unpacklo_ps(r0, r1), high01 = (__m512d)_mm512_unpackhi_ps(r0, r1);
  const __m512d low23 = (__m512d)_mm512_unpacklo_ps(r2, r3), high23 = (__m512d)_mm512_unpackhi_ps(r2, r3);
  r0 = (__m512)_mm512_unpacklo_pd(low01, low23);
  r1 = (__m512)_mm512_unpackhi_pd(low01, low23);
  r2 = (__m512)_mm512_unpacklo_pd(high01, high23);
  r3 = (__m512)_mm512_unpackhi_pd(high01, high23);
}

/// Rows of words become columns: x[q] of the result holds word q of every row.
void transpose(__m512 (&x)[16]) {
  for (int g = 0; g < 16; g += 4) transpose_lanes(x[g], x[g + 1], x[g + 2], x[g + 3]);
  // Now lane l of x[4g + c] holds rows 4g.. at word 4l + c.
  constexpr int kEven = 0x88, kOdd = 0xDD;
  __m512 y[16];
  for (int c = 0; c < 4; ++c) {
    const __m512 even01 = _mm512_shuffle_f32x4(x[c], x[4 + c], kEven);
    const __m512 odd01 = _mm512_shuffle_f32x4(x[c], x[4 + c], kOdd);
    const __m512 even23 = _mm512_shuffle_f32x4(x[8 + c], x[12 + c], kEven);
    const __m512 odd23 = _mm512_shuffle_f32x4(x[8 + c], x[12 + c], kOdd);
    y[c] = _mm512_shuffle_f32x4(even01, even23, kEven);
    y[4 + c] = _mm512_shuffle_f32x4(odd01, odd23, kEven);
    y[8 + c] = _mm512_shuffle_f32x4(even01, even23, kOdd);
    y[12 + c] = _mm512_shuffle_f32x4(odd01, odd23, kOdd);
  }
  for (int i = 0; i < 16; ++i) x[i] = y[i];
}

/// 16 columns of a panel; those from `count` on are zero.
void pack_transposed_lanes(const float* from, std::int64_t step, std::int64_t count, std::int64_t k, float* to,
                           std::int64_t width) {
  const std::int64_t there = count < 16 ? count : 16;
  __m512 x[16];
  for (std::int64_t p = 0; p < k; p += 32) {
    const std::int64_t valid = k - p;
    for (std::int64_t i = 0; i < 16; ++i) {
      const float* row = from + i * step + p;
      x[i] = i >= there ? Pairs::zero() : valid >= 32 ? pairs_of_row(row) : pairs_of_row(row, valid);
    }
    transpose(x);
    const std::int64_t steps = valid >= 32 ? 16 : (valid + 1) / 2;
    for (std::int64_t q = 0; q < steps; ++q) Pairs::store(to + (p / 2 + q) * width, x[q]);
  }
}

void pack_transposed(const float* from, std::int64_t step, std::int64_t count, std::int64_t k, float* to) {
  constexpr std::int64_t kPanel = Pairs::kVectors * Pairs::kLanes;
  const std::int64_t steps = (k + 1) / 2;
  for (std::int64_t i = 0; i < count; i += kPanel, to += steps * kPanel) {
    for (std::int64_t v = 0; v < kPanel; v += 16) {
      const std::int64_t left = count - i - v;
      pack_transposed_lanes(from + (i + v) * step, step, left > 0 ? left : 0, k, to + v, kPanel);
    }
  }
}

double multiply_add_chains(std::int64_t rounds) {
  constexpr int kChains = 16;
  // Operands the compiler cannot see through, else it finds the chains alike and keeps one.
  float word = 0.5F, start[kChains] = {};
  asm volatile("" : "+m"(word), "+m"(start));
  const __m512 x = Pairs::broadcast(&word);
  __m512 sums[kChains];
  unrolled<kChains>([&]<int c>() __attribute__((always_inline)) { sums[c] = Pairs::broadcast(start + c); });
  for (std::int64_t i = 0; i < rounds; ++i) {
    unrolled<kChains>([&]<int c>() __attribute__((always_inline)) { sums[c] = Pairs::fma(x, x, sums[c]); });
  }
  unrolled<kChains - 1>([&]<int c>() __attribute__((always_inline)) { sums[0] = Pairs::add(sums[0], sums[c + 1]); });
  float sink[Pairs::kLanes];
  Pairs::store(sink, sums[0]);
  asm volatile("" : : "m"(sink));
  return 4.0 * kChains * Pairs::kLanes * static_cast<double>(rounds);
}

}  // namespace

constexpr Bf16Kernel kBf16Instruction = {
    "avx512-bf16",           true,          Pairs::kRows,  Tiles<Pairs>::kPanel, 1,
    &Tiles<Pairs>::multiply, &convert_rows, &pack_columns, &pack_transposed,     &multiply_add_chains};

}  // namespace trainer::ops::kernel
