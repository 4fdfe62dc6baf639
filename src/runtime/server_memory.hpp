// What ranks of a served run hold because it is one.
#pragma once

#include "trainer/runtime/run_plan.hpp"

namespace trainer::runtime {

/// A server: weights, optimizer state, sums of gradients (bsp), and slots for messages of every rank of the mesh.
MemoryPrediction predict_server_memory(const RunPlan& plan, int server, std::size_t data_bytes);

/// What a rank of the mesh takes to pack small parameters into messages.
std::size_t client_memory(const RunPlan& plan, const plan::Coordinates& at);

}  // namespace trainer::runtime
