#include "trainer/runtime/time_split.hpp"

#include <algorithm>

#include "trainer/core/error.hpp"

namespace trainer::runtime {

namespace {

constexpr int kTag = 0;  // of the world: nothing else sends messages there
constexpr double kNanosecond = 1e-9;
constexpr std::size_t kKinds = 4;  // of compute activities

double seconds(const ActivityTimes& times, Activity activity) {
  return kNanosecond * static_cast<double>(times[static_cast<std::size_t>(activity)]);
}

// a − b, number by number.
RankTimes difference(const RankTimes& a, const RankTimes& b) {
  RankTimes d = a;
  for (std::size_t i = 0; i < kActivities; ++i) d.activities[i] -= b.activities[i];
  for (std::size_t s = 0; s < d.stages.size(); ++s) {
    for (std::size_t k = 0; k < kKinds; ++k) {
      d.stages[s].nanoseconds[k] -= b.stages[s].nanoseconds[k];
      d.stages[s].count[k] -= b.stages[s].count[k];
    }
  }
  d.pass -= b.pass;
  d.steps -= b.steps;
  return d;
}

}  // namespace

TimeSplit split_of(const ActivityTimes& times) {
  const auto of = [&times](Activity activity) { return seconds(times, activity); };
  TimeSplit split;
  split.forward = of(Activity::Forward);
  split.backward = of(Activity::Backward);
  split.backward_input = of(Activity::BackwardInput);
  split.backward_weight = of(Activity::BackwardWeight);
  split.receive = of(Activity::ReceiveForward) + of(Activity::ReceiveBackward);
  split.send = of(Activity::SendForward) + of(Activity::SendBackward) + of(Activity::SendWait);
  split.tensor = of(Activity::TensorSum);
  split.gradients = of(Activity::Replicas) + of(Activity::Tied) + of(Activity::Weights);
  split.agreement = of(Activity::Agreement);
  split.optimizer = of(Activity::Optimizer);
  split.data = of(Activity::Data);
  split.other = of(Activity::Pass) + of(Activity::Step);
  split.evaluation = of(Activity::Evaluation);
  split.checkpoint = of(Activity::Checkpoint);
  return split;
}

std::vector<ForcedIdle> forced_idle(const schedule::Schedule& schedule,
                                    const std::vector<schedule::StageTimes>& times) {
  const schedule::Timing timing = schedule::simulate(schedule, times);
  std::vector<ForcedIdle> idle;
  for (std::size_t r = 0; r < schedule.ranks.size(); ++r) {
    double end = 0;
    for (std::size_t i = 0; i < schedule.ranks[r].size(); ++i) {
      const schedule::Action& action = schedule.ranks[r][i];
      const schedule::StageTimes& t = times[action.stage.index()];
      double duration = 0;
      if (action.kind == schedule::ActionKind::Forward) duration = t.forward;
      if (action.kind == schedule::ActionKind::Backward) duration = t.backward_input + t.backward_weight;
      if (action.kind == schedule::ActionKind::BackwardInput) duration = t.backward_input;
      if (action.kind == schedule::ActionKind::BackwardWeight) duration = t.backward_weight;
      if (duration > 0) end = std::max(end, timing.start[r][i] + duration);
    }
    idle.push_back({std::max(0.0, end - timing.busy[r]), std::max(0.0, timing.step - end)});
  }
  return idle;
}

void attribute_bubble(TimeSplit& split, const ForcedIdle& idle, double tied) {
  const auto take = [&split](double& wait, double& budget, double most) {
    const double part = std::clamp(std::min(budget, wait), 0.0, std::max(0.0, most));
    wait -= part;
    budget -= part;
    split.bubble += part;
  };
  double in_pass = idle.in_pass;
  take(split.receive, in_pass, split.receive);
  take(split.send, in_pass, split.send);
  double at_end = idle.at_end;
  take(split.gradients, at_end, tied);
  take(split.agreement, at_end, split.agreement);
}

schedule::StageTimes stage_times(const ActionLog::StageSum& sum) {
  const auto mean = [&sum](Activity activity) {
    const auto a = static_cast<std::size_t>(activity);
    if (sum.count[a] == 0) return 0.0;
    return kNanosecond * static_cast<double>(sum.nanoseconds[a]) / static_cast<double>(sum.count[a]);
  };
  const bool split = sum.count[static_cast<std::size_t>(Activity::BackwardInput)] > 0;
  return {mean(Activity::Forward), mean(split ? Activity::BackwardInput : Activity::Backward),
          split ? mean(Activity::BackwardWeight) : 0.0};
}

std::vector<TimeSplit> split_ranks(const RunPlan& plan, const std::vector<RankTimes>& ranks,
                                   const std::vector<const schedule::Schedule*>& tables) {
  std::vector<TimeSplit> splits;
  for (const RankTimes& rank : ranks) {
    TimeSplit split = split_of(rank.activities);
    const double steps = std::max(1.0, static_cast<double>(rank.steps));
    for (std::size_t p = 0; p < kStepParts; ++p) split.*kTimeParts[p].seconds /= steps;
    splits.push_back(split);
  }
  if (ranks.empty() || plan.mesh.pipeline == 1) return splits;
  std::vector<schedule::StageTimes> times(static_cast<std::size_t>(plan.stages()));
  for (std::int64_t d = 0; d < plan.mesh.data; ++d) {
    for (std::int64_t t = 0; t < plan.mesh.tensor; ++t) {
      const auto world_rank = [&](std::int64_t p) { return static_cast<std::size_t>(plan.mesh.rank({d, p, t})); };
      for (std::size_t s = 0; s < times.size(); ++s) {
        times[s] = stage_times(ranks[world_rank(plan.rank_of(StageId(static_cast<std::int64_t>(s))))].stages[s]);
      }
      const schedule::Schedule& table = tables.empty() ? plan.training : *tables[static_cast<std::size_t>(d)];
      const std::vector<ForcedIdle> idle = forced_idle(table, times);
      for (std::int64_t p = 0; p < plan.mesh.pipeline; ++p) {
        const RankTimes& rank = ranks[world_rank(p)];
        const double tied = seconds(rank.activities, Activity::Tied) / std::max(1.0, static_cast<double>(rank.steps));
        attribute_bubble(splits[world_rank(p)], idle[static_cast<std::size_t>(p)], tied);
      }
    }
  }
  return splits;
}

StepTimes::StepTimes(comm::Communicator& world, const RunPlan& plan, const ActionLog& log)
    : world_(world), plan_(plan), log_(log) {
  std::size_t most = 0;  // stages of a rank
  for (const auto& stages : plan.stages_of_rank) most = std::max(most, stages.size());
  width_ = kActivities + 2 + most * 2 * kKinds;
  const auto ranks = static_cast<std::size_t>(world.size());
  numbers_.resize(world.rank() == 0 ? width_ * ranks : width_);
  const std::size_t bytes = width_ * sizeof(double);
  if (world.rank() != 0) {
    transfers_.push_back(world.make_send(numbers_.data(), bytes, 0, kTag));
  } else {
    for (std::size_t r = 1; r < ranks; ++r) {
      transfers_.push_back(world.make_receive(numbers_.data() + r * width_, bytes, static_cast<int>(r), kTag));
    }
  }
  for (RankTimes* times : {&before_, &now_, &first_}) times->stages.resize(plan.training.rank_of_stage.size());
}

void StepTimes::read(RankTimes& times) const {
  times.activities = log_.times();
  std::copy(log_.stages().begin(), log_.stages().end(), times.stages.begin());
  times.pass = log_.pass_nanoseconds();
}

void StepTimes::before_step() {
  read(before_);
  before_.steps = now_.steps;
}

void StepTimes::after_step() {
  read(now_);
  if (++now_.steps == 1) {
    first_.activities = now_.activities;
    std::copy(now_.stages.begin(), now_.stages.end(), first_.stages.begin());
    first_.pass = now_.pass;
    first_.steps = 1;
  }
}

void StepTimes::begin_gather_step() { begin_gather(difference(now_, before_)); }

std::vector<RankTimes> StepTimes::gather_run() {
  RankTimes all = now_;
  read(all);
  const ActivityTimes whole = all.activities;
  if (all.steps > 1) all = difference(all, first_);
  for (const Activity activity : {Activity::Evaluation, Activity::Checkpoint}) {
    all.activities[static_cast<std::size_t>(activity)] = whole[static_cast<std::size_t>(activity)];
  }
  begin_gather(all);
  return end_gather();
}

void StepTimes::begin_gather(const RankTimes& mine) {
  // Nanoseconds fit a double to the last one for 100 days.
  double* to = numbers_.data();
  for (const std::int64_t nanoseconds : mine.activities) *to++ = static_cast<double>(nanoseconds);
  *to++ = static_cast<double>(mine.pass);
  *to++ = static_cast<double>(mine.steps);
  for (const StageId stage : plan_.stages_of(plan_.mesh.coordinates(world_.rank()).pipeline)) {
    for (std::size_t k = 0; k < kKinds; ++k) {
      *to++ = static_cast<double>(mine.stages[stage.index()].nanoseconds[k]);
      *to++ = static_cast<double>(mine.stages[stage.index()].count[k]);
    }
  }
  for (const auto& transfer : transfers_) transfer->start();
}

std::vector<RankTimes> StepTimes::end_gather() {
  for (const auto& transfer : transfers_) comm::wait(*transfer, {"the times of a step", -1, -1});
  std::vector<RankTimes> all;
  if (world_.rank() != 0) return all;
  for (std::int64_t r = 0; r < world_.size(); ++r) {
    const double* from = numbers_.data() + static_cast<std::size_t>(r) * width_;
    RankTimes times;
    times.stages.resize(plan_.training.rank_of_stage.size());
    for (std::int64_t& nanoseconds : times.activities) nanoseconds = static_cast<std::int64_t>(*from++);
    times.pass = static_cast<std::int64_t>(*from++);
    times.steps = static_cast<std::int64_t>(*from++);
    for (const StageId stage : plan_.stages_of(plan_.mesh.coordinates(r).pipeline)) {
      for (std::size_t k = 0; k < kKinds; ++k) {
        times.stages[stage.index()].nanoseconds[k] = static_cast<std::int64_t>(*from++);
        times.stages[stage.index()].count[k] = static_cast<std::int64_t>(*from++);
      }
    }
    all.push_back(std::move(times));
  }
  return all;
}

}  // namespace trainer::runtime
