// By hand: push and pull between workers and parameter servers, beside what two ranks can send each other.
//   mpiexec -n 2 server_bench [SERVERS] [BYTES] [OPTIMIZER] [CONSISTENCY]      default: 1 server, 50 MB, sgd, async
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "runtime/parameter_server.hpp"
#include "runtime/server_client.hpp"
#include "trainer/comm/mpi.hpp"
#include "trainer/comm/topology.hpp"
#include "trainer/core/tensor.hpp"

using namespace trainer;

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRounds = 20;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

// Bytes a second of messages of `bytes` from rank 0 to the first server and back, one at a time; the median.
double point_to_point(comm::Communicator& world, int peer, std::size_t bytes) {
  Buffer buffer(bytes);
  const bool sends = world.rank() == 0;
  const bool takes_part = sends || world.rank() == peer;
  std::vector<double> rates{0};
  if (takes_part) {
    rates.clear();
    const auto there =
        sends ? world.make_send(buffer.data(), bytes, peer, 100) : world.make_receive(buffer.data(), bytes, 0, 100);
    const auto back =
        sends ? world.make_receive(buffer.data(), bytes, peer, 101) : world.make_send(buffer.data(), bytes, 0, 101);
    for (int i = 0; i < kRounds; ++i) {
      const auto begin = Clock::now();
      for (auto* transfer : {there.get(), back.get()}) {
        transfer->start();
        comm::wait(*transfer, {"a message of the bench", sends ? peer : 0});
      }
      rates.push_back(2.0 * static_cast<double>(bytes) / seconds_since(begin));
    }
  }
  world.barrier();
  std::sort(rates.begin(), rates.end());
  return rates[rates.size() / 2];
}

runtime::RunPlan plan_of(int ranks, int servers, double bytes, const std::string& optimizer,
                         const std::string& consistency) {
  const auto width = static_cast<int>(std::sqrt(bytes / 8));  // two square matrices of floats
  const std::string text = fmt::format(
      R"({{"model": {{"type": "mlp", "input_size": {0}, "hidden_sizes": [{0}], "output_size": {0}, "activation": "relu"}},
           "data": {{"type": "synthetic", "samples": 64}}, "training": {{"steps": 100, "batch_size": {1}}},
           "optimizer": {{"type": "{2}", "learning_rate": 0.001}},
           "parallel": {{"exchange": "server", "servers": {3}, "consistency": "{4}", "notify": true}}}})",
      width, ranks - servers, optimizer, servers, consistency);
  return runtime::make_plan(config::parse(text, "bench"), ranks);
}

void serve(comm::Communicator& world, const runtime::RunPlan& plan, const runtime::ServerPlan& servers,
           ThreadPool& pool) {
  const int server = world.rank() - static_cast<int>(plan.mesh.size());
  runtime::ServerStore store(plan, servers, server, pool);
  store.initialise();
  runtime::ParameterServer parameter_server(world, plan, servers, server, store, 100);
  world.barrier();
  parameter_server.serve();
}

double push_and_pull(comm::Communicator& world, const runtime::RunPlan& plan, const runtime::ServerPlan& servers) {
  const plan::Coordinates at = plan.mesh.coordinates(world.rank());
  runtime::Parameters parameters(runtime::lay_out_parameters(plan, plan::shard(plan.graph, 1, 0), at), true, 0);
  std::fill_n(parameters.gradients(), parameters.layout().gradient_elements, 1e-3f);
  runtime::ServerClient client(world, plan, servers, at, parameters, nullptr);
  world.barrier();
  runtime::ServerRequest request;
  request.targets = request.step_targets = 1;
  request.kind = runtime::RequestKind::Read;
  client.exchange(request);
  std::vector<double> seconds;
  for (int i = 0; i < kRounds; ++i) {
    request.kind = runtime::RequestKind::Push;
    request.then = 1;
    request.pushed.clock = i;
    request.next.clock = i + 1;
    const auto begin = Clock::now();
    client.exchange(request);
    seconds.push_back(seconds_since(begin));
  }
  request = {};
  client.exchange(request);
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  comm::MpiSession session(&argc, &argv);
  const auto world = session.world();
  const int servers = argc > 1 ? std::atoi(argv[1]) : 1;
  const double bytes = argc > 2 ? std::atof(argv[2]) : 50e6;
  const std::string optimizer = argc > 3 ? argv[3] : "sgd";
  const std::string consistency = argc > 4 ? argv[4] : "async";
  const comm::NodePlan node = comm::plan_node(*world, 1);
  comm::set_wait_policy({.yield = node.oversubscribed, .hang_seconds = 60, .progress = {}});
  const runtime::RunPlan plan = plan_of(world->size(), servers, bytes, optimizer, consistency);
  const runtime::ServerPlan layout = runtime::make_server_plan(plan);
  ThreadPool pool(1, false);
  const double size = 4.0 * static_cast<double>(layout.elements);
  const int peer = static_cast<int>(plan.mesh.size());
  const double whole = point_to_point(*world, peer, static_cast<std::size_t>(size));
  const double cut = point_to_point(*world, peer, runtime::kMessageElements * sizeof(float));
  double seconds[1] = {0};
  if (world->rank() < peer) {
    seconds[0] = push_and_pull(*world, plan, layout);
  } else {
    serve(*world, plan, layout, pool);
  }
  world->max(seconds);
  if (world->rank() != 0) return 0;
  const double rate = 2 * size * static_cast<double>(peer) / seconds[0];
  fmt::print(
      "{} workers, {} servers, {:.1f} MB, {} {}: {:.2f} ms a push and pull, {:.2f} GB/s; point to point {:.2f} "
      "GB/s ({:.2f} in messages of {} KiB): {:.0f}%\n",
      peer, servers, size / 1e6, optimizer, consistency, 1e3 * seconds[0], rate / 1e9, whole / 1e9, cut / 1e9,
      runtime::kMessageElements * sizeof(float) / 1024, 100 * rate / whole);
  return 0;
}
