// The native provider: which instruction set it runs on, and its entries. Private to ops and its tests.
#pragma once

#include <cstddef>
#include <cstdint>

#include "matmul_kernel.hpp"
#include "trainer/core/thread_pool.hpp"
#include "trainer/ops/matmul.hpp"

namespace trainer::ops {

inline constexpr std::int64_t kMaxPanel = 32;  // ≥ Kernel::panel of every instruction set
inline constexpr std::int64_t kMaxRows = 16;   // ≥ Kernel::rows of every instruction set

enum class Isa : std::uint8_t { Portable, Avx2, Avx512 };

/// Whether this build and this CPU can run it.
bool isa_available(Isa isa);

/// The widest available one unless a test has set another; the bits are the same from each.
void set_matmul_isa(Isa isa);
const kernel::Kernel& matmul_kernel();

/// Workspace of a native call, the same for every instruction set, ascending in m, n, k and threads.
std::size_t native_workspace_bytes(const MatmulShape& shape, int threads);

/// `pool` null: on the calling thread.
void native_matmul(ThreadPool* pool, const MatmulShape& shape, const float* a, const float* b, float* c,
                   bool accumulate, const float* bias, std::byte* workspace);

}  // namespace trainer::ops
