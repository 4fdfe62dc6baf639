// SGD and AdamW over segments: the constants of a step, and the cut of the work into chunks.
#include "trainer/optim/optimizer.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "dispatch.hpp"
#include "trainer/core/error.hpp"

namespace trainer::optim {

namespace {

constexpr std::int64_t kChunk = 16384;
// More chunks than this serve no balance, and each one costs a walk over the segments.
constexpr std::int64_t kMostChunks = 1024;

/// Calls work(segment, begin, end) for pieces that cover all segments, in parallel. The segments are taken as one long
/// run of elements that is cut into equal chunks, so many short ones cost no more than one long one.
template <class Work>
void for_each_chunk(ThreadPool& pool, std::span<const Segment> segments, const Work& work) {
  std::int64_t total = 0;
  for (const Segment& segment : segments) total += segment.count;
  const std::int64_t chunk =
      std::max<std::int64_t>(1, (total + kChunk * kMostChunks - 1) / (kChunk * kMostChunks)) * kChunk;
  pool.for_each((total + chunk - 1) / chunk, [&](std::int64_t index, int) {
    std::int64_t begin = index * chunk;
    std::int64_t end = std::min(total, begin + chunk);
    for (const Segment& segment : segments) {
      if (begin < segment.count && begin < end) work(segment, begin, std::min(end, segment.count));
      begin = std::max<std::int64_t>(0, begin - segment.count);
      end -= segment.count;
      if (end <= 0) return;
    }
  });
}

// Weight and states of a piece to `before`, just before the update reads them from the cache.
void keep(const Segment& s, std::int64_t begin, std::int64_t end, int states) {
  std::copy(s.weight + begin, s.weight + end, s.before + begin);
  for (int i = 0; i < states; ++i)
    std::copy(s.state[i] + begin, s.state[i] + end, s.before + (i + 1) * s.count + begin);
}

class Sgd final : public Optimizer {
 public:
  Sgd(const config::Optimizer& config, const Kernels& kernels) : config_(config), kernels_(kernels) {}

  int state_count() const override { return config_.momentum != 0 ? 1 : 0; }
  std::string_view state_name(int) const override { return "momentum"; }

  void update(ThreadPool& pool, std::span<const Segment> segments, std::int64_t, double learning_rate,
              float gradient_scale, bool keep_before) const override {
    SgdStep decayed = {.gradient_scale = gradient_scale,
                       .decay = static_cast<float>(config_.weight_decay),
                       .momentum = static_cast<float>(config_.momentum),
                       .learning_rate = static_cast<float>(learning_rate)};
    SgdStep plain = decayed;
    plain.decay = 0;
    const auto momentum_kernel = config_.nesterov ? kernels_.sgd_nesterov : kernels_.sgd_momentum;
    for_each_chunk(pool, segments, [&](const Segment& s, std::int64_t begin, std::int64_t end) {
      const SgdStep& step = s.decay ? decayed : plain;
      if (keep_before) keep(s, begin, end, state_count());
      if (config_.momentum == 0) {
        kernels_.sgd(s.weight + begin, s.gradient + begin, end - begin, step);
      } else {
        momentum_kernel(s.weight + begin, s.gradient + begin, s.state[0] + begin, end - begin, step);
      }
    });
  }

 private:
  config::Optimizer config_;
  const Kernels& kernels_;
};

class AdamW final : public Optimizer {
 public:
  AdamW(const config::Optimizer& config, const Kernels& kernels) : config_(config), kernels_(kernels) {}

  int state_count() const override { return 2; }
  std::string_view state_name(int index) const override { return index == 0 ? "exp_avg" : "exp_avg_sq"; }

  void update(ThreadPool& pool, std::span<const Segment> segments, std::int64_t step, double learning_rate,
              float gradient_scale, bool keep_before) const override {
    const double t = static_cast<double>(step);
    AdamWStep decayed = {.gradient_scale = gradient_scale,
                         .keep = static_cast<float>(1 - learning_rate * config_.weight_decay),
                         .mean_rate = static_cast<float>(1 - config_.beta1),
                         .beta2 = static_cast<float>(config_.beta2),
                         .square_rate = static_cast<float>(1 - config_.beta2),
                         .correction = static_cast<float>(std::sqrt(1 - std::pow(config_.beta2, t))),
                         .eps = static_cast<float>(config_.eps),
                         .step_size = static_cast<float>(learning_rate / (1 - std::pow(config_.beta1, t)))};
    AdamWStep plain = decayed;
    plain.keep = 1;
    for_each_chunk(pool, segments, [&](const Segment& s, std::int64_t begin, std::int64_t end) {
      if (keep_before) keep(s, begin, end, state_count());
      kernels_.adamw(s.weight + begin, s.gradient + begin, s.state[0] + begin, s.state[1] + begin, end - begin,
                     s.decay ? decayed : plain);
    });
  }

 private:
  config::Optimizer config_;
  const Kernels& kernels_;
};

}  // namespace

void Optimizer::take_back(ThreadPool& pool, std::span<const Segment> segments) const {
  for_each_chunk(pool, segments, [states = state_count()](const Segment& s, std::int64_t begin, std::int64_t end) {
    std::copy(s.before + begin, s.before + end, s.weight + begin);
    for (int i = 0; i < states; ++i) {
      const float* before = s.before + (i + 1) * s.count;
      std::copy(before + begin, before + end, s.state[i] + begin);
    }
  });
}

std::unique_ptr<Optimizer> make_optimizer(const config::Optimizer& config, const Kernels& kernels) {
  switch (config.type) {
    case config::OptimizerType::Sgd:
      if (config.nesterov && config.momentum == 0) {
        throw Error(ExitCode::Usage,
                    "optimizer.nesterov: true needs a momentum, found optimizer.momentum 0; "
                    "set optimizer.momentum (0.9 is usual) or drop nesterov");
      }
      return std::make_unique<Sgd>(config, kernels);
    case config::OptimizerType::AdamW:
      return std::make_unique<AdamW>(config, kernels);
  }
  internal_error("an unknown optimizer type");
}

}  // namespace trainer::optim
