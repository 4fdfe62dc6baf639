// bfloat16 where VDPBF16PS is missing: floats rounded to bfloat16 when packed, the odd k of a pair before the even,
// then the float32 tiles of a vector type V (see matmul_tile.hpp), whose fused multiply-adds round as the instruction
// does where denormals flush. Every instantiation has internal linkage, as V has.
#pragma once

#include <cstdint>

#include "matmul_bf16_kernel.hpp"
#include "matmul_tile.hpp"

namespace trainer::ops::kernel {

template <class V>
struct Emulated {
  static constexpr int kPanel = Tiles<V>::kPanel;

  /// To the nearest bfloat16, ties to even; denormals to zero; NaN stays one, quiet.
  static float rounded(float x) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof(bits));
    const std::uint32_t magnitude = bits & 0x7fffffffU;
    const std::uint32_t nearest = bits + 0x7fffU + (bits >> 16 & 1U);
    bits = (magnitude > 0x7f800000U ? bits | 0x400000U
            : magnitude < 0x800000U ? bits & 0x80000000U
                                    : nearest) &
           0xffff0000U;
    __builtin_memcpy(&x, &bits, sizeof(x));
    return x;
  }

  static void convert_rows(const float* from, std::int64_t step, std::int64_t count, std::int64_t k,
                           std::int64_t to_step, float* to) {
    for (std::int64_t i = 0; i < count; ++i, from += step, to += to_step) {
      for (std::int64_t p = 0; p + 1 < k; p += 2) {
        to[p] = rounded(from[p + 1]);
        to[p + 1] = rounded(from[p]);
      }
      if (k % 2 != 0) {
        to[k - 1] = 0;
        to[k] = rounded(from[k - 1]);
      }
    }
  }

  static void round_line(const float* from, std::int64_t count, float* to) {
    for (std::int64_t i = 0; i < count; ++i) to[i] = rounded(from[i]);
  }
  static void clear_line(std::int64_t begin, std::int64_t end, float* to) {
    for (std::int64_t i = begin; i < end; ++i) to[i] = 0;
  }

  static void pack_columns(const float* from, std::int64_t k_step, std::int64_t count, std::int64_t k,
                           std::int64_t width, std::int64_t panel_step, bool fill, float* to) {
    for (std::int64_t p = 0; p < (k + 1) / 2 * 2; ++p) {
      const float* line = from + p * k_step;
      float* out = to + (p ^ 1) * width;
      for (std::int64_t i = 0; i < count; i += width, out += panel_step) {
        const std::int64_t columns = count - i < width ? count - i : width;
        if (p < k) {
          round_line(line + i, columns, out);
        } else {
          clear_line(0, columns, out);
        }
        if (fill) clear_line(columns, width, out);
      }
    }
  }

  static void pack_transposed(const float* from, std::int64_t step, std::int64_t count, std::int64_t k, float* to) {
    const std::int64_t steps = (k + 1) / 2 * 2;
    for (std::int64_t i = 0; i < count; i += kPanel, to += steps * kPanel) {
      const std::int64_t columns = count - i < kPanel ? count - i : kPanel;
      Tiles<V>::pack({from + i * step, step, 1}, columns, k, kPanel, to);
      for (std::int64_t p = 0; p < steps; p += 2) {
        float* even = to + p * kPanel;
        float* odd = even + kPanel;
        for (int c = 0; c < kPanel; ++c) {
          const float first = c < columns ? rounded(even[c]) : 0;
          even[c] = c < columns && p + 1 < k ? rounded(odd[c]) : 0;
          odd[c] = first;
        }
      }
    }
  }

  static constexpr Bf16Kernel kernel(const char* name) {
    return {name,
            false,
            V::kRows,
            kPanel,
            2,
            &Tiles<V>::multiply,
            &convert_rows,
            &pack_columns,
            &pack_transposed,
            &Tiles<V>::multiply_add_chains};
  }
};

}  // namespace trainer::ops::kernel
