// The AVX2 kernel: 6 × 16 tiles, 12 accumulators. Compiled with AVX2 switches; see matmul_tile.hpp on linkage.
#include <immintrin.h>

#include "matmul_bf16_emulated.hpp"
#include "matmul_tile.hpp"

namespace trainer::ops::kernel {

namespace {

constexpr std::int32_t kMaskSource[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};

struct Avx2 {
  using Type = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kRows = 6;
  static constexpr int kVectors = 2;
  static constexpr int kDepth = 4;
  static constexpr int kStepA = 8;

  static __m256i mask(int part) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMaskSource + 8 - part)); }
  static Type zero() { return _mm256_setzero_ps(); }
  static Type broadcast(const float* from) { return _mm256_broadcast_ss(from); }
  static Type load(const float* from) { return _mm256_loadu_ps(from); }
  static Type load_part(const float* from, int part) { return _mm256_maskload_ps(from, mask(part)); }
  static void store(float* to, Type x) { _mm256_storeu_ps(to, x); }
  static void store_part(float* to, Type x, int part) { _mm256_maskstore_ps(to, mask(part), x); }
  static Type add(Type x, Type y) { return _mm256_add_ps(x, y); }
  static Type fma(Type x, Type y, Type z) { return _mm256_fmadd_ps(x, y, z); }

  static Type quad(const float* const* rows, int j, std::int64_t p) {
    const Type x = _mm256_castps128_ps256(_mm_loadu_ps(rows[j] + p));
    return _mm256_insertf128_ps(x, _mm_loadu_ps(rows[j + 4] + p), 1);
  }

  static void transpose4(const float* const* rows, std::int64_t p, float* dst, std::int64_t dst_step) {
    const Type r0 = quad(rows, 0, p), r1 = quad(rows, 1, p), r2 = quad(rows, 2, p), r3 = quad(rows, 3, p);
    const __m256d low01 = _mm256_castps_pd(_mm256_unpacklo_ps(r0, r1));
    const __m256d high01 = _mm256_castps_pd(_mm256_unpackhi_ps(r0, r1));
    const __m256d low23 = _mm256_castps_pd(_mm256_unpacklo_ps(r2, r3));
    const __m256d high23 = _mm256_castps_pd(_mm256_unpackhi_ps(r2, r3));
    store(dst, _mm256_castpd_ps(_mm256_unpacklo_pd(low01, low23)));
    store(dst + dst_step, _mm256_castpd_ps(_mm256_unpackhi_pd(low01, low23)));
    store(dst + 2 * dst_step, _mm256_castpd_ps(_mm256_unpacklo_pd(high01, high23)));
    store(dst + 3 * dst_step, _mm256_castpd_ps(_mm256_unpackhi_pd(high01, high23)));
  }
};

}  // namespace

constexpr Kernel kAvx2 = Tiles<Avx2>::kernel("avx2");
constexpr Bf16Kernel kBf16Avx2 = Emulated<Avx2>::kernel("avx2");

}  // namespace trainer::ops::kernel
