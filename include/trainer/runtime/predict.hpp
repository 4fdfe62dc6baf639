// What a step of a plan will take, from the costs of its parts. Pure: nothing is started.
#pragma once

#include <cstdint>
#include <vector>

#include "trainer/plan/cost_model.hpp"
#include "trainer/runtime/run_plan.hpp"

namespace trainer::runtime {

struct Prediction {
  double step_seconds = 0;
  double pass_seconds = 0;    // of the walk over the schedule: until the last rank has done its last action
  double bubble = 0;          // share of that in which ranks wait for each other's stages
  double communication = 0;   // seconds of a step that the rank that has most spends on sums over tensor ranks and
                              // replicas, tied gradients, messages and the agreement; within step_seconds
  double optimizer = 0;       // seconds: gradient norm and update
  double measured_share = 0;  // of the stages' time, that comes from measurements
};

/// As the plan's node_of_rank says, and with `speed` of the ranks (see Machines; empty: 1).
Prediction predict(const RunPlan& plan, const plan::CostModel& costs, const std::vector<double>& speed = {});

/// The largest MemoryPrediction::total() of any rank, looking at one rank a stage.
std::size_t peak_memory(const RunPlan& plan, int threads, std::size_t data_bytes);

}  // namespace trainer::runtime
