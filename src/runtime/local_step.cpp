// The worker's step where replicas train by themselves (parallel.exchange "local").
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "trainer/runtime/worker.hpp"

namespace trainer::runtime {

// A step of this replica on its share of the global batch, agreed among its own ranks. Nothing of it is left where its
// numbers are not finite, and a replica whose share of an epoch's last batch is padding makes none.
LocalStep Worker::train_alone(std::int64_t step) {
  LocalStep made{.step = step};
  const double targets = targets_of(batch_of_means(step));
  if (targets == 0) return made;
  const PassResult pass = this->pass(step);
  sync_->finish_tied();
  std::fill(agreement_.begin(), agreement_.end(), 0.0);
  {
    const ActivitySpan norms(log_, Activity::Optimizer);
    measure_norms();
  }
  const std::size_t parameters = plan_.graph.parameters.size();
  agreement_[parameters] = at_.tensor == 0 ? pass.loss : 0.0;
  {
    const ActivitySpan agreement(log_, Activity::Agreement);
    replica_ranks_->sum(agreement_);
  }
  made.loss = agreement_[parameters];
  double squares = 0;
  for (std::size_t p = 0; p < parameters; ++p) squares += agreement_[p];
  made.grad_norm = std::sqrt(squares);
  if (!std::isfinite(made.loss) || !std::isfinite(made.grad_norm)) return made;
  StepOutcome outcome;
  outcome.step = step;
  outcome.grad_norm = made.grad_norm;
  outcome.learning_rate = optim::learning_rate(plan_.config.optimizer, step, total_steps_);
  update(outcome, clip_scale_of(outcome));
  return made;
}

StepResult Worker::local_step(std::int64_t step, bool stop, bool settle) {
  rounds_->add(rounds_->failed() ? LocalStep{.step = step} : train_alone(step), stop);
  StepResult result;
  if (settle || rounds_->meets_after(step)) tell_round(rounds_->meet(step), result);
  return result;
}

void Worker::tell_round(const LocalRounds::Meeting& meeting, StepResult& result) {
  if (meeting.diverged) {
    const RoundStep& first = meeting.steps[*meeting.diverged];
    diverge(first.step, first.loss / targets_of(training_batch(first.step)), first.grad_norm,
            fmt::format(" in replica {}", meeting.replica),
            "Its weights were not changed in this step, and no model of all replicas was made since");
  }
  round_outcomes_.clear();
  for (const RoundStep& step : meeting.steps) {
    StepOutcome outcome;
    outcome.step = step.step;
    outcome.loss = step.loss / targets_of(training_batch(step.step));
    outcome.grad_norm = step.grad_norm;
    outcome.learning_rate = optim::learning_rate(plan_.config.optimizer, step.step, total_steps_);
    round_outcomes_.push_back(outcome);
  }
  round_outcomes_.back().stop = meeting.stop;
  round_outcomes_.back().sent_bytes = meeting.sent_bytes;
  result.now = round_outcomes_.back();
  result.round = std::span<const StepOutcome>(round_outcomes_).first(round_outcomes_.size() - 1);
}

}  // namespace trainer::runtime
