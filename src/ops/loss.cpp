// Cross-entropy in pieces, squared error, and what evaluation asks of logits.
#include "trainer/ops/loss.hpp"

#include <cmath>
#include <cstring>

#include "layers.hpp"

namespace trainer::ops {

namespace {

/// The target's index among this rank's classes, or -1.
std::int64_t local_class(std::int32_t target, std::int64_t class_begin, std::int64_t classes) {
  const std::int64_t index = target - class_begin;
  return target >= 0 && index >= 0 && index < classes ? index : -1;
}

template <class Body>
void for_rows(ThreadPool& pool, ConstMatrix matrix, Body&& body) {
  for_chunks(pool, matrix.rows, chunk_rows(matrix.features), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) body(row);
  });
}

void clear(float* row, std::int64_t n) { std::memset(row, 0, static_cast<std::size_t>(n) * sizeof(float)); }

}  // namespace

void cross_entropy_max(ThreadPool& pool, ConstMatrix logits, float* maximum) {
  const Kernels& kernels = best_kernels();
  for_rows(pool, logits, [&](std::int64_t row) { maximum[row] = kernels.maximum(logits.row(row), logits.features); });
}

void cross_entropy_sums(ThreadPool& pool, Matrix logits, const float* maximum, const std::int32_t* targets,
                        std::int64_t class_begin, bool keep_exponentials, float* sums) {
  const Kernels& kernels = best_kernels();
  for_rows(pool, logits, [&](std::int64_t row) {
    float* x = logits.row(row);
    const std::int64_t target = local_class(targets[row], class_begin, logits.features);
    sums[2 * row + 1] = target < 0 ? 0.0f : x[target] - maximum[row];
    sums[2 * row] = kernels.exponentials(x, 1.0f, maximum[row], keep_exponentials ? x : nullptr, logits.features);
  });
}

void cross_entropy_finish(ThreadPool& pool, Matrix exponentials, const float* sums, const std::int32_t* targets,
                          std::int64_t class_begin, float scale, float* losses) {
  const Kernels& kernels = best_kernels();
  for_rows(pool, exponentials, [&](std::int64_t row) {
    float* e = exponentials.row(row);
    const float sum = sums[2 * row];
    const bool counted = targets[row] >= 0;
    losses[row] = counted ? static_cast<float>(std::log(static_cast<double>(sum)) - sums[2 * row + 1]) : 0.0f;
    if (scale == 0.0f) return;
    if (!counted) return clear(e, exponentials.features);
    kernels.scale(e, scale / sum, e, exponentials.features);
    const std::int64_t target = local_class(targets[row], class_begin, exponentials.features);
    if (target >= 0) e[target] -= scale;
  });
}

void squared_error(ThreadPool& pool, Matrix predictions, ConstMatrix targets, const std::uint8_t* valid, float scale,
                   float* losses) {
  const Kernels& kernels = best_kernels();
  for_rows(pool, predictions, [&](std::int64_t row) {
    if (valid != nullptr && valid[row] == 0) {
      losses[row] = 0.0f;
      if (scale != 0.0f) clear(predictions.row(row), predictions.features);
      return;
    }
    losses[row] =
        kernels.squared_difference(predictions.row(row), targets.row(row), 2.0f * scale, predictions.features);
  });
}

void row_argmax(ThreadPool& pool, ConstMatrix logits, std::int64_t class_begin, float* best, std::int32_t* best_class) {
  const Kernels& kernels = best_kernels();
  for_rows(pool, logits, [&](std::int64_t row) {
    const float* x = logits.row(row);
    best[row] = kernels.maximum(x, logits.features);
    std::int64_t first = 0;
    while (first + 1 < logits.features && x[first] != best[row]) ++first;
    if (best[row] != best[row]) first = 0;
    best_class[row] = static_cast<std::int32_t>(class_begin + first);
  });
}

double ordered_sum(const float* values, std::int64_t n) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += static_cast<double>(values[i]);
  return sum;
}

}  // namespace trainer::ops
