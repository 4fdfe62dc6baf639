// What others fell into (ALGORITHMS: pytorch, Megatron-LM, torchtitan, DeepSpeed issues), each as a test. Other traps
// are held by the equivalence test (two stages, fewer micro-batches than stages, odd vocabulary, dropout masks over
// layouts) and by tests of plan and schedule (an uneven cut loses no layer, rendezvous sends).
#include <doctest/doctest.h>
#include <unistd.h>

#include <cmath>

#include "support/equivalence.hpp"

using namespace trainer;

namespace {

// Runs `body(worker)` on every rank of a mesh over the model of test::model_json.
template <class Body>
void with_workers(const std::string& model, std::vector<std::string> set, std::int64_t ranks, Body&& body) {
  const auto config = config::parse(test::model_json(model), "test", set);
  const runtime::RunPlan plan = runtime::make_plan(config, ranks);
  const auto data =
      storage::load_dataset(plan.config.data, runtime::model_input(plan.graph), plan.config.training.seed);
  comm::run_in_process(static_cast<int>(ranks), [&](comm::Communicator& world) {
    ThreadPool pool(1, false);
    runtime::Worker worker(world, plan, *data, pool, true);
    worker.initialise();
    body(world, worker);
  });
}

}  // namespace

TEST_CASE(
    "the loss is divided by the targets of the global batch, also when the last batch is not full (torchtitan#2972)") {
  // 96 samples, batches of 40: the third has 16 samples and 24 that are padding. Its loss must be the mean over the 16.
  const std::vector<std::string> set{"training.batch_size=40", "training.steps=null", "training.epochs=1",
                                     "training.micro_batches=2", "training.gradient_clip=0"};
  std::vector<double> losses;
  std::vector<double> norms;
  with_workers("mlp", set, 1, [&](comm::Communicator&, runtime::Worker& worker) {
    CHECK(worker.total_steps() == 3);
    for (std::int64_t step = 1; step <= 3; ++step) {
      const auto outcome = worker.step(step, false);
      losses.push_back(outcome.loss);
      norms.push_back(outcome.grad_norm);
    }
  });
  // A mean over all 40 rows would be 0.4 of ln 7; the mean over the valid ones stays near ln 7 = 1.95.
  CHECK(losses[2] > 1.5);
  // Every cut into micro-batches and replicas gives the same means.
  for (const std::string cut : {"parallel.data=2", "training.micro_batches=4", "training.micro_batches=1"}) {
    auto other = set;
    other.push_back(cut);
    const std::int64_t ranks = cut == "parallel.data=2" ? 2 : 1;
    with_workers("mlp", other, ranks, [&](comm::Communicator& world, runtime::Worker& worker) {
      for (std::int64_t step = 1; step <= 3; ++step) {
        const auto outcome = worker.step(step, false);
        if (world.rank() != 0) continue;
        const auto i = static_cast<std::size_t>(step - 1);
        CHECK(std::abs(outcome.loss - losses[i]) <= 5e-6 * losses[i]);
        CHECK(std::abs(outcome.grad_norm - norms[i]) <= 5e-5 * norms[i]);
      }
    });
  }
}

TEST_CASE("a part of an epoch has no step without samples") {
  // 96 samples, 0.0865 of an epoch: 8.3 samples are 8, which batches of 8 hold in one step.
  for (const auto& part : {std::pair("0.0865", 1), std::pair("0.09375", 2), std::pair("1e-6", 1)}) {
    const std::string epochs = part.first;
    CAPTURE(epochs);
    with_workers("mlp", {"training.batch_size=8", "training.steps=null", "training.epochs=" + epochs}, 1,
                 [&, wanted = part.second](comm::Communicator&, runtime::Worker& worker) {
                   CHECK(worker.total_steps() == wanted);
                   for (int step = 1; step <= wanted; ++step) CHECK(std::isfinite(worker.step(step, false).loss));
                 });
  }
}

TEST_CASE("the gradient norm counts replicated and tied parameters once (Megatron-LM#7228)") {
  double one = 0;
  with_workers("gpt tied", {"training.micro_batches=4"}, 1,
               [&](comm::Communicator&, runtime::Worker& worker) { one = worker.step(1, false).grad_norm; });
  CHECK(one > 0);
  for (const std::string axis : {"tensor", "pipeline", "data"}) {
    for (const std::int64_t ranks : {2, 4}) {
      CAPTURE(axis);
      CAPTURE(ranks);
      const std::int64_t micro_batches = axis == "data" ? 4 / ranks : 4;
      with_workers(
          "gpt tied",
          {"parallel." + axis + "=" + std::to_string(ranks), "training.micro_batches=" + std::to_string(micro_batches)},
          ranks, [&](comm::Communicator&, runtime::Worker& worker) {
            const double norm = worker.step(1, false).grad_norm;
            CHECK(std::abs(norm - one) <= 2e-5 * one);
          });
    }
  }
}

TEST_CASE("copies of a tied embedding on two stages stay the same bits (Megatron-LM#656)") {
  const test::Case c{"gpt tied", 1, 3, 1, "1f1b", 1, 4, ""};
  const auto config = config::parse(test::model_json(c.model), "test", test::overrides(c, ""));
  const runtime::RunPlan plan = runtime::make_plan(config, 3);
  const auto data =
      storage::load_dataset(plan.config.data, runtime::model_input(plan.graph), plan.config.training.seed);
  std::vector<float> copies[3];
  comm::run_in_process(3, [&](comm::Communicator& world) {
    ThreadPool pool(1, false);
    runtime::Worker worker(world, plan, *data, pool, true);
    worker.initialise();
    for (std::int64_t step = 1; step <= 10; ++step) worker.step(step, false);
    for (const runtime::HeldParameter& held : worker.parameters().layout().held) {
      if (plan.graph.parameters[held.id.index()].name != "wte.weight") continue;
      const float* begin = worker.parameters().weights() + held.weight;
      copies[world.rank()].assign(begin, begin + held.elements);
    }
  });
  CHECK(copies[0].size() == 61 * 24);
  CHECK(copies[1].empty());
  CHECK(copies[0] == copies[2]);
}

TEST_CASE("a loss that is not finite stops every rank with the first layer that gave it, and changes no weight") {
  for (const std::string axis : {"tensor", "pipeline", "data"}) {
    CAPTURE(axis);
    with_workers("mlp", {"parallel." + axis + "=2", "training.micro_batches=2"}, 2,
                 [&](comm::Communicator& world, runtime::Worker& worker) {
                   worker.step(1, false);
                   // Poison the second hidden layer wherever it is held.
                   for (const runtime::HeldParameter& held : worker.parameters().layout().held) {
                     if (held.id.value == 2) worker.parameters().weights()[held.weight] = INFINITY;
                   }
                   const float* weights = worker.parameters().weights();
                   const std::vector<float> before(weights, weights + worker.parameters().layout().weight_elements);
                   try {
                     worker.step(2, false);
                     FAIL("did not throw");
                   } catch (const Error& error) {
                     CHECK(error.code() == ExitCode::Diverged);
                     CHECK(std::string(error.what()).find("layers.1 ") != std::string::npos);
                     CHECK(std::string(error.what()).find("step 2") != std::string::npos);
                   }
                   CHECK(std::equal(before.begin(), before.end(), weights));
                   world.barrier();
                 });
  }
}
