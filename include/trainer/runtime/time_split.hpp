// From time stamps to the split of a step: by activity, and which of the waits the schedule itself forces.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "trainer/comm/communicator.hpp"
#include "trainer/core/action_log.hpp"
#include "trainer/core/time_split.hpp"
#include "trainer/runtime/run_plan.hpp"
#include "trainer/schedule/schedule.hpp"

namespace trainer::runtime {

/// By activity alone: all waits for messages are in `receive`, bubble is 0.
TimeSplit split_of(const ActivityTimes& times);

/// Seconds that a pipeline rank idles in a simulated pass.
struct ForcedIdle {
  double in_pass = 0;  // between its actions
  double at_end = 0;   // behind its last action, until the last rank is done
};
/// With these times a stage and messages that take none: what no faster network would save. [pipeline rank]
std::vector<ForcedIdle> forced_idle(const schedule::Schedule& schedule, const std::vector<schedule::StageTimes>& times);

/// Moves what the simulated pass waits too from the measured waits to `bubble`: in_pass at most, out of receive and
/// send; at_end at most, out of tied gradients and agreement, where a rank that is done meets those that are not. The
/// sum stays.
void attribute_bubble(TimeSplit& split, const ForcedIdle& idle, double tied);

/// The times of one rank, in a form that is gathered.
struct RankTimes {
  ActivityTimes activities{};
  std::vector<ActionLog::StageSum> stages;  // [stage] of the pipeline; zeros for those that it does not hold
  std::int64_t pass = 0;                    // nanoseconds
  std::int64_t steps = 0;
};

/// What the simulator takes: mean times of a stage's actions, waits for tensor ranks in them. Where a stage has I and
/// W, its B is left out.
schedule::StageTimes stage_times(const ActionLog::StageSum& sum);

/// The splits of all ranks, each a mean over the steps that `ranks` [world rank] sums up, but for what lies between
/// steps, which is a sum. Bubbles are those of each (replica, tensor) pipeline by itself, walking `tables` [replica]
/// (empty: the plan's own).
std::vector<TimeSplit> split_ranks(const RunPlan& plan, const std::vector<RankTimes>& ranks,
                                   const std::vector<const schedule::Schedule*>& tables = {});

/// Collects the times of steps, and brings those of all ranks to rank 0.
class StepTimes {
 public:
  /// Collective over `world`; log and plan must outlive it.
  StepTimes(comm::Communicator& world, const RunPlan& plan, const ActionLog& log);

  /// Around each step.
  void before_step();
  void after_step();

  /// Collective, in two parts so that nobody need wait in between: the step that is behind us at the first.
  /// [world rank] on rank 0, empty elsewhere.
  void begin_gather_step();
  std::vector<RankTimes> end_gather();
  /// Collective: all steps but the first of the run (that one where there is no other), and everything that lay
  /// between steps. [world rank] on rank 0, empty elsewhere.
  std::vector<RankTimes> gather_run();

 private:
  void read(RankTimes& times) const;
  void begin_gather(const RankTimes& mine);

  comm::Communicator& world_;
  const RunPlan& plan_;
  const ActionLog& log_;
  std::size_t width_ = 0;        // numbers of one rank
  std::vector<double> numbers_;  // mine, or on rank 0 everybody's: [rank][width]
  std::vector<std::unique_ptr<comm::Transfer>> transfers_;
  RankTimes before_, now_, first_;  // sums since the beginning: before the step behind us, behind it, behind the first
};

}  // namespace trainer::runtime
