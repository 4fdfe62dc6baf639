#include "trainer/ops/sum.hpp"

#include <cstring>

#include "layers.hpp"

namespace trainer::ops {

namespace {

constexpr std::int64_t kBlock = 2048;  // elements; stays in the first-level cache

// More terms than two, or a sum that is added: through a block, since `to` may be a term that is still to be read.
void sum_block(const Kernels& kernels, std::span<const float* const> terms, std::int64_t at, float* to, std::int64_t n,
               bool accumulate) {
  alignas(64) float total[kBlock];
  kernels.add(terms[0] + at, terms[1] + at, total, n);
  for (const float* term : terms.subspan(2)) kernels.add(total, term + at, total, n);
  if (accumulate) {
    kernels.add(to + at, total, to + at, n);
  } else {
    std::memcpy(to + at, total, static_cast<std::size_t>(n) * sizeof(float));
  }
}

}  // namespace

void sum_terms(ThreadPool& pool, std::span<const float* const> terms, float* to, std::int64_t n, bool accumulate) {
  const Kernels& kernels = best_kernels();
  if (terms.size() == 1) return copy_or_add(pool, kernels, terms[0], to, n, accumulate);
  for_chunks(pool, n, kChunkElements, [&](std::int64_t begin, std::int64_t end) {
    if (terms.size() == 2 && !accumulate)
      return kernels.add(terms[0] + begin, terms[1] + begin, to + begin, end - begin);
    for (std::int64_t at = begin; at < end; at += kBlock) {
      sum_block(kernels, terms, at, to, std::min(kBlock, end - at), accumulate);
    }
  });
}

}  // namespace trainer::ops
