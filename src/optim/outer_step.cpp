#include "trainer/optim/outer_step.hpp"

#include <algorithm>
#include <cstdint>

namespace trainer::optim {

namespace {

constexpr std::int64_t kChunk = 16384;

}  // namespace

void outer_step(ThreadPool& pool, const OuterStep& step, int replicas, std::span<float> weights, std::span<float> theta,
                std::span<float> u) {
  const auto count = static_cast<std::int64_t>(weights.size());
  const double keep = 1 - step.learning_rate;
  const double rate = step.learning_rate;
  const double push = step.learning_rate * step.momentum;
  pool.for_each((count + kChunk - 1) / kChunk, [&](std::int64_t chunk, int) {
    const auto begin = static_cast<std::size_t>(chunk * kChunk);
    const auto end = static_cast<std::size_t>(std::min(count, (chunk + 1) * kChunk));
    for (std::size_t i = begin; i < end; ++i) {
      const double mean = static_cast<double>(weights[i]) / replicas;
      double moved = keep * static_cast<double>(theta[i]) + rate * mean;
      if (!u.empty()) {
        const double before = u[i];
        u[i] = static_cast<float>(step.momentum * before + (static_cast<double>(theta[i]) - mean));
        moved -= push * (step.nesterov ? static_cast<double>(u[i]) : before);
      }
      theta[i] = weights[i] = static_cast<float>(moved);
    }
  });
}

}  // namespace trainer::optim
