// The MPI communicator, and the faulty one over it.
#include <doctest/doctest.h>

#include <cstdlib>
#include <cstring>
#include <vector>

#include "support/all_reduce_cases.hpp"
#include "support/communicator_cases.hpp"
#include "support/mpi_world.hpp"
#include "trainer/comm/mpi.hpp"
#include "trainer/comm/shared_memory.hpp"
#include "trainer/comm/topology.hpp"
#include "trainer/core/error.hpp"

using namespace trainer;
using test::world;

TEST_CASE("all-reduce is the rank-ordered serial sum, bit for bit") {
  for (const std::int64_t count : {0, 1, 2, 5, 1000, 1024, 1025, 100003, 2500000})
    test::check_all_reduce(world(), count);
}

TEST_CASE("several all-reduces in flight") { test::check_several_in_flight(world()); }
TEST_CASE("every algorithm of all-reduce, in float32 and bfloat16") {
  test::check_algorithms(world(), {0, 1, 7, 1025, 100003});
  test::check_equal_to_direct(world());
  test::check_several_algorithms_in_flight(world());
  test::check_not_finite(world());
  test::check_wire_errors(world());
}
TEST_CASE("the library's all-reduce") { test::check_library_all_reduce(world()); }
TEST_CASE("tags out of order") { test::check_tags_out_of_order(world()); }
TEST_CASE("order within one tag") { test::check_order_in_one_lane(world()); }
TEST_CASE("point-to-point and all-reduce interleaved") { test::check_interleaved(world()); }
TEST_CASE("small collectives") { test::check_small_collectives(world()); }
TEST_CASE("split") { test::check_split(world()); }
TEST_CASE("memory shared by the processes of a node") { test::check_shared_memory(world()); }
// mpiexec starts these tests on one node, or over hosts (tools/hosts), which this variable says.
static int ranks_on_node() {
  const char* text = std::getenv("TEST_RANKS_ON_NODE");
  return text == nullptr ? world().size() : std::atoi(text);
}

TEST_CASE("which ranks share a node, to us and to MPI") {
  std::vector<int> nodes;
  for (int rank = 0; rank < world().size(); ++rank) nodes.push_back(rank / ranks_on_node());
  CHECK(comm::node_of_rank(world()) == nodes);
  CHECK(world().split_node()->size() == ranks_on_node());
  const auto memory = world().share(64, 1);
  REQUIRE(memory != nullptr);
  for (int rank = 0; rank < world().size(); ++rank) {
    const bool near = nodes[static_cast<std::size_t>(rank)] == nodes[static_cast<std::size_t>(world().rank())];
    CHECK((memory->part(rank) != nullptr) == near);
  }
}
TEST_CASE("messages through shared memory") {
  test::check_shared_lanes(world());
  test::check_fast_sender(world());
}

TEST_CASE("the faulty communicator over MPI") {
  const auto faulty = comm::make_faulty(world(), 7, 300e-6);
  test::check_communicator(*faulty, false);
}

TEST_CASE("a message of 64 MB between neighbours") {
  if (world().size() == 1 || world().rank() > 1) return;
  constexpr std::size_t kCount = std::size_t{8} << 20;
  const int peer = 1 - world().rank();
  std::vector<std::uint64_t> out(kCount);
  std::vector<std::uint64_t> in(kCount);
  const auto value = [](int rank, std::size_t i) { return (static_cast<std::uint64_t>(rank) << 40) + i; };
  for (std::size_t i = 0; i < kCount; ++i) out[i] = value(world().rank(), i);
  const auto receive = world().make_receive(in.data(), kCount * 8, peer, 3);
  const auto send = world().make_send(out.data(), kCount * 8, peer, 3);
  receive->start();
  send->start();
  comm::wait(*receive, {"a large message", peer});
  comm::wait(*send, {"a large message", peer});
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < kCount; ++i) wrong += in[i] != value(peer, i) ? 1 : 0;
  CHECK(wrong == 0);
}

TEST_CASE("many all-reduces made, used and gone do not use the tags up") {
  for (int i = 0; i < 20000; ++i) {
    float value = 1;
    const auto all_reduce = world().make_all_reduce(&value, 1);
    if (i % 4096 != 0) continue;
    all_reduce->start();
    comm::wait(*all_reduce, {"all-reduce"});
    CHECK(value == static_cast<float>(world().size()));
  }
}

TEST_CASE("a transfer that nobody answers is a hang that says what it waited for; it can be given up") {
  if (world().size() == 1) return;
  const comm::WaitPolicy before = comm::wait_policy();
  comm::set_wait_policy({.yield = true, .hang_seconds = 0.05, .progress = {}});
  const int peer = (world().rank() + 1) % world().size();
  try {
    float value = 0;
    const auto receive = world().make_receive(&value, sizeof(value), peer, 99);
    receive->start();
    comm::wait(*receive, {"activations of micro-batch", peer, 3});
    FAIL("nobody sent");
  } catch (const Error& e) {
    CHECK(e.code() == ExitCode::Hang);
    CHECK(std::strstr(e.what(), "activations of micro-batch 3") != nullptr);
    CHECK(std::strstr(e.what(), ("rank " + std::to_string(peer)).c_str()) != nullptr);
  }
  comm::set_wait_policy(before);
  world().barrier();
}

TEST_CASE("misuse is an error, not a hang") {
  if (world().size() == 1) return;
  std::vector<float> data(10);
  const int peer = (world().rank() + 1) % world().size();
  {
    const auto receive = world().make_receive(data.data(), 4, peer, 98);
    receive->start();
    CHECK_THROWS_AS(receive->start(), Error);
  }
  CHECK_THROWS_AS(world().make_send(data.data(), 4, world().size(), 0), Error);
  world().barrier();
}

TEST_CASE("the plan of a node") {
  const comm::NodePlan plan = comm::plan_node(world());
  CHECK(plan.ranks_on_node == ranks_on_node());
  CHECK(plan.cores >= 1);
  CHECK(plan.threads == std::max(1, plan.cores / plan.ranks_on_node));
  // Hosts share the machine's cores, which may be too few for all of them together.
  if (plan.ranks_on_node == world().size()) CHECK(plan.oversubscribed == (plan.ranks_on_node > plan.cores));
  CHECK(plan.oversubscribed >= (plan.ranks_on_node > plan.cores));
  CHECK(comm::plan_node(world(), 3).threads == 3);
  CHECK(!comm::wrong_launcher_message(world().size()));
}
