// What an instruction set must bring to the packed matrix multiply. Included by objects that are compiled for one
// instruction set only, so: plain data and declarations, no inline functions that a linker could share.
#pragma once

#include <cstdint>

namespace trainer::ops::kernel {

/// Element (i, k) of an operand is data[i * step + k * k_step]; one of the two steps is 1.
struct Operand {
  const float* data;
  std::int64_t step;
  std::int64_t k_step;
};

/// One row of register tiles of one k-block: rows ≤ Kernel::rows, any number of columns.
/// C = block or C += block (`add`), then C += bias when it is not null.
struct TileRow {
  Operand a;
  const float* b;       // packed panels of Kernel::panel floats a k-step
  std::int64_t b_step;  // floats from one panel to the next
  float* c;
  std::int64_t ldc;
  const float* bias;
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t k;
  bool add;
  const float* next_a;  // first element of the tile of A that comes next, as a's steps; fetched meanwhile. Null: none.
};

struct Kernel {
  const char* name;
  int rows;    // of a register tile
  int panel;   // columns of a register tile
  int a_step;  // floats a k-step takes in a packed tile of A

  void (*multiply)(const TileRow& work);

  /// Writes dst[k * dst_step + i] = element (i, k) for i < count ≤ dst_step; the last vector's lanes past `count` hold
  /// copies or zeros. dst is aligned to a vector.
  void (*pack)(const Operand& from, std::int64_t count, std::int64_t k, std::int64_t dst_step, float* dst);

  /// Runs `rounds` of independent chains of fused multiply-adds; returns how many operations (two each) that was.
  double (*multiply_add_chains)(std::int64_t rounds);
};

extern const Kernel kPortable;
#if defined(__x86_64__)
extern const Kernel kAvx2;
extern const Kernel kAvx512;
#endif

}  // namespace trainer::ops::kernel
