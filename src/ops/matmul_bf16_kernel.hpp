// What an instruction set must bring to the bfloat16 matrix multiply; plain data and declarations, as in
// matmul_kernel.hpp, whose row of register tiles it shares: a packed step of k is one 32-bit word a row or column.
// VDPBF16PS takes a pair (2q, 2q+1) of bfloat16 in a word. Where it is missing, the two values are words of their own,
// floats already rounded to bfloat16, the odd one first: then the fused multiply-adds of the float32 tiles are the same
// chain.
#pragma once

#include <cstdint>

#include "matmul_kernel.hpp"

namespace trainer::ops::kernel {

struct Bf16Kernel {
  const char* name;
  bool instruction;  // computes pairs by VDPBF16PS
  int rows;          // of a register tile
  int panel;         // columns of a register tile
  int words;         // packed steps that a pair of k takes

  /// TileRow::k counts packed steps.
  void (*multiply)(const TileRow& work);

  // The three ways to pack. All round to bfloat16 and complete an odd k by zeros; steps = words · ⌈k / 2⌉.

  /// Element (i, k) at from[i · step + k] becomes to[i · to_step + step of k].
  void (*convert_rows)(const float* from, std::int64_t step, std::int64_t count, std::int64_t k, std::int64_t to_step,
                       float* to);
  /// Element (i, k) at from[i + k · k_step] goes into panels of `width` ≤ `panel` that lie `panel_step` words apart:
  /// to[i / width · panel_step + step of k · width + i mod width]. What lies behind the columns of the last panel
  /// becomes zero with `fill`, else stays as it is.
  void (*pack_columns)(const float* from, std::int64_t k_step, std::int64_t count, std::int64_t k, std::int64_t width,
                       std::int64_t panel_step, bool fill, float* to);
  /// The same of element (i, k) at from[i · step + k], into panels of `panel`, one behind the other, filled.
  void (*pack_transposed)(const float* from, std::int64_t step, std::int64_t count, std::int64_t k, float* to);

  /// As Kernel::multiply_add_chains, of pairs.
  double (*multiply_add_chains)(std::int64_t rounds);
};

extern const Bf16Kernel kBf16Portable;
#if defined(__x86_64__)
extern const Bf16Kernel kBf16Avx2;
extern const Bf16Kernel kBf16Avx512;
extern const Bf16Kernel kBf16Instruction;
#endif

}  // namespace trainer::ops::kernel
