// How long the algorithms of all-reduce take, by size, over the ranks that it is started on: by itself, or over hosts
// (tools/hosts run). usage: all_reduce_bench [SECONDS a size and algorithm [MOST ELEMENTS]]
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <vector>

#include "trainer/comm/all_reduce.hpp"
#include "trainer/comm/communicator.hpp"
#include "trainer/comm/mpi.hpp"
#include "trainer/comm/shared_memory.hpp"
#include "trainer/comm/topology.hpp"

namespace {

using namespace trainer::comm;

struct Column {
  const char* name;
  AllReduceAlgorithm algorithm;
  Wire wire;
};
constexpr Column kColumns[] = {
    {"direct", AllReduceAlgorithm::Direct, Wire::Float32}, {"ring", AllReduceAlgorithm::Ring, Wire::Float32},
    {"tree", AllReduceAlgorithm::Tree, Wire::Float32},     {"hierarchy", AllReduceAlgorithm::Hierarchy, Wire::Float32},
    {"mpi", AllReduceAlgorithm::Mpi, Wire::Float32},       {"direct bf16", AllReduceAlgorithm::Direct, Wire::BFloat16}};
constexpr int kMostRounds = 400;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Median seconds over rounds of the slowest rank. Collective.
double median(Communicator& world, AllReduce& sum, int rounds) {
  std::vector<double> seconds;
  for (int round = 0; round < rounds; ++round) {
    world.barrier();
    const double begin = now();
    sum.start();
    wait(sum, {"an all-reduce", -1, round});
    seconds.push_back(now() - begin);
  }
  world.max(seconds);
  std::nth_element(seconds.begin(), seconds.begin() + rounds / 2, seconds.end());
  return seconds[static_cast<std::size_t>(rounds / 2)];
}

}  // namespace

int main(int argc, char** argv) {
  MpiSession session(&argc, &argv);
  const double each = argc > 1 ? std::atof(argv[1]) : 0.2;
  const std::int64_t most = argc > 2 ? std::atoll(argv[2]) : std::int64_t{1} << 22;
  const auto world = session.world();
  set_wait_policy({.yield = plan_node(*world, 1).oversubscribed, .hang_seconds = 60, .progress = {}});
  AllReduceOptions options;
  options.node_of_rank = node_of_rank(*world);
  const int nodes = 1 + *std::max_element(options.node_of_rank.begin(), options.node_of_rank.end());
  if (world->rank() == 0) {
    fmt::print("{} ranks on {} nodes; ms\n{:>10}", world->size(), nodes, "elements");
    for (const Column& column : kColumns) fmt::print("  {:>11}", column.name);
    fmt::print("\n");
  }
  for (const std::int64_t count : {256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304}) {
    if (count > most) break;
    if (world->rank() == 0) fmt::print("{:>10}", count);
    std::vector<float> data(static_cast<std::size_t>(count));
    for (const Column& column : kColumns) {
      options.algorithm = column.algorithm;
      options.wire = column.wire;
      const auto sum = world->make_all_reduce(data.data(), count, options);
      const double once = median(*world, *sum, 2);
      const double seconds = median(*world, *sum, std::clamp(static_cast<int>(each / once), 3, kMostRounds));
      if (world->rank() == 0) fmt::print("  {:>11.3f}", seconds * 1e3);
    }
    if (world->rank() == 0) fmt::print("\n");
  }
  return 0;
}
