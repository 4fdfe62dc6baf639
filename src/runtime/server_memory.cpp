#include "server_memory.hpp"

#include "server_client.hpp"
#include "server_lane.hpp"
#include "server_store.hpp"
#include "trainer/optim/optimizer.hpp"
#include "trainer/runtime/server_plan.hpp"

namespace trainer::runtime {

MemoryPrediction predict_server_memory(const RunPlan& plan, int server, std::size_t data_bytes) {
  const ServerPlan servers = make_server_plan(plan);
  const bool bulk = plan.config.parallel.server.consistency == config::Consistency::Bsp;
  MemoryPrediction memory;
  memory.weights = static_cast<std::size_t>(servers.range(server).size()) * sizeof(float);
  memory.optimizer =
      memory.weights * static_cast<std::size_t>(optim::make_optimizer(plan.config.optimizer)->state_count());
  if (bulk) {
    memory.gradients = static_cast<std::size_t>(gradient_places(plan, servers, server).elements) * sizeof(float);
    memory.communication += static_cast<std::size_t>(servers.block.back()) * sizeof(double);
  }
  for (std::int64_t rank = 0; rank < plan.mesh.size(); ++rank) {
    const ServerStream stream = make_stream(plan, servers, server, plan.mesh.coordinates(rank));
    memory.communication += ServerLane::slot_bytes(stream);
  }
  memory.data = data_bytes;
  memory.fixed = std::size_t{6} << 20;
  return memory;
}

std::size_t client_memory(const RunPlan& plan, const plan::Coordinates& at) {
  return ServerClient::memory_bytes(plan, make_server_plan(plan), at);
}

}  // namespace trainer::runtime
