// The bfloat16 matrix multiply: which kernel it runs on, and its entries. Private to ops and its tests.
#pragma once

#include <cstddef>

#include "matmul_bf16_kernel.hpp"
#include "matmul_native.hpp"

namespace trainer::ops {

/// VDPBF16PS where `isa` is Avx512 and the CPU has it; otherwise the same bits by the float32 tiles of `isa`.
void set_bf16_kernel(Isa isa, bool instruction);
const kernel::Bf16Kernel& bf16_kernel();

/// Workspace of a call, the same for every kernel, ascending in m, n, k and threads.
std::size_t bf16_workspace_bytes(const MatmulShape& shape, int threads);

/// As native_matmul, of the BFloat16 contract. `pool` null: on the calling thread.
void bf16_matmul(ThreadPool* pool, const MatmulShape& shape, const float* a, const float* b, float* c, bool accumulate,
                 const float* bias, std::byte* workspace);

}  // namespace trainer::ops
