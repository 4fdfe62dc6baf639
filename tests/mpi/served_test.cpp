// Served runs over MPI: the bits of all_reduce, and steps that allocate nothing, on servers too.
#include <doctest/doctest.h>

#include "app/app.hpp"
#include "runtime/coordinator.hpp"
#include "runtime/parameter_server.hpp"
#include "runtime/served_replica.hpp"
#include "support/mpi_world.hpp"
#include "support/served_cases.hpp"

using namespace trainer;

namespace {

std::string scratch(comm::Communicator& world) {
  static int count = 0;
  const std::string mine = (std::filesystem::temp_directory_path() /
                            ("trainer-served-" + std::to_string(getpid()) + "-" + std::to_string(count++)))
                               .string();
  return world.gather_strings(mine).front();
}

// Allocations by this rank between steps 3 and 12 of a run of 14, where it can tell: rank 0 and the servers.
std::int64_t allocations_in_steps(comm::Communicator& world, const test::ServedCase& c) {
  const runtime::RunPlan plan = runtime::make_plan(
      config::parse(test::model_json(c.c.model), "test", test::overrides(c.served(), "")), world.size());
  const auto data =
      storage::load_dataset(plan.config.data, runtime::model_input(plan.graph), plan.config.training.seed);
  const auto side = world.split(world.rank() < plan.mesh.size() ? 0 : 1, world.rank());
  const runtime::ServerPlan servers = runtime::make_server_plan(plan);
  constexpr std::int64_t kSteps = 14, kFirst = 3, kLast = 12;
  ThreadPool pool(1, false);
  std::int64_t before = -1, after = -1;
  const auto look = [&](std::int64_t step) {
    if (step >= kFirst && before < 0) before = app::allocation_count();
    if (step <= kLast) after = app::allocation_count();
  };
  if (world.rank() < plan.mesh.size()) {
    ActionLog log(runtime::usual_log_capacity(plan, world.rank()), plan.training.rank_of_stage.size());
    runtime::Worker worker(*side, plan, *data, pool, true, &log);
    runtime::StepTimes times(*side, plan, log);
    runtime::ServedReplica replica(world, *side, plan, servers, worker, times, log, nullptr);
    replica.work([&](const runtime::StepRecord& record) { look(record.step); });
    if (world.rank() != 0) return 0;
  } else {
    const int server = side->rank();
    runtime::ServerStore store(plan, servers, server, pool);
    store.initialise();
    runtime::ParameterServer parameters(world, plan, servers, server, store, kSteps);
    const bool bulk = plan.config.parallel.server.consistency == config::Consistency::Bsp;
    const std::int64_t updates = bulk ? 1 : plan.mesh.data;  // of a step
    const auto count = [&] { look(parameters.clocks().version / updates); };
    if (server == 0) {
      const std::int64_t size = plan.config.training.batch_size / plan.mesh.data;
      const auto replicas = static_cast<int>(plan.mesh.data);
      const auto book = bulk ? runtime::make_step_book(replicas, 0, size) : runtime::make_stream_book(replicas, size);
      runtime::ReplicaWatch watch(plan.mesh, static_cast<int>(plan.servers()), 60);
      runtime::Coordinator coordinator(world, plan, *book, kSteps, nullptr, watch);
      parameters.stepped = [&](const runtime::StepRecord& record) { coordinator.stepped(record); };
      coordinator.open_until(kSteps);
      parameters.serve([&] {
        count();
        return coordinator.poll();
      });
    } else {
      parameters.serve([&] {
        count();
        return false;
      });
    }
  }
  CHECK(before > 0);
  return after - before;
}

}  // namespace

TEST_CASE("bsp servers give the bits of all_reduce over MPI") {
  comm::Communicator& world = test::world();
  std::vector<test::ServedCase> cases;
  const std::string few = "training.steps=6;training.eval_every=4";
  const auto add = [&](const std::string& model, std::int64_t data, std::int64_t pipeline, std::int64_t tensor,
                       std::int64_t servers, const std::string& keys) {
    const test::ServedCase c{test::mesh_case(model, data, pipeline, tensor, few), servers, keys};
    if (c.ranks() == world.size()) cases.push_back(c);
  };
  for (const std::string keys : {"", "parallel.notify=true"}) {
    for (std::int64_t servers = 1; servers <= 3; ++servers) {
      for (std::int64_t data = 1; data <= 4; ++data) add("mlp", data, 1, 1, servers, keys);
      add("gpt tied", 2, 2, 1, servers, keys);
      add("gpt tied", 2, 1, 2, servers, keys);
    }
  }
  REQUIRE(!cases.empty());
  for (const test::ServedCase& c : cases) {
    CAPTURE(c.name());
    const test::Trained served = test::run(world, c.served(), scratch(world));
    if (world.rank() != 0) continue;
    test::Trained summed;
    const test::RunDirectory directory("summed");
    comm::run_in_process(static_cast<int>(c.c.ranks()), [&](comm::Communicator& threads) {
      test::Trained mine = test::run(threads, c.c, directory.path);
      if (threads.rank() == 0) summed = std::move(mine);
    });
    CHECK(test::distance(served, summed).same_bits);
  }
}

TEST_CASE("a steady-state step of a served run allocates nothing") {
  comm::Communicator& world = test::world();
  for (const std::string keys : {"parallel.consistency=bsp", "parallel.consistency=ssp", "parallel.consistency=async",
                                 "parallel.consistency=async;parallel.notify=true"}) {
    CAPTURE(keys);
    const std::int64_t servers = world.size() > 2 ? 2 : 1;
    for (const std::string model : {"mlp", "gpt tied"}) {
      CAPTURE(model);
      const test::ServedCase c{test::mesh_case(model, world.size() - servers, 1, 1, "training.steps=14"), servers,
                               keys};
      CHECK(allocations_in_steps(world, c) == 0);
    }
  }
}
