// The right-hand side of products, packed once and multiplied with many rows: what matmul() does inside one call, in
// pieces, for operators that cut their products themselves. Bits as matmul()'s. Private to ops.
#pragma once

#include <cstddef>
#include <cstdint>

#include "matmul_bf16_kernel.hpp"
#include "matmul_kernel.hpp"
#include "trainer/ops/matmul.hpp"

namespace trainer::ops {

/// The kernel of a precision on this CPU, and the memory in which one thread rounds the rows that it multiplies.
class TileMultiplier {
 public:
  /// Memory for any instruction set.
  static std::size_t bytes(MatmulPrecision precision);

  /// `memory` is aligned to Buffer::kAlignment and outlives this.
  TileMultiplier(MatmulPrecision precision, std::byte* memory);

  std::int64_t rows() const { return rows_; }  // of a register tile
  /// Rows of each tile that cover `count` rows evenly; an even number in BFloat16, where k comes in pairs.
  std::int64_t even_rows(std::int64_t count) const;

 private:
  friend class PackedOperand;
  const kernel::Kernel* float32_;  // one of the two
  const kernel::Bf16Kernel* bf16_;
  std::int64_t rows_;
  std::int64_t panel_;
  std::int64_t block_k_;  // after which chains are restarted
  float* memory_;
};

/// B[depth, columns] as k-blocks, each a row of panels of the kernel's columns. Does not own its memory.
class PackedOperand {
 public:
  /// Memory for any instruction set's panels, in either precision.
  static std::size_t bytes(std::int64_t columns, std::int64_t depth);

  /// `memory` is aligned to Buffer::kAlignment; the multiplier outlives this.
  PackedOperand(const TileMultiplier& multiplier, std::byte* memory, std::int64_t columns, std::int64_t depth);

  /// Element (column j, k) is from.data[j * from.step + k * from.k_step].
  void pack(const kernel::Operand& from) const;

  /// What of the product is wanted: C[rows, columns] from k in [k_begin, k_end), chains restarted at this operand's
  /// k-blocks. `a` and `c` are at their first row; a's k counts from k_begin, which is even in BFloat16.
  struct Part {
    std::int64_t rows = 0;  // ≤ TileMultiplier::rows()
    std::int64_t columns = 0;
    std::int64_t first_column = 0;  // a multiple of the kernel's panel
    std::int64_t k_begin = 0;
    std::int64_t k_end = 0;
    bool add = false;  // C += instead of C =
  };
  void multiply(const Part& part, const kernel::Operand& a, float* c, std::int64_t ldc) const;

 private:
  /// Packed steps of `k` values from the beginning of a k-block on.
  std::int64_t steps(std::int64_t k) const;
  /// The rows as the kernel reads them: in BFloat16 rounded, in the multiplier's memory.
  kernel::Operand prepared(const kernel::Operand& a, std::int64_t rows, std::int64_t k) const;

  const TileMultiplier& multiplier_;
  float* data_;
  std::int64_t columns_;
  std::int64_t depth_;
  std::int64_t width_;  // columns in whole panels
};

}  // namespace trainer::ops
