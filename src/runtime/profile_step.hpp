// The parts of a step that are no pieces of the model: optimizer, norms, sums, messages, agreement.
#pragma once

#include "trainer/comm/communicator.hpp"
#include "trainer/core/thread_pool.hpp"
#include "trainer/plan/cost_model.hpp"
#include "trainer/runtime/run_plan.hpp"

namespace trainer::runtime {

/// Fills everything of `costs` but its pieces, in about `seconds`. Collective over `world`.
void profile_step(comm::Communicator& world, const RunPlan& plan, ThreadPool& pool, double seconds,
                  plan::CostModel& costs);

}  // namespace trainer::runtime
