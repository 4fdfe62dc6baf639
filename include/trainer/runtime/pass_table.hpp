// The tables that replicas walk when they take different numbers of micro-batches (parallel.balance "auto").
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/runtime/run_plan.hpp"
#include "trainer/schedule/schedule.hpp"

namespace trainer::runtime {

/// The plan's schedule for this number of micro-batches, as RunPlan::training and training_slots are for its own.
/// Verified. Not for schedules that are made for one number ("auto", "file").
struct PassTable {
  schedule::Schedule schedule;
  std::vector<schedule::StageSlots> slots;  // [stage]
};
PassTable pass_table(const RunPlan& plan, std::int64_t micro_batches);

/// Of a step, over all replicas.
inline std::int64_t all_micro_batches(const RunPlan& plan) { return plan.mesh.data * plan.training.micro_batches; }
/// That one replica may come to take: with balance "auto" all that are left where each of the others takes one.
std::int64_t most_micro_batches(const RunPlan& plan);

/// With balance "auto": slots for what a replica's memory must hold whatever it takes. Throws Error(Usage) where tables
/// of different numbers of micro-batches could not be walked in the same memory, or by replicas of one run.
std::vector<schedule::StageSlots> slots_of_any_share(const RunPlan& plan);

/// A pipeline rank's stages, that whose weight gradients are complete last in front.
std::vector<StageId> stages_by_completion(const schedule::Schedule& schedule, std::int64_t pipeline_rank);

}  // namespace trainer::runtime
