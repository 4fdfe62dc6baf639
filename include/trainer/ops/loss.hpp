// Pieces of the losses. Cross-entropy comes in three so that the runtime can sum over tensor ranks in between; no rank
// ever holds more than its own classes. The gradient replaces the logits in place.
#pragma once

#include <cstdint>

#include "trainer/core/tensor.hpp"
#include "trainer/core/thread_pool.hpp"

namespace trainer::ops {

/// maximum[row] = max over this rank's classes; a NaN in the row gives NaN.
void cross_entropy_max(ThreadPool& pool, ConstMatrix logits, float* maximum);

/// With the global maximum: sums[2·row] = Σ exp(logit − max) over this rank's classes (logits become these exponentials
/// when `keep_exponentials`), sums[2·row + 1] = the target's (logit − max), 0 where the target is another rank's or −1.
/// `targets` are global class numbers; this rank has [class_begin, class_begin + logits.features).
void cross_entropy_sums(ThreadPool& pool, Matrix logits, const float* maximum, const std::int32_t* targets,
                        std::int64_t class_begin, bool keep_exponentials, float* sums);

/// With the global sums: losses[row] = log Σ − target's, 0 where the target is −1; and the gradient
/// (softmax − one-hot) · scale over the exponentials in place (zero rows where the target is −1) unless `scale` is 0
/// and only the loss is wanted.
void cross_entropy_finish(ThreadPool& pool, Matrix exponentials, const float* sums, const std::int32_t* targets,
                          std::int64_t class_begin, float scale, float* losses);

/// losses[row] = Σ_features (p − t)²; predictions become 2 (p − t) · scale unless scale is 0. A row that is not counted
/// (`valid[row]` 0; null: all are) gives zeros.
void squared_error(ThreadPool& pool, Matrix predictions, ConstMatrix targets, const std::uint8_t* valid, float scale,
                   float* losses);

/// hits[row] = 1 where the largest logit's first index is the target, among this rank's classes: best[row] is the value
/// and best_class[row] its global class; the runtime compares over ranks.
void row_argmax(ThreadPool& pool, ConstMatrix logits, std::int64_t class_begin, float* best, std::int32_t* best_class);

/// The sum of n floats in double, one chain in ascending order.
double ordered_sum(const float* values, std::int64_t n);

}  // namespace trainer::ops
