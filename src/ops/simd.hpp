// Vectors of floats for the element-wise kernels, at the width of the instruction set this file is compiled for.
// Every operation is one rounding a lane (add, multiply, divide, fused multiply-add), so a lane's bits are the same at
// any width. Included only by elementwise_kernels.cpp, which is compiled once an instruction set: everything here has
// internal linkage and nothing instantiates inline templates of the standard library, so no code for a newer CPU can be
// merged into a function that an older one runs.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace trainer::ops {
namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kWidth)));
typedef std::int32_t Ints __attribute__((vector_size(4 * kWidth)));
typedef std::uint32_t Words __attribute__((vector_size(4 * kWidth)));

inline Floats splat(float value) {
  Floats v;
  for (int l = 0; l < kWidth; ++l) v[l] = value;
  return v;
}

inline Words splat_words(std::uint32_t value) {
  Words v;
  for (int l = 0; l < kWidth; ++l) v[l] = value;
  return v;
}

/// 0, 1, 2, …
inline Ints lane_numbers() {
  Ints v;
  for (int l = 0; l < kWidth; ++l) v[l] = l;
  return v;
}

inline Floats load(const float* from) {
  Floats v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

#if defined(__AVX512F__)
inline __mmask16 first_lanes(std::int64_t count) { return static_cast<__mmask16>((1u << count) - 1u); }
#elif defined(__AVX2__)
inline __m256i first_lanes(std::int64_t count) { return (__m256i)(lane_numbers() < static_cast<std::int32_t>(count)); }
#endif

/// The first `count` (at most kWidth) elements; zeros behind them. Reads nothing behind them.
inline Floats load(const float* from, std::int64_t count) {
  if (count >= kWidth) return load(from);
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_loadu_ps(first_lanes(count), from);
#elif defined(__AVX2__)
  return (Floats)_mm256_maskload_ps(from, first_lanes(count));
#else
  Floats v = {};
  __builtin_memcpy(&v, from, static_cast<std::size_t>(count) * sizeof(float));
  return v;
#endif
}

inline void store(float* to, Floats v) { __builtin_memcpy(to, &v, sizeof(v)); }

inline void store(float* to, Floats v, std::int64_t count) {
  if (count >= kWidth) return store(to, v);
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(to, first_lanes(count), (__m512)v);
#elif defined(__AVX2__)
  _mm256_maskstore_ps(to, first_lanes(count), (__m256)v);
#else
  __builtin_memcpy(to, &v, static_cast<std::size_t>(count) * sizeof(float));
#endif
}

// Lane l of the result is lane (l + by) mod kWidth.
template <int by>
inline Floats rotated(Floats v) {
  static_assert(by < kWidth);
#define TRAINER_LANE(l) ((l) + by) % kWidth
#if defined(__AVX512F__)
  return __builtin_shufflevector(v, v, TRAINER_LANE(0), TRAINER_LANE(1), TRAINER_LANE(2), TRAINER_LANE(3),
                                 TRAINER_LANE(4), TRAINER_LANE(5), TRAINER_LANE(6), TRAINER_LANE(7), TRAINER_LANE(8),
                                 TRAINER_LANE(9), TRAINER_LANE(10), TRAINER_LANE(11), TRAINER_LANE(12),
                                 TRAINER_LANE(13), TRAINER_LANE(14), TRAINER_LANE(15));
#elif defined(__AVX2__)
  return __builtin_shufflevector(v, v, TRAINER_LANE(0), TRAINER_LANE(1), TRAINER_LANE(2), TRAINER_LANE(3),
                                 TRAINER_LANE(4), TRAINER_LANE(5), TRAINER_LANE(6), TRAINER_LANE(7));
#else
  return __builtin_shufflevector(v, v, TRAINER_LANE(0), TRAINER_LANE(1), TRAINER_LANE(2), TRAINER_LANE(3));
#endif
#undef TRAINER_LANE
}

/// Lane 0 of the tree combine(l, l + kWidth / 2), combine(l, l + kWidth / 4), …
template <int half = kWidth / 2, class Combine>
inline float folded(Floats v, Combine combine) {
  v = combine(v, rotated<half>(v));
  if constexpr (half > 1) {
    return folded<half / 2>(v, combine);
  } else {
    return v[0];
  }
}

/// b where a < b is false (also where either is NaN), else a; and with > in place of <.
inline Floats lesser(Floats a, Floats b) {
#if defined(__AVX512F__)
  return (Floats)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Floats)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}
inline Floats greater(Floats a, Floats b) {
#if defined(__AVX512F__)
  return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

/// a·b + c, rounded once.
inline Floats fma(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  Floats r;
  for (int l = 0; l < kWidth; ++l) r[l] = __builtin_fmaf(a[l], b[l], c[l]);
  return r;
#endif
}

/// The high and low halves of the 64-bit products of `a` with a constant.
struct WideProduct {
  Words high;
  Words low;
};
inline WideProduct multiply_wide(Words a, std::uint32_t by) {
#if defined(__AVX2__)
  typedef std::uint64_t Longs __attribute__((vector_size(4 * kWidth)));
  constexpr std::uint64_t kLow = 0xffffffffu;
#if defined(__AVX512F__)
  const auto multiply = [](Longs x, Longs y) { return (Longs)_mm512_maskz_mul_epu32(0xff, (__m512i)x, (__m512i)y); };
#else
  const auto multiply = [](Longs x, Longs y) { return (Longs)_mm256_mul_epu32((__m256i)x, (__m256i)y); };
#endif
  const Longs constant = Longs{} + by;
  const Longs even = multiply((Longs)a, constant);
  const Longs odd = multiply((Longs)a >> 32, constant);
  return {(Words)((even >> 32) | (odd & ~kLow)), (Words)((even & kLow) | (odd << 32))};
#else
  WideProduct r;
  for (int l = 0; l < kWidth; ++l) {
    const std::uint64_t product = std::uint64_t{a[l]} * by;
    r.high[l] = static_cast<std::uint32_t>(product >> 32);
    r.low[l] = static_cast<std::uint32_t>(product);
  }
  return r;
#endif
}

/// 2^k for k in [-126, 127].
inline Floats power_of_two(Ints k) { return (Floats)(((Words)k + 127u) << 23); }

/// p·2^n for an integer n in [-126, 128] (also given as k), where that is no denormal number.
inline Floats scaled_by_power(Floats p, [[maybe_unused]] Floats n, [[maybe_unused]] Ints k) {
#if defined(__AVX512F__)
  return (Floats)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  const Ints half = k >> 1;  // in two factors, since 2^128 is no float
  return p * power_of_two(half) * power_of_two(k - half);
#endif
}

/// e^x to 2 ulp where the result is a normal number; 0 below x = -87.33 (before results become denormal), infinity
/// where float overflows, NaN for NaN. x = n·ln 2 + r with |r| ≤ ln 2 / 2, and e^r by a minimax polynomial
/// (error 3.1e-9).
inline Floats exponential(Floats x) {
  constexpr float kLowest = -87.33f;
  constexpr float kRounder = 12582912.0f;  // 1.5·2^23: adding it rounds to an integer
  const Floats bounded = greater(splat(kLowest), lesser(splat(89.0f), x));
  const Floats shifted = fma(bounded, splat(1.442695041f), splat(kRounder));
  const Floats n = shifted - kRounder;
  Floats r = fma(n, splat(-0.6931471825f), bounded);
  r = fma(n, splat(1.904654239e-9f), r);
  Floats q = splat(0.001381431f);
  q = fma(q, r, splat(0.008368851f));
  q = fma(q, r, splat(0.0416684f));
  q = fma(q, r, splat(0.1666652f));
  q = fma(q, r, splat(0.49999994f));
  const Floats p = fma(r * r, q, r) + 1.0f;
  const Ints k = (Ints)((Words)shifted - (Words)splat(kRounder));
  return x < kLowest ? Floats{} : scaled_by_power(p, n, k);
}

/// 1 / (1 + e^-x).
inline Floats logistic(Floats x) { return 1.0f / (1.0f + exponential(-x)); }

/// tanh x to 2 ulp: an odd minimax polynomial (error 4.4e-9) below 0.625, 1 - 2 / (e^2|x| + 1) above.
inline Floats hyperbolic_tangent(Floats x) {
  const Words sign = (Words)x & 0x80000000u;
  const Floats magnitude = (Floats)((Words)x ^ sign);
  const Floats z = x * x;
  Floats q = splat(-0.0057050036f);
  q = fma(q, z, splat(0.020639101f));
  q = fma(q, z, splat(-0.05373972f));
  q = fma(q, z, splat(0.13331442f));
  q = fma(q, z, splat(-0.3333328f));
  const Floats near = fma(q * z, x, x);
  const Floats far = 1.0f - 2.0f / (exponential(magnitude + magnitude) + 1.0f);
  return magnitude < 0.625f ? near : (Floats)((Words)far | sign);
}

/// Philox 4×32-10 as core's `philox`, one counter a lane.
struct WordQuad {
  Words word[4];
};
inline WordQuad philox_lanes(WordQuad counter, std::uint32_t key0, std::uint32_t key1) {
  Words(&c)[4] = counter.word;
  for (int round = 0; round < 10; ++round) {
    const WideProduct p0 = multiply_wide(c[0], 0xD2511F53u);
    const WideProduct p1 = multiply_wide(c[2], 0xCD9E8D57u);
    c[0] = p1.high ^ c[1] ^ key0;
    c[1] = p1.low;
    c[2] = p0.high ^ c[3] ^ key1;
    c[3] = p0.low;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

}  // namespace
}  // namespace trainer::ops
