// Models with "delay" layers: what they compute is what they would without, and every half of the backward is taken.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "support/equivalence.hpp"

using namespace trainer;

namespace {

constexpr const char* kRest =
    R"("data": {"type": "synthetic", "samples": 24}, "optimizer": {"type": "adamw", "learning_rate": 0.01},
       "training": {"steps": 3, "batch_size": 8, "micro_batches": 4})";

std::string with_layers(const std::string& layers) {
  return R"({"model": {"type": "sequential", "input_size": 5, "layers": [)" + layers + "]}, " + kRest + "}";
}

constexpr const char* kDelay =
    R"({"type": "delay", "forward_ms": 1, "backward_input_ms": 0.5, "backward_weight_ms": 2})";

struct Run {
  std::vector<double> losses;
  std::vector<std::vector<float>> weights;  // [rank]
  std::vector<ActionLog::StageSum> times;   // [rank] of its first stage
  std::vector<int> separate_weights;        // [rank] W actions in a step
};

Run run(const std::string& json, const std::vector<std::string>& set, std::int64_t ranks) {
  const auto config = config::parse(json, "test", set);
  const runtime::RunPlan plan = runtime::make_plan(config, ranks);
  const auto data =
      storage::load_dataset(plan.config.data, runtime::model_input(plan.graph), plan.config.training.seed);
  Run result;
  result.weights.resize(static_cast<std::size_t>(ranks));
  result.times.resize(static_cast<std::size_t>(ranks));
  result.separate_weights.resize(static_cast<std::size_t>(ranks));
  comm::run_in_process(static_cast<int>(ranks), [&](comm::Communicator& world) {
    ThreadPool pool(1, false);
    ActionLog log(1, static_cast<std::size_t>(plan.stages()));
    runtime::Worker worker(world, plan, *data, pool, true, &log);
    worker.initialise();
    for (std::int64_t step = 1; step <= 3; ++step) {
      const double loss = worker.step(step, false).loss;
      if (world.rank() == 0) result.losses.push_back(loss);
    }
    const auto rank = static_cast<std::size_t>(world.rank());
    for (const runtime::HeldParameter& held : worker.parameters().layout().held) {
      const float* begin = worker.parameters().weights() + held.weight;
      result.weights[rank].insert(result.weights[rank].end(), begin, begin + held.elements);
    }
    result.times[rank] = log.stages()[plan.stages_of(worker.coordinates().pipeline).front().index()];
    for (const schedule::Action& action : plan.training.ranks[static_cast<std::size_t>(worker.coordinates().pipeline)])
      result.separate_weights[rank] += action.kind == schedule::ActionKind::BackwardWeight ? 1 : 0;
  });
  return result;
}

}  // namespace

TEST_CASE("delays change no bit: between layers and inside a residual block, on tensor ranks too") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  // A dropout of nothing is no node, but counts among the layers, whose numbers are in the weights' names.
  const auto model = [](const std::string& pass) {
    const std::string linear = R"({"type": "linear", "output_size": 6})";
    return with_layers(linear + ", " + pass + ", " + linear + R"(, {"type": "residual", "layers": [)" + linear + ", " +
                       pass + "]}, " + pass + ", " + linear);
  };
  const std::string plain = model(R"({"type": "dropout", "probability": 0})");
  const std::string delayed = model(kDelay);
  for (const std::int64_t tensor : {1, 2}) {
    CAPTURE(tensor);
    const std::vector<std::string> set{"parallel.tensor=" + std::to_string(tensor)};
    const Run without = run(plain, set, tensor);
    const Run with = run(delayed, set, tensor);
    CHECK(with.losses == without.losses);
    CHECK(with.weights == without.weights);
  }
}

TEST_CASE("a stage of delays alone takes F, I and W once a micro-batch, on the first stage too") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  const std::string model = with_layers(std::string(kDelay) + ", " + kDelay);
  const Run one = run(model, {}, 1);
  for (const std::string schedule : {"gpipe", "1f1b", "zb-h1"}) {
    CAPTURE(schedule);
    const Run two = run(model, {"parallel.pipeline=2", "parallel.schedule=" + schedule}, 2);
    CHECK(two.losses == one.losses);
    for (std::size_t rank = 0; rank < 2; ++rank) {
      const auto seconds = [&](Activity activity) {
        return 1e-9 * static_cast<double>(two.times[rank].nanoseconds[static_cast<std::size_t>(activity)]);
      };
      constexpr double kMicroBatches = 3 * 4;  // of three steps
      const double separate = 3 * two.separate_weights[rank];
      // An action may make up for what the one before was late by: 0.3 ms at most, and never in the sum of all.
      constexpr double kMadeUp = 0.3e-3;
      const double backward = seconds(Activity::Backward) + seconds(Activity::BackwardInput);
      CHECK(seconds(Activity::Forward) >= kMicroBatches * (1e-3 - kMadeUp));
      CHECK(backward >= kMicroBatches * (0.5e-3 - kMadeUp) + (kMicroBatches - separate) * 2e-3);
      CHECK(seconds(Activity::BackwardWeight) >= separate * (2e-3 - kMadeUp));
      CHECK(seconds(Activity::Forward) + backward + seconds(Activity::BackwardWeight) >=
            kMicroBatches * 3.5e-3 - kMadeUp);
    }
    if (schedule == "zb-h1") CHECK(two.separate_weights[0] + two.separate_weights[1] > 0);
  }
}

TEST_CASE("a model without parameters trains over replicas, too") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  const std::string model = with_layers(kDelay);
  const Run one = run(model, {}, 1);
  const Run two = run(model, {"parallel.data=2", "training.micro_batches=2"}, 2);
  CHECK(one.losses.size() == 3);
  for (std::size_t i = 0; i < one.losses.size(); ++i) {
    CHECK(std::abs(two.losses[i] - one.losses[i]) <= 5e-6 * one.losses[i]);
  }
}
