// No allocation by our own code in a steady-state step, on any rank. Linked with the binary's own counter.
#include <doctest/doctest.h>

#include "app/app.hpp"
#include "support/equivalence.hpp"
#include "support/mpi_world.hpp"

using namespace trainer;

namespace {

std::int64_t allocations_in_steps(comm::Communicator& world, const std::string& model,
                                  const std::vector<std::string>& set, bool settle = true) {
  const auto config = config::parse(test::model_json(model), "test", set);
  const runtime::RunPlan plan = runtime::make_plan(config, world.size());
  const auto data =
      storage::load_dataset(plan.config.data, runtime::model_input(plan.graph), plan.config.training.seed);
  ThreadPool pool(1, false);
  ActionLog log(runtime::usual_log_capacity(plan, world.rank()), plan.training.rank_of_stage.size());
  runtime::Worker worker(world, plan, *data, pool, true, &log);
  worker.initialise();
  for (std::int64_t step = 1; step <= 2; ++step) worker.step(step, false, settle);
  const std::int64_t before = app::allocation_count();
  for (std::int64_t step = 3; step <= 12; ++step) worker.step(step, false, settle);
  const std::int64_t after = app::allocation_count();
  worker.step(13, false, true);
  worker.finish_exchange();
  CHECK(!log.kept().empty());
  return after - before;
}

}  // namespace

TEST_CASE("a steady-state step allocates nothing") {
  comm::Communicator& world = test::world();
  for (const std::string model : {"gpt tied", "mlp"}) {
    for (const std::string axis : {"data", "pipeline", "tensor"}) {
      CAPTURE(model);
      CAPTURE(axis);
      CHECK(allocations_in_steps(
                world, model, {"parallel." + axis + "=" + std::to_string(world.size()), "training.micro_batches=2"}) ==
            0);
    }
  }
  CHECK(allocations_in_steps(world, "gpt dropout",
                             {"parallel.pipeline=" + std::to_string(world.size()), "training.micro_batches=2",
                              "training.recompute=full"}) == 0);
  for (const std::string axis : {"data", "pipeline", "tensor"}) {
    CAPTURE(axis);
    // Clipped now and then, so that some steps are taken back.
    CHECK(allocations_in_steps(world, "gpt untied",
                               {"parallel." + axis + "=" + std::to_string(world.size()), "training.micro_batches=2",
                                "training.gradient_clip=1.0", "training.optimistic_step=true"},
                               false) == 0);
  }
  for (const std::string type : {"top_k", "random_k", "sign", "power_sgd", "int8"}) {
    CAPTURE(type);
    std::vector<std::string> keys = {"parallel.data=" + std::to_string(world.size()), "training.micro_batches=2",
                                     "parallel.compression.type=" + type, "parallel.compression.min_elements=100"};
    if (type == "sign") keys.emplace_back(R"(optimizer={"type":"sgd","learning_rate":0.01,"momentum":0.9})");
    CHECK(allocations_in_steps(world, "gpt tied", keys) == 0);
  }
  for (const std::string more : {"all_reduce.algorithm=direct", "all_reduce.algorithm=ring",
                                 "all_reduce.algorithm=tree", "all_reduce.algorithm=hierarchy",
                                 "all_reduce.algorithm=mpi", "all_reduce.wire=bfloat16", "delayed_gradients=true"}) {
    CAPTURE(more);
    CHECK(allocations_in_steps(world, "gpt tied",
                               {"parallel.data=" + std::to_string(world.size()), "training.micro_batches=2",
                                "parallel.all_reduce.bucket_elements=1000", "parallel." + more}) == 0);
  }
  // Rounds end after steps 3, 6, 9 and 12.
  for (const std::string axis : {"data", "pipeline", "tensor"}) {
    CAPTURE(axis);
    CHECK(allocations_in_steps(world, "gpt tied",
                               {"parallel." + axis + "=" + std::to_string(world.size()), "training.micro_batches=2",
                                "parallel.exchange=local", "parallel.local.steps=3"},
                               false) == 0);
  }
  CHECK(allocations_in_steps(world, "gpt tied",
                             {"parallel.data=" + std::to_string(world.size()), "training.micro_batches=2",
                              "parallel.balance=auto"}) == 0);
  // The counter counts.
  const std::int64_t before = app::allocation_count();
  const auto kept = std::make_unique<int>(1);
  CHECK(app::allocation_count() == before + 1);
}
