// Training with each algorithm of parallel.all_reduce, over ranks as threads: whose bits are whose.
#include <doctest/doctest.h>
#include <unistd.h>

#include <cmath>

#include "support/compression_cases.hpp"
#include "support/equivalence.hpp"
#include "trainer/comm/shared_memory.hpp"
#include "trainer/core/error.hpp"

using namespace trainer;
using test::Case;
using test::case_of;

namespace {

test::Trained train(const Case& c) {
  test::Trained trained;
  const std::string directory =
      (std::filesystem::temp_directory_path() / ("trainer-all-reduce-" + std::to_string(getpid()))).string();
  comm::run_in_process(static_cast<int>(c.ranks()), [&](comm::Communicator& world) {
    test::Trained mine = test::run(world, c, directory);
    if (world.rank() == 0) trained = std::move(mine);
  });
  return trained;
}

std::string algorithm(const std::string& name) { return "parallel.all_reduce.algorithm=" + name; }

Case with_micro(Case c, std::int64_t micro_batches) {
  c.micro_batches = micro_batches;
  return c;
}

}  // namespace

TEST_CASE("direct, ring and the library's stand-in train to the bits of shared memory; tree to its own") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  const auto of = [](const std::string& keys) { return train(with_micro(case_of("gpt tied", 4, 1, 1, keys), 1)); };
  const test::Trained shared = of("");
  CHECK(shared.losses.size() == 20);
  for (const std::string name : {"direct", "ring", "hierarchy", "mpi"}) {
    CAPTURE(name);
    CHECK(test::distance(of(algorithm(name)), shared).same_bits);
  }
  const test::Distance tree = test::distance(of(algorithm("tree")), shared);
  CHECK_FALSE(tree.same_bits);
  CHECK(tree.loss < 5e-6);
  CHECK(tree.weight < 1e-4);
}

TEST_CASE("no stage cut, bucket size or schedule changes a bit of any algorithm or wire") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  for (const std::string name : {"direct", "ring", "tree", "hierarchy"}) {
    for (const std::string wire : {"float32", "bfloat16"}) {
      const std::string keys = algorithm(name) + ";parallel.all_reduce.wire=" + wire;
      CAPTURE(keys);
      const test::Trained one = train(with_micro(case_of("gpt tied", 4, 1, 1, keys), 2));
      Case cut = with_micro(case_of("gpt tied", 4, 2, 1, keys + ";parallel.all_reduce.bucket_elements=300"), 2);
      cut.schedule = "zb-h1";
      CHECK(test::distance(train(cut), one).same_bits);
    }
  }
}

TEST_CASE("bfloat16 on the wire trains near float32, and not to its bits") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  for (const std::string model : {"mlp", "gpt untied"}) {
    const test::Trained wide = train(case_of(model, 3, 1, 1, ""));
    const test::Trained narrow = train(case_of(model, 3, 1, 1, "parallel.all_reduce.wire=bfloat16"));
    const test::Distance d = test::distance(narrow, wide);
    CHECK_FALSE(d.same_bits);
    CHECK(d.loss < 5e-3);
  }
}

TEST_CASE("the sum is the mean times the replicas, to the bit where that is a power of two") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  struct First {
    double loss = 0, norm = 0;
    std::vector<float> gradients;
  };
  const auto first_step = [](const std::string& keys) {
    const runtime::RunPlan plan = test::plan_of(case_of("gpt tied", 2, 1, 1, algorithm("ring") + keys));
    const auto data =
        storage::load_dataset(plan.config.data, runtime::model_input(plan.graph), plan.config.training.seed);
    First first;
    comm::run_in_process(2, [&](comm::Communicator& world) {
      ThreadPool pool(1, false);
      runtime::Worker worker(world, plan, *data, pool, true);
      worker.initialise();
      const runtime::StepOutcome outcome = worker.step(1, false);
      if (world.rank() > 0) return;
      const float* const gradients = worker.parameters().gradients();
      first = {
          outcome.loss, outcome.grad_norm, {gradients, gradients + worker.parameters().layout().gradient_elements}};
    });
    return first;
  };
  const First mean = first_step(""), sum = first_step(";parallel.all_reduce.result=sum");
  CHECK(sum.loss == mean.loss);
  CHECK(sum.norm == 2 * mean.norm);
  REQUIRE(mean.gradients.size() > 1000);
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < mean.gradients.size(); ++i) wrong += sum.gradients[i] == 2 * mean.gradients[i] ? 0 : 1;
  CHECK(wrong == 0);
}

TEST_CASE("memory and bytes of the exchange are what its all-reduces take") {
  const auto memory = [](const std::string& keys) {
    const runtime::RunPlan plan = test::plan_of(case_of("gpt untied", 2, 1, 1, keys));
    const plan::LocalGraph local = plan::shard(plan.graph, 1, 0);
    const runtime::ParameterLayout layout = runtime::lay_out_parameters(plan, local, {});
    return std::pair{runtime::gradient_memory(plan, layout, {}), layout.gradient_elements};
  };
  for (const std::string name : {"direct", "ring", "tree", "hierarchy", "mpi"}) {
    for (const std::string wire : {"float32", "bfloat16"}) {
      if (name == "mpi" && wire == "bfloat16") continue;
      const std::string keys = algorithm(name) + ";parallel.all_reduce.wire=" + wire;
      CAPTURE(keys);
      const auto [own, elements] = memory(keys);  // one bucket: the model is small
      comm::AllReduceOptions options;
      const std::map<std::string, comm::AllReduceAlgorithm> by_name = {
          {"direct", comm::AllReduceAlgorithm::Direct},
          {"ring", comm::AllReduceAlgorithm::Ring},
          {"tree", comm::AllReduceAlgorithm::Tree},
          {"hierarchy", comm::AllReduceAlgorithm::Hierarchy},
          {"mpi", comm::AllReduceAlgorithm::Mpi}};
      options.algorithm = by_name.at(name);
      options.wire = wire == "float32" ? comm::Wire::Float32 : comm::Wire::BFloat16;
      const comm::AllReduceCost cost = comm::all_reduce_cost(static_cast<std::int64_t>(elements), 2, 0, options);
      CHECK(own.own == cost.extra_bytes);
      CHECK(own.neighbours == 0);
      CHECK(memory(keys + ";parallel.delayed_gradients=true").first.own == 2 * cost.extra_bytes);
      CHECK(runtime::predict_memory(
                test::plan_of(case_of("gpt untied", 2, 1, 1, keys + ";parallel.delayed_gradients=true")), 0, 1, 0)
                .gradients == 2 * elements * sizeof(float));
      if (name == "mpi") continue;  // assumed
      const auto sent = static_cast<double>(cost.sent_bytes);
      const runtime::RunPlan plan = test::plan_of(case_of("gpt untied", 2, 1, 1, keys));
      const auto data =
          storage::load_dataset(plan.config.data, runtime::model_input(plan.graph), plan.config.training.seed);
      comm::run_in_process(2, [&, count = elements](comm::Communicator& world) {
        ThreadPool pool(1, false);
        runtime::Worker worker(world, plan, *data, pool, true);
        worker.initialise();
        const double by_both =
            sent +
            static_cast<double>(comm::all_reduce_cost(static_cast<std::int64_t>(count), 2, 1, options).sent_bytes);
        CHECK(worker.step(1, false).sent_bytes == by_both);
      });
    }
  }
}

TEST_CASE("a type that the library does not have is refused") {
  CHECK_THROWS_AS(test::plan_of(case_of("mlp", 2, 1, 1, algorithm("mpi") + ";parallel.all_reduce.wire=bfloat16")),
                  Error);
}
