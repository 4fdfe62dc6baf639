#include "trainer/runtime/pass_table.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "trainer/core/error.hpp"
#include "trainer/schedule/table_file.hpp"

namespace trainer::runtime {

namespace {

// Why replicas could not walk a table beside the plan's own, in the memory for `slots`; "" when they can.
std::string misfit(const RunPlan& plan, const std::vector<schedule::StageSlots>& slots, const PassTable& table) {
  for (std::int64_t rank = 0; rank < plan.mesh.pipeline; ++rank) {
    // Replicas raise one counter for the buckets of a rank, in one order.
    if (stages_by_completion(table.schedule, rank) != stages_by_completion(plan.training, rank)) {
      return fmt::format("completes the gradients of rank {}'s stages in another order", rank);
    }
  }
  for (std::size_t s = 0; s < slots.size(); ++s) {
    const StageId stage(static_cast<std::int64_t>(s));
    if (splits_backward(table.schedule, stage) && !splits_backward(plan.training, stage)) {
      return fmt::format("takes the backward of stage {} in two halves", s);
    }
    const schedule::StageSlots &most = slots[s], &needed = table.slots[s];
    if (needed.activation_count > most.activation_count || needed.weight_input_count > most.weight_input_count ||
        needed.weight_gradient_count > most.weight_gradient_count ||
        needed.output_gradient_count > most.output_gradient_count) {
      return fmt::format("holds more of stage {} at once than with the most micro-batches", s);
    }
  }
  return {};
}

}  // namespace

PassTable pass_table(const RunPlan& plan, std::int64_t micro_batches) {
  if (micro_batches == plan.training.micro_batches) return {plan.training, plan.training_slots};
  const config::Parallel& parallel = plan.config.parallel;
  const schedule::Generator* generator = schedule::find_generator(config::name_of(parallel.schedule));
  if (generator == nullptr)
    internal_error("a schedule for any number of micro-batches was asked for, and there is none");
  const schedule::PipelineShape shape{plan.stages(), micro_batches, parallel.split_backward, parallel.chunks,
                                      parallel.micro_batch_group};
  PassTable table;
  table.schedule = schedule::add_reductions(schedule::lowered(generator->make(shape)));
  if (const auto violation = schedule::verify(table.schedule)) {
    internal_error("the schedule of a replica's share cannot run: " + violation->message);
  }
  table.slots = schedule::assign_slots(table.schedule);
  return table;
}

std::int64_t most_micro_batches(const RunPlan& plan) {
  if (!plan.balances()) return plan.training.micro_batches;
  return all_micro_batches(plan) - (plan.mesh.data - 1);
}

// Tables differ in how they begin and end; what lies between repeats itself, so longer ones than a few times the stages
// say nothing new.
std::vector<schedule::StageSlots> slots_of_any_share(const RunPlan& plan) {
  const std::int64_t most = most_micro_batches(plan);
  const PassTable largest = pass_table(plan, most);
  if (plan.config.parallel.most_held > 0) {
    if (const auto over = schedule::over_cap(largest.schedule, plan.config.parallel.most_held)) {
      throw Error(ExitCode::Usage,
                  fmt::format("parallel.balance: is \"auto\", so one of {} replicas may come to take {} micro-batches, "
                              "and the schedule \"{}\" then goes beyond parallel.most_held: {}; \"1f1b\" may not, nor "
                              "balance \"even\"",
                              plan.mesh.data, most, config::name_of(plan.config.parallel.schedule), over->message));
    }
  }
  const std::int64_t few = std::min(most, 4 * plan.stages() + plan.config.parallel.micro_batch_group);
  for (std::int64_t count = 1; count <= few + 1; ++count) {
    const std::int64_t m = count <= few ? count : most;
    const std::string why = misfit(plan, largest.slots, pass_table(plan, m));
    if (why.empty()) continue;
    throw Error(ExitCode::Usage,
                fmt::format("parallel.balance: is \"auto\", but the schedule \"{}\" of {} micro-batch{} {}, so that "
                            "replicas cannot take what fits their speed; \"1f1b\", \"gpipe\" and \"zb-h1\" always "
                            "can, and so does balance \"even\"",
                            config::name_of(plan.config.parallel.schedule), m, m == 1 ? "" : "es", why));
  }
  return largest.slots;
}

std::vector<StageId> stages_by_completion(const schedule::Schedule& schedule, std::int64_t pipeline_rank) {
  std::vector<StageId> order;
  const auto& row = schedule.ranks[static_cast<std::size_t>(pipeline_rank)];
  for (auto action = row.rbegin(); action != row.rend(); ++action) {
    const bool weights =
        action->kind == schedule::ActionKind::Backward || action->kind == schedule::ActionKind::BackwardWeight;
    if (weights && std::find(order.begin(), order.end(), action->stage) == order.end()) order.push_back(action->stage);
  }
  return order;
}

}  // namespace trainer::runtime
