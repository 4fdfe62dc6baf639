// A worker's steps with parallel.delayed_gradients, and the gradients that wait between them.
#include <algorithm>
#include <cmath>

#include "trainer/optim/optimizer.hpp"
#include "trainer/runtime/worker.hpp"

namespace trainer::runtime {

namespace {

std::string delayed_name(const std::string& parameter) { return "optimizer.delayed_gradient." + parameter; }

}  // namespace

// Another exchange's checkpoint has none: then the first step applies nothing.
void Worker::load_delayed(const storage::CheckpointReader& checkpoint) {
  for (const HeldParameter& held : parameters_->layout().held) {
    const model::Parameter& parameter = plan_.graph.parameters[held.id.index()];
    const std::string name = delayed_name(parameter.name);
    if (!checkpoint.has(name)) return;
    for (const Piece& piece : parameters_->duty(held)) {
      checkpoint.read(name, piece.box, parameters_->gradients() + held.gradients.front() + piece.begin);
    }
  }
  delayed_->set_pending();
}

void Worker::add_delayed_pieces(std::vector<storage::Piece>& pieces) const {
  if (!delayed_->pending()) return;
  for (const HeldParameter& held : parameters_->layout().held) {
    if (!held.counted) continue;
    const model::Parameter& parameter = plan_.graph.parameters[held.id.index()];
    for (const Piece& piece : held.share) {
      const float* gradient = parameters_->gradients() + held.gradients.front() + piece.begin;
      pieces.push_back({delayed_name(parameter.name), DType::F32, parameter.shape, piece.box, gradient});
    }
  }
}

void Worker::finish_exchange() {
  if (delayed_) delayed_->finish_pending();
}

// The norm and the update are those of the step before, the loss and all else this one's.
StepResult Worker::delayed_step(std::int64_t step, bool stop) {
  const std::int64_t sent_before = delayed_->sent_bytes();
  const PassResult pass = this->pass(step);
  const bool applies = delayed_->finish_applied();
  std::fill(agreement_.begin(), agreement_.end(), 0.0);
  if (applies) {
    const ActivitySpan norms(log_, Activity::Optimizer);
    measure_norms();
  }
  agree_on(pass, stop, static_cast<double>(delayed_->sent_bytes() - sent_before));
  {
    const ActivitySpan agreement(log_, Activity::Agreement);
    world_.sum(agreement_);
  }
  StepOutcome outcome = outcome_of(step);
  if (!std::isfinite(outcome.loss) || !std::isfinite(outcome.grad_norm)) {
    diverge(std::isfinite(outcome.loss) ? step - 1 : step, outcome.loss, outcome.grad_norm);
  }
  StepOutcome update_of = outcome;
  update_of.step = step - 1;
  update_of.learning_rate = outcome.learning_rate =
      applies ? optim::learning_rate(plan_.config.optimizer, step - 1, total_steps_) : 0.0;
  if (applies) update(update_of, clip_scale_of(outcome));
  StepResult result;
  result.now = outcome;
  return result;
}

}  // namespace trainer::runtime
