// The AVX-512 kernel: 14 × 32 tiles, 28 accumulators. Compiled with AVX-512 switches; see matmul_tile.hpp on linkage.
#include <immintrin.h>

#include "matmul_tile.hpp"

namespace trainer::ops::kernel {

namespace {

struct Avx512 {
  using Type = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kRows = 14;
  static constexpr int kVectors = 2;
  static constexpr int kStepA = 16;
  static constexpr int kPrefetch = 16 * 32;

  static __mmask16 mask(int part) { return static_cast<__mmask16>((1U << part) - 1U); }
  static Type zero() { return _mm512_setzero_ps(); }
  static Type broadcast(const float* from) { return _mm512_set1_ps(*from); }
  static Type load(const float* from) { return _mm512_loadu_ps(from); }
  static Type load_part(const float* from, int part) { return _mm512_maskz_loadu_ps(mask(part), from); }
  static void store(float* to, Type x) { _mm512_storeu_ps(to, x); }
  static void store_part(float* to, Type x, int part) { _mm512_mask_storeu_ps(to, mask(part), x); }
  static Type add(Type x, Type y) { return _mm512_add_ps(x, y); }
  static Type fma(Type x, Type y, Type z) { return _mm512_fmadd_ps(x, y, z); }

  // Rows j, j+4, j+8, j+12 side by side: the loads do the moves between 128-bit lanes, then each lane transposes 4 × 4.
  static Type quad(const float* const* rows, int j, std::int64_t p) {
    Type x = _mm512_castps128_ps512(_mm_loadu_ps(rows[j] + p));
    x = _mm512_mask_broadcast_f32x4(x, 0x00F0, _mm_loadu_ps(rows[j + 4] + p));
    x = _mm512_mask_broadcast_f32x4(x, 0x0F00, _mm_loadu_ps(rows[j + 8] + p));
    return _mm512_mask_broadcast_f32x4(x, 0xF000, _mm_loadu_ps(rows[j + 12] + p));
  }

  static void transpose4(const float* const* rows, std::int64_t p, float* dst, std::int64_t dst_step) {
    const Type r0 = quad(rows, 0, p), r1 = quad(rows, 1, p), r2 = quad(rows, 2, p), r3 = quad(rows, 3, p);
    const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(r0, r1));
    const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(r0, r1));
    const __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(r2, r3));
    const __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(r2, r3));
    store(dst, _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23)));
    store(dst + dst_step, _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23)));
    store(dst + 2 * dst_step, _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23)));
    store(dst + 3 * dst_step, _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23)));
  }
};

}  // namespace

constexpr Kernel kAvx512 = Tiles<Avx512>::kernel("avx512");

}  // namespace trainer::ops::kernel
