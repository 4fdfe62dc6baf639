// The one entry to matrix multiplication. Contract on bits (Native): every element of C is one chain of fused
// multiply-adds in ascending k within each block of kBlockK, started at +0. The first block replaces C, or is added to
// it by one addition when accumulating; the others are added in ascending order, one addition each; the bias last, by
// one addition. So the bits depend on the operands and on nothing else: not on threads, tiles, other rows or columns,
// or vector width.
//
// In BFloat16 the operands are rounded to bfloat16 as they are packed (to nearest, ties to even; denormals become
// zero), blocks are of kBlockKBFloat16, and the chain takes k by pairs (2q, 2q+1) of a block: the product of the odd k
// first, then that of the even one, a fused multiply-add to float32 each; zeros complete an odd block. Denormal results
// of the chain flush to zero. That is what VDPBF16PS does (found by experiment, on every rounding case; Intel's manual
// says the same), and what fused multiply-adds of float32 do on threads that flush denormals: both have the same bits.
// C, bias and all sums are float32. BFloat16 is always native. Which NaN comes out is not part of either contract.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "trainer/core/thread_pool.hpp"

namespace trainer::ops {

enum class MatmulPrecision : std::uint8_t { Float32, BFloat16 };

enum class Layout : std::uint8_t {
  NN,  // C[m,n] = A[m,k] · B[k,n]
  NT,  // C[m,n] = A[m,k] · B[n,k]ᵀ
  TN   // C[m,n] = A[k,m]ᵀ · B[k,n]
};

inline constexpr std::int64_t kBlockK = 512;
inline constexpr std::int64_t kBlockKBFloat16 = 768;

struct MatmulShape {
  Layout layout = Layout::NN;
  std::int64_t m = 0, n = 0, k = 0;
  std::int64_t lda = 0, ldb = 0, ldc = 0;  // row strides as stored, elements
  MatmulPrecision precision = MatmulPrecision::Float32;
};

/// Who multiplies. Native is our packed micro-kernel (AVX-512, AVX2 or portable, chosen by CPU, the same bits from
/// each). OneDnn cuts C into fixed tiles, each by a single-threaded primitive: thread-independent, but its own
/// rounding.
enum class MatmulProvider : std::uint8_t { Native, OneDnn };
/// For the whole process, before operators are made.
void set_matmul_provider(MatmulProvider provider);
MatmulProvider matmul_provider();
/// "native avx512" | "native avx2" | "native portable" | "oneDNN 2.6.3": for run records and --version. In BFloat16
/// "native avx512-bf16" | "native avx2, bfloat16 emulated" | …
std::string describe_matmul(MatmulPrecision precision = MatmulPrecision::Float32);

/// Scratch for one call of any shape with k, n, m up to these, all threads together; whatever the layout, strides,
/// provider and alignment.
std::size_t matmul_workspace_bytes(const MatmulShape& shape, int threads);

/// C = A·B or C += A·B, then C += bias (n values, the same for every row) when given. Over all of the pool's threads;
/// tiny ones on the caller alone. C must not overlap the operands. Native allocates nothing. OneDnn makes its
/// primitives on a thread's first call of a shape, and the library itself may allocate in every call.
void matmul(ThreadPool& pool, const MatmulShape& shape, const float* a, const float* b, float* c, bool accumulate,
            const float* bias, std::byte* workspace);

/// The same on the calling thread only, for use inside a pool body (attention's blocks). Native always.
std::size_t matmul_block_workspace_bytes(const MatmulShape& shape);
void matmul_block(const MatmulShape& shape, const float* a, const float* b, float* c, bool accumulate,
                  std::byte* workspace);

/// Whether BFloat16 runs by the CPU's own instruction (VDPBF16PS), at up to twice float32's speed; elsewhere it is
/// emulated: the same bits, at float32's speed.
bool has_bfloat16();

/// Measured multiply-add peak of one core, FLOP/s, at the widest vectors in use (2 to 20 ms).
double measure_peak_flops(MatmulPrecision precision = MatmulPrecision::Float32);

/// Every thread that computes calls this once: denormals flush to zero alike everywhere.
void flush_denormals();

}  // namespace trainer::ops
