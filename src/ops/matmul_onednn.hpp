// The oneDNN provider's entry; the dnnl headers stay in its .cpp. Private to ops.
#pragma once

#include <string>

#include "trainer/core/thread_pool.hpp"
#include "trainer/ops/matmul.hpp"

namespace trainer::ops {

/// "oneDNN 2.6.3", of the library that is loaded.
std::string describe_onednn();

/// m, n, k > 0. The first call of a shape makes its primitives; later calls allocate nothing of ours.
void onednn_matmul(ThreadPool& pool, const MatmulShape& shape, const float* a, const float* b, float* c,
                   bool accumulate, const float* bias);

}  // namespace trainer::ops
