// The kernel for any CPU: the same chains through the C library's fused multiply-add. Right, not fast.
#include "matmul_bf16_emulated.hpp"
#include "matmul_tile.hpp"

namespace trainer::ops::kernel {

namespace {

struct Portable {
  struct Type {
    float x[4];
  };
  static constexpr int kLanes = 4;
  static constexpr int kRows = 4;
  static constexpr int kVectors = 2;
  static constexpr int kDepth = 4;
  static constexpr int kStepA = 4;

  static Type zero() { return {}; }
  static Type broadcast(const float* from) { return {{*from, *from, *from, *from}}; }
  static Type load(const float* from) { return {{from[0], from[1], from[2], from[3]}}; }
  static Type load_part(const float* from, int part) {
    Type result = zero();
    for (int i = 0; i < part; ++i) result.x[i] = from[i];
    return result;
  }
  static void store(float* to, const Type& value) { store_part(to, value, kLanes); }
  static void store_part(float* to, const Type& value, int part) {
    for (int i = 0; i < part; ++i) to[i] = value.x[i];
  }
  static Type add(Type a, const Type& b) {
    for (int i = 0; i < kLanes; ++i) a.x[i] += b.x[i];
    return a;
  }
  static Type fma(const Type& a, const Type& b, const Type& c) {
    Type result;
    for (int i = 0; i < kLanes; ++i) result.x[i] = __builtin_fmaf(a.x[i], b.x[i], c.x[i]);
    return result;
  }
  static void transpose4(const float* const* rows, std::int64_t p, float* dst, std::int64_t dst_step) {
    for (int k = 0; k < 4; ++k) {
      for (int i = 0; i < kLanes; ++i) dst[k * dst_step + i] = rows[i][p + k];
    }
  }
};

}  // namespace

constexpr Kernel kPortable = Tiles<Portable>::kernel("portable");
constexpr Bf16Kernel kBf16Portable = Emulated<Portable>::kernel("portable");

}  // namespace trainer::ops::kernel
