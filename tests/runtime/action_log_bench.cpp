// What time stamps cost: steps of one rank with a log and without, in turns in one process, and one span alone.
// usage: action_log_bench [STEPS]
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#include "support/equivalence.hpp"

using namespace trainer;

namespace {

double median(std::vector<double> seconds) {
  const auto middle = seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2);
  std::nth_element(seconds.begin(), middle, seconds.end());
  return *middle;
}

double seconds_since(std::int64_t begin) { return 1e-9 * static_cast<double>(steady_nanoseconds() - begin); }

void measure(const std::string& name, const std::string& model, std::int64_t steps) {
  const config::Config config =
      config::parse(model, "bench", {"data={\"type\":\"synthetic\"}", "optimizer={\"type\":\"adamw\"}"});
  const runtime::RunPlan plan = runtime::make_plan(config, 1);
  const auto data = storage::load_dataset(plan.config.data, runtime::model_input(plan.graph), 1);
  comm::run_in_process(1, [&](comm::Communicator& world) {
    ThreadPool pool(1, false);
    ActionLog log(runtime::usual_log_capacity(plan, 0), static_cast<std::size_t>(plan.stages()));
    runtime::Worker logged(world, plan, *data, pool, true, &log), silent(world, plan, *data, pool, true);
    std::vector<double> with, without;
    logged.initialise();
    silent.initialise();
    for (std::int64_t step = 1; step <= steps; ++step) {
      for (const bool first : {step % 2 == 0, step % 2 != 0}) {
        const std::int64_t begin = steady_nanoseconds();
        (first ? logged : silent).step(step, false);
        (first ? with : without).push_back(seconds_since(begin));
      }
    }
    const auto best = [](const std::vector<double>& all) { return 1e3 * *std::min_element(all.begin(), all.end()); };
    fmt::print("{}: step {:.4f} ms with the log, {:.4f} without (fastest); medians {:.4f}, {:.4f}: {:+.2f}%\n", name,
               best(with), best(without), 1e3 * median(with), 1e3 * median(without),
               100.0 * (median(with) / median(without) - 1.0));
  });
}

}  // namespace

int main(int argc, char** argv) {
  const std::int64_t steps = argc > 1 ? std::atoll(argv[1]) : 200;
  ActionLog log(1024, 1);
  constexpr int kSpans = 1'000'000;
  const std::int64_t begin = steady_nanoseconds();
  for (int i = 0; i < kSpans; ++i) const ActivitySpan span(&log, Activity::Forward, 0, i);
  fmt::print("a span: {:.1f} ns\n", 1e9 * seconds_since(begin) / kSpans);
  measure("gpt, 2 layers of 128, 4 micro-batches of 256 tokens",
          R"({"model": {"type": "gpt", "vocab_size": 256, "context_length": 64, "hidden_size": 128, "num_layers": 2,
              "num_heads": 4}, "training": {"steps": 1000, "batch_size": 16, "micro_batches": 4, "sequence_length": 64}})",
          steps);
  measure("mlp 64-128-128-10, 8 micro-batches of 8 samples",
          R"({"model": {"type": "mlp", "input_size": 64, "hidden_sizes": [128, 128], "output_size": 10},
              "training": {"steps": 1000, "batch_size": 64, "micro_batches": 8}})",
          20 * steps);
}
