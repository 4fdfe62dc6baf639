// The norm of a gradient in double, and the factor that clips it.
#include <algorithm>

#include "dispatch.hpp"

namespace trainer::optim {

static_assert(kNormBlock == kNormBlockElements);

std::int64_t norm_scratch(std::int64_t count) { return (count + kNormBlock - 1) / kNormBlock; }

double sum_of_squares(ThreadPool& pool, std::span<const float> values, double* block_sums, const Kernels& kernels) {
  const auto count = static_cast<std::int64_t>(values.size());
  const std::int64_t blocks = norm_scratch(count);
  pool.for_each(blocks, [&](std::int64_t block, int) {
    const std::int64_t begin = block * kNormBlock;
    block_sums[block] = kernels.sum_of_squares(values.data() + begin, std::min(kNormBlock, count - begin));
  });
  double sum = 0;
  for (std::int64_t block = 0; block < blocks; ++block) sum += block_sums[block];
  return sum;
}

float clip_scale(double norm, double limit) {
  if (limit == 0) return 1;
  const double scale = limit / (norm + 1e-6);
  return scale < 1 || scale != scale ? static_cast<float>(scale) : 1.0f;  // a norm that is no number stays visible
}

}  // namespace trainer::optim
