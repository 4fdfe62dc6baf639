#include "packed_operand.hpp"

#include <algorithm>

#include "matmul_bf16.hpp"
#include "matmul_native.hpp"
#include "trainer/core/tensor.hpp"

namespace trainer::ops {

namespace {

std::int64_t divide_up(std::int64_t n, std::int64_t by) { return (n + by - 1) / by; }
std::int64_t round_up(std::int64_t n, std::int64_t to) { return divide_up(n, to) * to; }

/// Between rounded rows: an odd number of cache lines, so that rows do not share a set of a cache.
std::int64_t row_step(std::int64_t steps) {
  constexpr std::int64_t kLine = 16;
  return (divide_up(steps, kLine) | 1) * kLine;
}

}  // namespace

std::size_t TileMultiplier::bytes(MatmulPrecision precision) {
  if (precision == MatmulPrecision::Float32) return 0;
  return align_up(static_cast<std::size_t>(kMaxRows * row_step(kBlockKBFloat16)) * sizeof(float));
}

TileMultiplier::TileMultiplier(MatmulPrecision precision, std::byte* memory)
    : float32_(precision == MatmulPrecision::Float32 ? &matmul_kernel() : nullptr),
      bf16_(precision == MatmulPrecision::BFloat16 ? &bf16_kernel() : nullptr),
      rows_(float32_ != nullptr ? float32_->rows : bf16_->rows),
      panel_(float32_ != nullptr ? float32_->panel : bf16_->panel),
      block_k_(float32_ != nullptr ? kBlockK : kBlockKBFloat16),
      memory_(reinterpret_cast<float*>(memory)) {}

std::int64_t TileMultiplier::even_rows(std::int64_t count) const {
  const std::int64_t height = divide_up(count, divide_up(count, rows_));
  return bf16_ != nullptr ? round_up(height, 2) : height;
}

std::size_t PackedOperand::bytes(std::int64_t columns, std::int64_t depth) {
  return align_up(static_cast<std::size_t>(round_up(columns, kMaxPanel) * round_up(depth, 2)) * sizeof(float));
}

PackedOperand::PackedOperand(const TileMultiplier& multiplier, std::byte* memory, std::int64_t columns,
                             std::int64_t depth)
    : multiplier_(multiplier),
      data_(reinterpret_cast<float*>(memory)),
      columns_(columns),
      depth_(depth),
      width_(round_up(columns, multiplier.panel_)) {}

std::int64_t PackedOperand::steps(std::int64_t k) const {
  return multiplier_.bf16_ != nullptr ? divide_up(k, 2) * multiplier_.bf16_->words : k;
}

void PackedOperand::pack(const kernel::Operand& from) const {
  const std::int64_t panel = multiplier_.panel_;
  for (std::int64_t k = 0; k < depth_; k += multiplier_.block_k_) {
    const std::int64_t depth = std::min(multiplier_.block_k_, depth_ - k);
    const float* source = from.data + k * from.k_step;
    float* block = data_ + steps(k) * width_;
    if (multiplier_.float32_ != nullptr) {
      for (std::int64_t j = 0; j < columns_; j += panel) {
        multiplier_.float32_->pack({source + j * from.step, from.step, from.k_step}, std::min(panel, columns_ - j),
                                   depth, panel, block + j * depth);
      }
    } else if (from.step == 1) {
      multiplier_.bf16_->pack_columns(source, from.k_step, columns_, depth, panel, steps(depth) * panel, true, block);
    } else {
      multiplier_.bf16_->pack_transposed(source, from.step, columns_, depth, block);
    }
  }
}

kernel::Operand PackedOperand::prepared(const kernel::Operand& a, std::int64_t rows, std::int64_t k) const {
  if (multiplier_.bf16_ == nullptr) return a;
  if (a.step == 1) {
    multiplier_.bf16_->pack_columns(a.data, a.k_step, rows, k, rows, 0, false, multiplier_.memory_);
    return {multiplier_.memory_, 1, rows};
  }
  const std::int64_t step = row_step(steps(k));
  multiplier_.bf16_->convert_rows(a.data, a.step, rows, k, step, multiplier_.memory_);
  return {multiplier_.memory_, step, 1};
}

void PackedOperand::multiply(const Part& part, const kernel::Operand& a, float* c, std::int64_t ldc) const {
  const auto run = multiplier_.float32_ != nullptr ? multiplier_.float32_->multiply : multiplier_.bf16_->multiply;
  for (std::int64_t k = part.k_begin; k < part.k_end;) {
    const std::int64_t block = k / multiplier_.block_k_ * multiplier_.block_k_;
    const std::int64_t depth = std::min(multiplier_.block_k_, depth_ - block);
    const std::int64_t end = std::min(block + depth, part.k_end);
    run({.a = prepared({a.data + (k - part.k_begin) * a.k_step, a.step, a.k_step}, part.rows, end - k),
         .b = data_ + steps(block) * width_ + part.first_column * steps(depth) + steps(k - block) * multiplier_.panel_,
         .b_step = steps(depth) * multiplier_.panel_,
         .c = c,
         .ldc = ldc,
         .bias = nullptr,
         .rows = part.rows,
         .columns = part.columns,
         .k = steps(end - k),
         .add = part.add || k > part.k_begin,
         .next_a = nullptr});
    k = end;
  }
}

}  // namespace trainer::ops
