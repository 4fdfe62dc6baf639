// The kernels of kernels.hpp for one instruction set. Compiled once for each, with TRAINER_INSTRUCTION_SET naming the
// namespace its table goes to; see simd.hpp for what that asks of the code here.
#include "kernels.hpp"
#include "simd.hpp"
#include "trainer/ops/matmul.hpp"

namespace trainer::ops {
namespace {

// ---- maps ----------------------------------------------------------------------------------------------------------

/// step(i, count): does elements [i, i + count), count ≤ kWidth.
template <class Step>
inline void for_vectors(std::int64_t n, Step step) {
  std::int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) step(i, std::int64_t{kWidth});
  if (i < n) step(i, n - i);
}

struct Gelu {
  // x·σ(2u) = x·(1 + tanh u) / 2 with 2u = 2·√(2/π)·(x + 0.044715·x³). Beyond ±20 σ is 1 or 0; the bound keeps x³
  // finite.
  static constexpr float kLinear = 1.5957691216f;
  static constexpr float kCubic = 0.0713548162726f;
  static Floats bound(Floats x) {
    const Floats below = x > 20.0f ? splat(20.0f) : x;
    return below < -20.0f ? splat(-20.0f) : below;
  }
  static Floats twice_u(Floats x) { return x * fma(x * x, splat(kCubic), splat(kLinear)); }
  static Floats value(Floats x) { return x / (1.0f + exponential(-twice_u(bound(x)))); }
  static Floats slope(Floats x) {
    const Floats z = bound(x);
    const Floats s = logistic(twice_u(z));
    return fma(z * fma(z * z, splat(3.0f * kCubic), splat(kLinear)), s * (1.0f - s), s);
  }
};
struct Relu {
  static Floats value(Floats x) { return x < 0.0f ? Floats{} : x; }
  static Floats slope(Floats y) { return y > 0.0f ? splat(1.0f) : Floats{}; }
};
struct Tanh {
  static Floats value(Floats x) { return hyperbolic_tangent(x); }
  static Floats slope(Floats y) { return fma(-y, y, splat(1.0f)); }
};
struct Sigmoid {
  static Floats value(Floats x) { return logistic(x); }
  static Floats slope(Floats y) { return y * (1.0f - y); }
};

template <class Function>
void unary(const float* x, float* y, std::int64_t n) {
  for_vectors(n, [=](std::int64_t i, std::int64_t count) { store(y + i, Function::value(load(x + i, count)), count); });
}

template <class Function>
void unary_backward(const float* operand, const float* dy, float* dx, std::int64_t n, bool accumulate) {
  for_vectors(n, [=](std::int64_t i, std::int64_t count) {
    const Floats d = load(dy + i, count) * Function::slope(load(operand + i, count));
    store(dx + i, accumulate ? load(dx + i, count) + d : d, count);
  });
}

void add(const float* a, const float* b, float* y, std::int64_t n) {
  for_vectors(
      n, [=](std::int64_t i, std::int64_t count) { store(y + i, load(a + i, count) + load(b + i, count), count); });
}

void scale(const float* x, float factor, float* y, std::int64_t n) {
  for_vectors(n, [=](std::int64_t i, std::int64_t count) { store(y + i, load(x + i, count) * factor, count); });
}

// ---- dropout -------------------------------------------------------------------------------------------------------

constexpr int kMaskBlock = 64;  // features that one sweep of philox over 16 counters decides

void mask_factors(const DropoutMask& mask, std::int64_t block, float* factors) {
  for (int lane = 0; lane < 16; lane += kWidth) {
    const Words counter = (Words)lane_numbers() + static_cast<std::uint32_t>(block * 16 + lane);
    const WordQuad random =
        philox_lanes({{counter, splat_words(mask.row), splat_words(static_cast<std::uint32_t>(mask.sample)),
                       splat_words(static_cast<std::uint32_t>(mask.sample >> 32))}},
                     mask.key[0], mask.key[1]);
    for (int w = 0; w < 4; ++w) {
      const Floats factor = random.word[w] >= splat_words(mask.threshold) ? splat(mask.scale) : Floats{};
      store(factors + w * 16 + lane, factor);
    }
  }
}

/// step(i, factors, count): elements [i, i + count) of the span have these factors.
template <class Step>
inline void for_mask_blocks(const DropoutMask& mask, std::int64_t n, Step step) {
  alignas(64) float factors[kMaskBlock];
  for (std::int64_t i = 0; i < n;) {
    const std::int64_t feature = mask.first + i;
    const std::int64_t within = feature & (kMaskBlock - 1);
    const std::int64_t count = kMaskBlock - within < n - i ? kMaskBlock - within : n - i;
    mask_factors(mask, feature / kMaskBlock, factors);
    step(i, factors + within, count);
    i += count;
  }
}

void dropout(const DropoutMask& mask, const float* x, float* y, std::int64_t n, bool accumulate) {
  for_mask_blocks(mask, n, [=](std::int64_t begin, const float* factors, std::int64_t length) {
    for_vectors(length, [=](std::int64_t i, std::int64_t count) {
      const Floats v = load(x + begin + i, count) * load(factors + i, count);
      store(y + begin + i, accumulate ? load(y + begin + i, count) + v : v, count);
    });
  });
}

// ---- rows ----------------------------------------------------------------------------------------------------------

constexpr int kLanes = 32;
constexpr int kParts = kLanes / kWidth;

/// Folds a row into the 32 lanes of `acc` by index modulo 32: lanes = step(lanes, i, count) for each run of elements
/// [i, i + count), leaving lanes without an element alone.
template <class Step>
inline void fold_lanes(float initial, std::int64_t n, Floats* acc, Step step) {
  for (int p = 0; p < kParts; ++p) acc[p] = splat(initial);
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int p = 0; p < kParts; ++p) acc[p] = step(acc[p], i + p * kWidth, std::int64_t{kWidth});
  }
  for (int p = 0; p < kParts; ++p) {
    const std::int64_t count = n - i < kWidth ? n - i : kWidth;
    if (count <= 0) break;
    const Floats next = step(acc[p], i, count);
    acc[p] = lane_numbers() < static_cast<std::int32_t>(count) ? next : acc[p];
    i += kWidth;
  }
}

/// The fixed tree over the 32 lanes of `parts`: l and l + 16, l and l + 8, …
template <class Combine>
inline float fold_parts(Floats* parts, Combine combine) {
  for (int half = kParts / 2; half > 0; half /= 2) {
    for (int p = 0; p < half; ++p) parts[p] = combine(parts[p], parts[p + half]);
  }
  return folded(parts[0], combine);
}

template <class Step>
inline float sum_lanes(std::int64_t n, Step step) {
  Floats parts[kParts];
  fold_lanes(0.0f, n, parts, step);
  return fold_parts(parts, [](Floats a, Floats b) { return a + b; });
}

float maximum(const float* x, std::int64_t n) {
  Floats parts[kParts];
  const auto larger = [](Floats v, Floats most) { return v != v ? v : greater(v, most); };
  fold_lanes(-__builtin_inff(), n, parts,
             [=](Floats most, std::int64_t i, std::int64_t count) { return larger(load(x + i, count), most); });
  return fold_parts(parts, larger);
}

float dot(const float* a, const float* b, std::int64_t n) {
  return sum_lanes(n, [=](Floats sum, std::int64_t i, std::int64_t count) {
    return fma(load(a + i, count), load(b + i, count), sum);
  });
}

float exponentials(const float* x, float factor, float shift, float* y, std::int64_t n) {
  return sum_lanes(n, [=](Floats sum, std::int64_t i, std::int64_t count) {
    const Floats e = exponential(load(x + i, count) * factor - shift);
    if (y != nullptr) store(y + i, e, count);
    return sum + e;
  });
}

float squared_difference(float* p, const float* t, float factor, std::int64_t n) {
  return sum_lanes(n, [=](Floats sum, std::int64_t i, std::int64_t count) {
    const Floats d = load(p + i, count) - load(t + i, count);
    if (factor != 0.0f) store(p + i, d * factor, count);
    return fma(d, d, sum);
  });
}

void softmax_backward(float* s, float* dp, float factor, float shift, float inverse, float mean, std::int64_t n,
                      const DropoutMask* mask) {
  const auto probability = [=](std::int64_t i, std::int64_t count) {
    return exponential(load(s + i, count) * factor - shift) * inverse;
  };
  if (mask == nullptr) {
    for_vectors(n, [=](std::int64_t i, std::int64_t count) {
      const Floats p = probability(i, count);
      store(s + i, p, count);
      store(dp + i, p * (load(dp + i, count) - mean) * factor, count);
    });
    return;
  }
  for_mask_blocks(*mask, n, [=](std::int64_t begin, const float* factors, std::int64_t length) {
    for_vectors(length, [=](std::int64_t j, std::int64_t count) {
      const std::int64_t i = begin + j;
      const Floats keep = load(factors + j, count);
      const Floats p = probability(i, count);
      store(s + i, p * keep, count);
      store(dp + i, p * (load(dp + i, count) * keep - mean) * factor, count);
    });
  });
}

// ---- layer norm
// ------------------------------------------------------------------------------------------------------

void layer_norm(const float* x, const float* weight, const float* bias, float eps, std::int64_t rows,
                std::int64_t features, float* y, RowStatistics* statistics) {
  const float n = static_cast<float>(features);
  for (std::int64_t r = 0; r < rows; ++r, x += features, y += features) {
    const float mean =
        sum_lanes(features, [=](Floats sum, std::int64_t i, std::int64_t count) { return sum + load(x + i, count); }) /
        n;
    const float variance = sum_lanes(features,
                                     [=](Floats sum, std::int64_t i, std::int64_t count) {
                                       const Floats d = load(x + i, count) - mean;
                                       return fma(d, d, sum);
                                     }) /
                           n;
    const float rstd = 1.0f / __builtin_sqrtf(variance + eps);
    statistics[r] = {mean, rstd};
    for_vectors(features, [=](std::int64_t i, std::int64_t count) {
      const Floats normal = (load(x + i, count) - mean) * rstd;
      store(y + i, fma(normal, load(weight + i, count), load(bias + i, count)), count);
    });
  }
}

// dx = rstd·(g - mean(g) - n·mean(g·n)) with g = dy·weight and n = (x - mean)·rstd.
void layer_norm_backward(const float* x, const float* dy, const float* weight, const RowStatistics* statistics,
                         std::int64_t rows, std::int64_t features, float* dx, bool accumulate) {
  const float n = static_cast<float>(features);
  for (std::int64_t r = 0; r < rows; ++r, x += features, dy += features, dx += features) {
    const float mean = statistics[r].mean;
    const float rstd = statistics[r].rstd;
    const auto normal = [=](std::int64_t i, std::int64_t count) { return (load(x + i, count) - mean) * rstd; };
    const auto slope = [=](std::int64_t i, std::int64_t count) {
      return load(dy + i, count) * load(weight + i, count);
    };
    const float shift =
        sum_lanes(features, [=](Floats sum, std::int64_t i, std::int64_t count) { return sum + slope(i, count); }) / n;
    const float tilt =
        sum_lanes(features, [=](Floats sum, std::int64_t i,
                                std::int64_t count) { return fma(slope(i, count), normal(i, count), sum); }) /
        n;
    for_vectors(features, [=](std::int64_t i, std::int64_t count) {
      const Floats d = fma(-normal(i, count), splat(tilt), slope(i, count) - shift) * rstd;
      store(dx + i, accumulate ? load(dx + i, count) + d : d, count);
    });
  }
}

// ---- columns
// ---------------------------------------------------------------------------------------------------------

/// sums[c] for `columns` columns (at most kVectors·kWidth; all of them when kVectors > 1), kSums results at once:
/// step(acc, row, c, count) adds row `row` of columns [c, c + count) to acc[0 … kSums).
template <int kVectors, int kSums, class Step>
inline void sum_strip(std::int64_t rows, std::int64_t column, std::int64_t columns, float* const* sums, bool accumulate,
                      Step step) {
  std::int64_t row = 0;
  do {
    const std::int64_t end = row + kBlockK < rows ? row + kBlockK : rows;
    Floats acc[kVectors][kSums] = {};
    for (; row < end; ++row) {
      for (int v = 0; v < kVectors; ++v) {
        step(acc[v], row, column + v * kWidth, kVectors > 1 ? std::int64_t{kWidth} : columns);
      }
    }
    for (int v = 0; v < kVectors; ++v) {
      for (int s = 0; s < kSums; ++s) {
        float* to = sums[s] + column + v * kWidth;
        const std::int64_t count = kVectors > 1 ? kWidth : columns;
        store(to, accumulate ? load(to, count) + acc[v][s] : acc[v][s], count);
      }
    }
    accumulate = true;
  } while (row < rows);
}

template <int kSums, class Step>
inline void sum_columns(std::int64_t rows, std::int64_t columns, float* const* sums, bool accumulate, Step step) {
  constexpr int kVectors = 4;
  std::int64_t c = 0;
  for (; c + kVectors * kWidth <= columns; c += kVectors * kWidth) {
    sum_strip<kVectors, kSums>(rows, c, kVectors * kWidth, sums, accumulate, step);
  }
  for (; c < columns; c += kWidth) {
    sum_strip<1, kSums>(rows, c, columns - c < kWidth ? columns - c : kWidth, sums, accumulate, step);
  }
}

void column_sums(const float* x, std::int64_t rows, std::int64_t stride, std::int64_t columns, float* sums,
                 bool accumulate) {
  float* const results[] = {sums};
  sum_columns<1>(rows, columns, results, accumulate,
                 [=](Floats* acc, std::int64_t row, std::int64_t c, std::int64_t count) {
                   acc[0] += load(x + row * stride + c, count);
                 });
}

void layer_norm_columns(const float* x, const float* dy, const RowStatistics* statistics, std::int64_t rows,
                        std::int64_t stride, std::int64_t columns, float* dweight, float* dbias, bool accumulate) {
  float* const results[] = {dweight, dbias};
  sum_columns<2>(rows, columns, results, accumulate,
                 [=](Floats* acc, std::int64_t row, std::int64_t c, std::int64_t count) {
                   const Floats d = load(dy + row * stride + c, count);
                   const Floats centred = load(x + row * stride + c, count) - statistics[row].mean;
                   acc[0] = fma(d, centred * statistics[row].rstd, acc[0]);
                   acc[1] += d;
                 });
}

}  // namespace

namespace TRAINER_INSTRUCTION_SET {

extern const Kernels kKernels;
const Kernels kKernels{
    TRAINER_INSTRUCTION_SET_NAME,
    {unary<Gelu>, unary<Relu>, unary<Tanh>, unary<Sigmoid>},
    {unary_backward<Gelu>, unary_backward<Relu>, unary_backward<Tanh>, unary_backward<Sigmoid>},
    add,
    scale,
    dropout,
    maximum,
    dot,
    exponentials,
    squared_difference,
    softmax_backward,
    layer_norm,
    layer_norm_backward,
    column_sums,
    layer_norm_columns,
};

}  // namespace TRAINER_INSTRUCTION_SET
}  // namespace trainer::ops
