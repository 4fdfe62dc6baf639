// How many ranks each mesh axis takes, and how a batch is cut into replicas and micro-batches.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "exchange_keys.hpp"
#include "trainer/config/config.hpp"
#include "trainer/core/error.hpp"

namespace trainer::config {

namespace {

constexpr std::int64_t kMostSamples = 1 << 24;  // as training.batch_size in the table of keys

[[noreturn]] void refuse(const std::string& message) { throw Error(ExitCode::Usage, message); }

/// a · b, or the largest integer where that overflows.
std::int64_t product(std::int64_t a, std::int64_t b) {
  std::int64_t result = 0;
  return __builtin_mul_overflow(a, b, &result) ? std::numeric_limits<std::int64_t>::max() : result;
}

std::vector<std::int64_t> divisors(std::int64_t n) {
  std::vector<std::int64_t> result;
  for (std::int64_t d = 1; d * d <= n; ++d) {
    if (n % d != 0) continue;
    result.push_back(d);
    if (d * d != n) result.push_back(n / d);
  }
  std::sort(result.begin(), result.end());
  return result;
}

// ---- mesh ---------------------------------------------------------------------------------------------------------

struct Axes {
  std::int64_t data, pipeline, tensor;
};

std::string text_of(const Axes& a) { return fmt::format("{} × {} × {}", a.data, a.pipeline, a.tensor); }

/// Whether the model allows the axes, as far as the configuration alone can say.
bool fits(const Config& config, const Axes& axes) {
  const auto& units = config.parallel.partition_units;
  const std::int64_t chunks = std::max<std::int64_t>(1, stages_a_rank(config.parallel));
  if (!units.empty() && axes.pipeline * chunks != static_cast<std::int64_t>(units.size())) return false;
  const Training& t = config.training;
  const std::int64_t pieces =
      std::max<std::int64_t>(1, t.micro_batches) * std::max<std::int64_t>(1, t.micro_batch_size);
  if (t.batch_size > 0 && t.batch_size % product(axes.data, pieces) != 0) return false;
  const auto* gpt = std::get_if<GptModel>(&config.model);
  return !gpt || (gpt->num_heads % axes.tensor == 0 && axes.pipeline * chunks <= gpt->num_layers + 2);
}

/// Few axes changed before many, small factors before large ones.
double distance(const Axes& a, const Axes& wanted) {
  const auto one = [](std::int64_t x, std::int64_t want) {
    if (want == 0 || x == want) return 0.0;
    return 10.0 + std::abs(std::log2(static_cast<double>(x) / static_cast<double>(want)));
  };
  return one(a.data, wanted.data) + one(a.pipeline, wanted.pipeline) + one(a.tensor, wanted.tensor);
}

/// "1 × 3 × 2, 3 × 1 × 2": up to three products that make `ranks` and are near `wanted`.
std::string suggestions(const Config& config, const Axes& wanted, std::int64_t ranks) {
  std::vector<Axes> all;
  for (const std::int64_t data : divisors(ranks)) {
    for (const std::int64_t pipeline : divisors(ranks / data)) {
      const Axes axes{data, pipeline, ranks / data / pipeline};
      if (fits(config, axes)) all.push_back(axes);
    }
  }
  std::stable_sort(all.begin(), all.end(),
                   [&](const Axes& a, const Axes& b) { return distance(a, wanted) < distance(b, wanted); });
  std::string result;
  for (std::size_t i = 0; i < std::min<std::size_t>(3, all.size()); ++i) {
    result += (result.empty() ? "" : ", ") + text_of(all[i]);
  }
  return result;
}

[[noreturn]] void refuse_mesh(const Config& config, const Axes& wanted, std::int64_t ranks, const std::string& what) {
  const std::string near = suggestions(config, wanted, ranks);
  refuse(fmt::format("{}{}", what,
                     near.empty()
                         ? fmt::format("; this model and batch fit no data × pipeline × tensor of {} ranks", ranks)
                         : fmt::format("; data × pipeline × tensor that would work: {}", near)));
}

void resolve_axes(Config& config, std::int64_t ranks) {
  Parallel& p = config.parallel;
  const std::int64_t servers = p.exchange == Exchange::Server ? p.server.count : 0;
  const std::string beside = servers == 0 ? "" : fmt::format(" beside {} server{}", servers, servers == 1 ? "" : "s");
  if (p.pipeline == 0) {
    p.pipeline = static_cast<std::int64_t>(p.partition_units.size()) / std::max<std::int64_t>(1, stages_a_rank(p));
  }
  const Axes wanted{p.data, p.pipeline, p.tensor};
  const auto given = [](std::int64_t size) { return std::max<std::int64_t>(1, size); };
  const std::int64_t known = product(given(p.data), product(given(p.pipeline), given(p.tensor)));
  const int left_out = (p.data == 0) + (p.pipeline == 0) + (p.tensor == 0);
  const std::string shown =
      fmt::format("data {} × pipeline {} × tensor {}", p.data == 0 ? "?" : std::to_string(p.data),
                  p.pipeline == 0 ? "?" : std::to_string(p.pipeline), p.tensor == 0 ? "?" : std::to_string(p.tensor));
  if (left_out == 0 && known != ranks) {
    refuse_mesh(config, wanted, ranks,
                fmt::format("parallel: {} = {} ranks, but {} were started{}; start {} (mpiexec -n {}), or change the "
                            "sizes",
                            shown, known, ranks, beside, known + servers, known + servers));
  }
  if (ranks % known != 0) {
    refuse_mesh(config, wanted, ranks,
                fmt::format("parallel: {} cannot make {} ranks{}, because {} does not divide {}; start a multiple of "
                            "{}{} (mpiexec -n {}), or "
                            "change the sizes",
                            shown, ranks, beside, known, ranks, known, servers == 0 ? "" : " and the servers",
                            known + servers));
  }
  // One size follows. Data does where it was left out; the others are 1 unless they are the only one left out.
  std::int64_t* follows = p.data == 0 ? &p.data : p.pipeline == 0 ? &p.pipeline : &p.tensor;
  if (p.data != 0 && left_out == 2 && known != ranks) {
    refuse_mesh(config, wanted, ranks,
                fmt::format("parallel: {} leaves open whether pipeline or tensor takes the factor {} of {} ranks; give "
                            "one of them",
                            shown, ranks / known, ranks));
  }
  if (left_out > 0) *follows = ranks / known;
  p.data = given(p.data);
  p.pipeline = given(p.pipeline);
  p.tensor = given(p.tensor);
  p.chunks = stages_a_rank(p);
}

// ---- batch --------------------------------------------------------------------------------------------------------

/// "micro_batches 5 or 15": divisors of `n` around `wanted`; "" when there are none but `wanted`.
std::string near_divisors(const char* name, std::int64_t n, std::int64_t wanted) {
  const std::vector<std::int64_t> all = divisors(n);
  const auto above = std::upper_bound(all.begin(), all.end(), wanted);
  std::string result;
  if (above != all.begin()) result = std::to_string(*std::prev(above));
  if (above != all.end()) result += (result.empty() ? "" : " or ") + std::to_string(*above);
  return fmt::format("{} {}", name, result);
}

std::string near_multiples(std::int64_t unit, std::int64_t wanted) {
  const std::int64_t below = wanted / unit * unit;
  return below > 0 ? fmt::format("batch_size {} or {}", below, below + unit) : fmt::format("batch_size {}", unit);
}

/// batch_size and one of the other two are known; returns the third.
std::int64_t cut_batch(const Config& config, std::int64_t known, const char* name) {
  const std::int64_t data = config.parallel.data;
  const std::int64_t batch = config.training.batch_size;
  const std::int64_t unit = product(data, known);
  if (batch % unit == 0) return batch / unit;
  std::string ways = near_multiples(unit, batch);
  if (batch % data == 0) ways += ", or " + near_divisors(name, batch / data, known);
  refuse(
      fmt::format("training.batch_size is {}, which is not a multiple of parallel.data × {} = {} × {} = {}; what "
                  "would work: {}",
                  batch, name, data, known, unit, ways));
}

[[noreturn]] void refuse_contradiction(const Config& config) {
  const Training& t = config.training;
  const std::int64_t data = config.parallel.data;
  const std::int64_t share = t.batch_size / data;
  const std::int64_t total = product(data, product(t.micro_batches, t.micro_batch_size));
  std::string ways = fmt::format("batch_size {}", total);
  if (t.batch_size % data == 0 && share % t.micro_batch_size == 0) {
    ways += fmt::format(", or micro_batches {}", share / t.micro_batch_size);
  }
  if (t.batch_size % data == 0 && share % t.micro_batches == 0) {
    ways += fmt::format(", or micro_batch_size {}", share / t.micro_batches);
  }
  refuse(
      fmt::format("training.batch_size is {}, but parallel.data × micro_batches × micro_batch_size = {} × {} × {} = "
                  "{}; leave one of the three out, or take {}",
                  t.batch_size, data, t.micro_batches, t.micro_batch_size, total, ways));
}

void resolve_batch(Config& config) {
  Training& t = config.training;
  if (t.micro_batches == 0 && t.micro_batch_size == 0) t.micro_batches = 1;
  const std::int64_t data = config.parallel.data;
  if (t.batch_size == 0) {
    if (t.micro_batches == 0 || t.micro_batch_size == 0) {
      refuse("training.batch_size is missing; give two of batch_size, micro_batches and micro_batch_size");
    }
    t.batch_size = product(data, product(t.micro_batches, t.micro_batch_size));
    if (t.batch_size <= kMostSamples) return;
    refuse(
        fmt::format("training: data {} × micro_batches {} × micro_batch_size {} makes a batch of more than {} "
                    "samples",
                    data, t.micro_batches, t.micro_batch_size, kMostSamples));
  }
  if (t.micro_batch_size == 0) {
    t.micro_batch_size = cut_batch(config, t.micro_batches, "micro_batches");
  } else if (t.micro_batches == 0) {
    t.micro_batches = cut_batch(config, t.micro_batch_size, "micro_batch_size");
  } else if (product(data, product(t.micro_batches, t.micro_batch_size)) != t.batch_size) {
    refuse_contradiction(config);
  }
}

}  // namespace

std::int64_t stages_a_rank(const Parallel& parallel) {
  if (parallel.schedule == ScheduleName::File) return parallel.chunks;
  if (parallel.chunks > 0) return parallel.chunks;
  const bool two = parallel.schedule == ScheduleName::Interleaved || parallel.schedule == ScheduleName::ZeroBubbleV ||
                   parallel.schedule == ScheduleName::DualPipeV;
  return two ? 2 : 1;
}

void resolve_parallel(Config& config, std::int64_t ranks) {
  if (ranks < 1) refuse(fmt::format("the number of ranks is {}; expected at least 1", ranks));
  resolve_axes(config, mesh_ranks(config.parallel, ranks));
  check_replicas(config.parallel);
  resolve_batch(config);
}

}  // namespace trainer::config
