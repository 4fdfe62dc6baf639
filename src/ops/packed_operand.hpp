// The right-hand side of products, packed once and multiplied with many rows: what matmul() does inside one call, in
// pieces, for operators that cut their products themselves. Bits as matmul()'s. Private to ops.
#pragma once

#include <cstddef>
#include <cstdint>

#include "matmul_kernel.hpp"
#include "trainer/ops/matmul.hpp"

namespace trainer::ops {

/// B[depth, columns] as k-blocks of kBlockK, each a row of panels of Kernel::panel columns. Does not own its memory.
class PackedOperand {
 public:
  /// Memory for any instruction set's panels.
  static std::size_t bytes(std::int64_t columns, std::int64_t depth);

  /// `memory` is aligned to Buffer::kAlignment.
  PackedOperand(const kernel::Kernel& kernel, std::byte* memory, std::int64_t columns, std::int64_t depth);

  /// Element (column j, k) is from.data[j * from.step + k * from.k_step].
  void pack(const kernel::Operand& from) const;

  /// What of the product is wanted: C[rows, columns] from k in [k_begin, k_end), chains restarted at this operand's
  /// k-blocks. `a` and `c` are at their first row; a's k counts from k_begin.
  struct Part {
    std::int64_t rows = 0;  // ≤ Kernel::rows
    std::int64_t columns = 0;
    std::int64_t first_column = 0;  // a multiple of Kernel::panel
    std::int64_t k_begin = 0;
    std::int64_t k_end = 0;
    bool add = false;  // C += instead of C =
  };
  void multiply(const Part& part, const kernel::Operand& a, float* c, std::int64_t ldc) const;

 private:
  const kernel::Kernel& kernel_;
  float* data_;
  std::int64_t columns_;
  std::int64_t depth_;
  std::int64_t width_;  // columns in whole panels
};

}  // namespace trainer::ops
