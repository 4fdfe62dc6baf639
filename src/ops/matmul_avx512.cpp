// The AVX-512 kernel: 14 × 32 tiles, 28 accumulators. Compiled with AVX-512 switches; see matmul_tile.hpp on linkage.
#include <immintrin.h>

#include "matmul_bf16_emulated.hpp"
#include "matmul_tile.hpp"

namespace trainer::ops::kernel {

namespace {

struct Avx512 {
  using Type = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kRows = 14;
  static constexpr int kVectors = 2;
  static constexpr int kStepA = 16;

  static __mmask16 mask(int part) { return static_cast<__mmask16>((1U << part) - 1U); }
  static Type zero() { return _mm512_setzero_ps(); }
  static Type broadcast(const float* from) { return _mm512_set1_ps(*from); }
  static Type load(const float* from) { return _mm512_loadu_ps(from); }
  static Type load_part(const float* from, int part) { return _mm512_maskz_loadu_ps(mask(part), from); }
  static void store(float* to, Type x) { _mm512_storeu_ps(to, x); }
  static void store_part(float* to, Type x, int part) { _mm512_mask_storeu_ps(to, mask(part), x); }
  static Type add(Type x, Type y) { return _mm512_add_ps(x, y); }
  static Type fma(Type x, Type y, Type z) { return _mm512_fmadd_ps(x, y, z); }

  static Type low_pairs(Type x, Type y) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
  }
  static Type high_pairs(Type x, Type y) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
  }
  /// Transposes each 128-bit lane of four vectors as a 4 × 4 matrix.
  static void transpose_lanes(Type& r0, Type& r1, Type& r2, Type& r3) {
    const Type low01 = _mm512_unpacklo_ps(r0, r1), high01 = _mm512_unpackhi_ps(r0, r1);
    const Type low23 = _mm512_unpacklo_ps(r2, r3), high23 = _mm512_unpackhi_ps(r2, r3);
    r0 = low_pairs(low01, low23);
    r1 = high_pairs(low01, low23);
    r2 = low_pairs(high01, high23);
    r3 = high_pairs(high01, high23);
  }

  // 4 × 4 inside the lanes, then lanes among the four groups of rows: x[4g + c] lane l holds rows 4g.. at k = 4l + c.
  static constexpr int kDepth = 16;
  static void transpose(const float* const* rows, std::int64_t p, float* dst, std::int64_t dst_step) {
    Type x[16];
    for (int i = 0; i < 16; ++i) x[i] = load(rows[i] + p);
    for (int g = 0; g < 16; g += 4) transpose_lanes(x[g], x[g + 1], x[g + 2], x[g + 3]);
    for (int c = 0; c < 4; ++c) {
      constexpr int kEven = 0x88, kOdd = 0xDD;
      const Type even01 = _mm512_shuffle_f32x4(x[c], x[4 + c], kEven);
      const Type odd01 = _mm512_shuffle_f32x4(x[c], x[4 + c], kOdd);
      const Type even23 = _mm512_shuffle_f32x4(x[8 + c], x[12 + c], kEven);
      const Type odd23 = _mm512_shuffle_f32x4(x[8 + c], x[12 + c], kOdd);
      store(dst + c * dst_step, _mm512_shuffle_f32x4(even01, even23, kEven));
      store(dst + (4 + c) * dst_step, _mm512_shuffle_f32x4(odd01, odd23, kEven));
      store(dst + (8 + c) * dst_step, _mm512_shuffle_f32x4(even01, even23, kOdd));
      store(dst + (12 + c) * dst_step, _mm512_shuffle_f32x4(odd01, odd23, kOdd));
    }
  }

  /// Rows j, j+4, j+8, j+12 side by side.
  static Type quad(const float* const* rows, int j, std::int64_t p) {
    Type x = _mm512_castps128_ps512(_mm_loadu_ps(rows[j] + p));
    x = _mm512_mask_broadcast_f32x4(x, 0x00F0, _mm_loadu_ps(rows[j + 4] + p));
    x = _mm512_mask_broadcast_f32x4(x, 0x0F00, _mm_loadu_ps(rows[j + 8] + p));
    return _mm512_mask_broadcast_f32x4(x, 0xF000, _mm_loadu_ps(rows[j + 12] + p));
  }

  static void transpose4(const float* const* rows, std::int64_t p, float* dst, std::int64_t dst_step) {
    Type r0 = quad(rows, 0, p), r1 = quad(rows, 1, p), r2 = quad(rows, 2, p), r3 = quad(rows, 3, p);
    transpose_lanes(r0, r1, r2, r3);
    store(dst, r0);
    store(dst + dst_step, r1);
    store(dst + 2 * dst_step, r2);
    store(dst + 3 * dst_step, r3);
  }
};

}  // namespace

constexpr Kernel kAvx512 = Tiles<Avx512>::kernel("avx512");
constexpr Bf16Kernel kBf16Avx512 = Emulated<Avx512>::kernel("avx512");

}  // namespace trainer::ops::kernel
