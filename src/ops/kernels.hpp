// The element-wise, row and column kernels, one table of functions an instruction set. Every table computes the same
// bits: an element's value is one fixed sequence of roundings, and a sum over a row has a fixed structure: 32 partial
// sums by index modulo 32, then lanes i and i + 16 added, i and i + 8, …, whatever the vector width. All run on the
// calling thread.
#pragma once

#include <cstdint>

namespace trainer::ops {

inline constexpr int kUnaryKinds = 4;  // Gelu, Relu, Tanh, Sigmoid: as model::UnaryKind

/// Which elements of a random mask a span covers. Element i of the span is feature `first + i` of its row, and is kept
/// (times `scale`) where its word is ≥ threshold. The word of feature f is word (f / 16) mod 4 of
/// philox({(f / 64)·16 + f mod 16, row, sample low, sample high}, key).
struct DropoutMask {
  std::uint32_t key[2] = {};
  std::uint32_t row = 0;
  std::uint64_t sample = 0;
  std::int64_t first = 0;
  std::uint32_t threshold = 0;
  float scale = 1;
};

/// The mask parameters of probability p in [0, 1): threshold p·2³², scale 1 / (1 - p).
void set_probability(DropoutMask& mask, double probability);

struct RowStatistics {
  float mean = 0;
  float rstd = 0;
};

struct Kernels {
  const char* name;

  // ---- maps over n elements; in place is allowed ------------------------------------------------------------------
  void (*unary[kUnaryKinds])(const float* x, float* y, std::int64_t n);
  /// dx = dy·f' or dx += dy·f'. `operand` is x for Gelu, y for the others.
  void (*unary_backward[kUnaryKinds])(const float* operand, const float* dy, float* dx, std::int64_t n,
                                      bool accumulate);
  void (*add)(const float* a, const float* b, float* y, std::int64_t n);
  void (*scale)(const float* x, float factor, float* y, std::int64_t n);
  /// y = x·mask or y += x·mask.
  void (*dropout)(const DropoutMask& mask, const float* x, float* y, std::int64_t n, bool accumulate);

  // ---- one row of n elements --------------------------------------------------------------------------------------
  /// NaN where the row has one; -infinity where it is empty.
  float (*maximum)(const float* x, std::int64_t n);
  float (*dot)(const float* a, const float* b, std::int64_t n);
  /// Σ exp(x·factor - shift); the exponentials go to `y` (x itself is allowed) unless it is null.
  float (*exponentials)(const float* x, float factor, float shift, float* y, std::int64_t n);
  /// Σ (p - t)²; p becomes (p - t)·factor unless factor is 0.
  float (*squared_difference)(float* p, const float* t, float factor, std::int64_t n);
  /// Backward of a row of softmax: with P = exp(s·factor - shift)·inverse, s becomes P and dp becomes
  /// P·(dp - mean)·factor. Where `mask` is not null, P is of the probabilities before dropout; s becomes P·mask, and dp
  /// is masked before use.
  void (*softmax_backward)(float* s, float* dp, float factor, float shift, float inverse, float mean, std::int64_t n,
                           const DropoutMask* mask);

  // ---- layer norm: rows of `features` elements, row after row -------------------------------------------------------
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, std::int64_t rows,
                     std::int64_t features, float* y, RowStatistics* statistics);
  void (*layer_norm_backward)(const float* x, const float* dy, const float* weight, const RowStatistics* statistics,
                              std::int64_t rows, std::int64_t features, float* dx, bool accumulate);

  // ---- columns: sums down `rows` rows that lie `stride` elements apart, one ascending chain a column, restarted at
  // every kBlockK rows, the blocks added to the result in ascending order --------------------------------------------
  void (*column_sums)(const float* x, std::int64_t rows, std::int64_t stride, std::int64_t columns, float* sums,
                      bool accumulate);
  /// dweight = Σ dy·(x - mean)·rstd, dbias = Σ dy.
  void (*layer_norm_columns)(const float* x, const float* dy, const RowStatistics* statistics, std::int64_t rows,
                             std::int64_t stride, std::int64_t columns, float* dweight, float* dbias, bool accumulate);
};

enum class InstructionSet : std::uint8_t { Portable, Avx2, Avx512 };

/// Null where this CPU (or this build) lacks the instruction set. Portable is always there.
const Kernels* kernels_of(InstructionSet set);
/// The widest that this CPU has.
const Kernels& best_kernels();

}  // namespace trainer::ops
