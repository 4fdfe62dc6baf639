// Sums of arrays, for what ranks have computed in parts.
#pragma once

#include <cstdint>
#include <span>

#include "trainer/core/thread_pool.hpp"

namespace trainer::ops {

/// to[i] = terms[0][i] + terms[1][i] + …, added in that order, for i in [0, n); with `accumulate` that sum is added to
/// to[i]. `to` may be one of the terms. The bits do not depend on the number of threads.
void sum_terms(ThreadPool& pool, std::span<const float* const> terms, float* to, std::int64_t n, bool accumulate);

}  // namespace trainer::ops
