#include "packed_operand.hpp"

#include <algorithm>

#include "matmul_native.hpp"
#include "trainer/core/tensor.hpp"

namespace trainer::ops {

namespace {

std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

}  // namespace

std::size_t PackedOperand::bytes(std::int64_t columns, std::int64_t depth) {
  return align_up(static_cast<std::size_t>(round_up(columns, kMaxPanel) * depth) * sizeof(float));
}

PackedOperand::PackedOperand(const kernel::Kernel& kernel, std::byte* memory, std::int64_t columns, std::int64_t depth)
    : kernel_(kernel),
      data_(reinterpret_cast<float*>(memory)),
      columns_(columns),
      depth_(depth),
      width_(round_up(columns, kernel.panel)) {}

void PackedOperand::pack(const kernel::Operand& from) const {
  for (std::int64_t k = 0; k < depth_; k += kBlockK) {
    const std::int64_t depth = std::min(kBlockK, depth_ - k);
    float* block = data_ + k * width_;
    for (std::int64_t j = 0; j < columns_; j += kernel_.panel) {
      kernel_.pack({from.data + j * from.step + k * from.k_step, from.step, from.k_step},
                   std::min<std::int64_t>(kernel_.panel, columns_ - j), depth, kernel_.panel, block + j * depth);
    }
  }
}

void PackedOperand::multiply(const Part& part, const kernel::Operand& a, float* c, std::int64_t ldc) const {
  for (std::int64_t k = part.k_begin; k < part.k_end;) {
    const std::int64_t block = k / kBlockK * kBlockK;
    const std::int64_t depth = std::min(kBlockK, depth_ - block);
    const std::int64_t end = std::min(block + depth, part.k_end);
    kernel_.multiply({.a = {a.data + (k - part.k_begin) * a.k_step, a.step, a.k_step},
                      .b = data_ + block * width_ + part.first_column * depth + (k - block) * kernel_.panel,
                      .b_step = depth * kernel_.panel,
                      .c = c,
                      .ldc = ldc,
                      .bias = nullptr,
                      .rows = part.rows,
                      .columns = part.columns,
                      .k = end - k,
                      .add = part.add || k > part.k_begin,
                      .next_a = nullptr});
    k = end;
  }
}

}  // namespace trainer::ops
