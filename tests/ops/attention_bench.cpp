// Prints how fast causal attention runs at 2,048 tokens cut into sequences of 64 to 2,048. Not a test.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>

#include "trainer/core/random.hpp"
#include "trainer/ops/matmul.hpp"
#include "trainer/ops/operator.hpp"

using namespace trainer;
using namespace trainer::ops;

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kTokens = 2048;
constexpr std::int64_t kHeadSize = 64;

void fill(Buffer& buffer, const char* name) {
  const RandomStream stream(1, name);
  for (std::size_t i = 0; i < buffer.size() / sizeof(float); ++i) buffer.f32()[i] = stream.normal(i);
}

/// The fastest of many calls within a share of a second.
template <class Call>
double fastest_seconds(Call call) {
  constexpr auto kBudget = std::chrono::milliseconds(150);
  double best = 1e9;
  const auto end = Clock::now() + kBudget;
  call();
  do {
    const auto start = Clock::now();
    call();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  } while (Clock::now() < end);
  return best;
}

void measure(ThreadPool& pool, std::int64_t positions, std::int64_t heads, double peak) {
  const std::int64_t width = heads * kHeadSize;
  const auto matrix = [](std::int64_t features) {
    return Buffer(static_cast<std::size_t>(kTokens * features) * sizeof(float));
  };
  Buffer x = matrix(3 * width), y = matrix(width), dy = matrix(width), dx = matrix(3 * width);
  fill(x, "x");
  fill(dy, "dy");
  model::Node node;
  node.name = "attention";
  node.op =
      model::Attention{.heads = heads, .head_begin = 0, .total_heads = heads, .head_size = kHeadSize, .dropout = 0};
  const auto op = make_operator(node, positions);
  const Needs needs = op->needs(kTokens, pool.threads());
  Buffer saved(needs.saved_bytes), workspace(needs.workspace_bytes);
  const MicroBatch batch{
      .samples = kTokens / positions, .positions = positions, .first_sample = 0, .seed = 1, .training = true};
  const double forward = fastest_seconds([&] {
    ForwardCall call{.pool = pool, .batch = batch, .saved = saved.data(), .workspace = workspace.data()};
    call.x[0] = {x.f32(), kTokens, 3 * width};
    call.y = {y.f32(), kTokens, width};
    op->forward(call);
  });
  const double backward = fastest_seconds([&] {
    BackwardInputCall call{.pool = pool, .batch = batch, .saved = saved.data(), .workspace = workspace.data()};
    call.x[0] = {x.f32(), kTokens, 3 * width};
    call.y = {y.f32(), kTokens, width};
    call.dy = {dy.f32(), kTokens, width};
    call.dx[0] = {dx.f32(), kTokens, 3 * width};
    op->backward_input(call);
  });
  // Counted as model::cost does: the causal half, two products forward, four backward; scores made again are not.
  const double product = static_cast<double>(kTokens) * static_cast<double>((positions + 1) * width);
  const auto rate = [&](double products, double seconds) { return products * product / seconds; };
  fmt::print(
      "positions {:5}  threads {}  forward {:8.3f} ms {:5.1f}% of peak  backward {:8.3f} ms {:5.1f}%  both {:5.1f}%\n",
      positions, pool.threads(), forward * 1e3, 100 * rate(2, forward) / peak, backward * 1e3,
      100 * rate(4, backward) / peak, 100 * rate(6, forward + backward) / peak);
  std::fflush(stdout);
}

}  // namespace

/// usage: ops_attention_bench [HEADS [THREADS]]   heads of 64 features; 6 heads and 1 thread
int main(int argc, char** argv) {
  flush_denormals();
  const std::int64_t heads = argc > 1 ? std::atoi(argv[1]) : 6;
  ThreadPool pool(argc > 2 ? std::atoi(argv[2]) : 1);
  if (heads < 1) return 2;
  const double peak = measure_peak_flops() * pool.threads();
  for (std::int64_t positions = 64; positions <= kTokens; positions *= 2) measure(pool, positions, heads, peak);
}
