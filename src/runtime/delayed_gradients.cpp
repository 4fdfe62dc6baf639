#include "trainer/runtime/delayed_gradients.hpp"

namespace trainer::runtime {

DelayedGradients::DelayedGradients(const RunPlan& plan, const plan::Coordinates& at, Parameters& parameters,
                                   ThreadPool& pool, comm::Communicator& data, comm::Communicator& pipeline,
                                   ActionLog* log)
    : parameters_(parameters) {
  for (auto& set : sets_) {
    set = std::make_unique<GradientSync>(plan, at, parameters, pool, data, pipeline, log);
    parameters.swap_gradients();
  }
}

GradientSync& DelayedGradients::begin_pass(std::int64_t step) {
  parameters_.swap_gradients();
  now_ = 1 - now_;
  state_[now_] = State::Running;
  sets_[now_]->begin_step(step);
  return *sets_[now_];
}

// The older exchange first: others wait for it.
void DelayedGradients::progress() {
  sets_[1 - now_]->progress();
  sets_[now_]->progress();
}

bool DelayedGradients::finish(std::size_t set) {
  if (state_[set] == State::Running) {
    sets_[set]->finish_replicas();
    sets_[set]->finish_tied();
    state_[set] = State::Final;
  }
  return state_[set] == State::Final;
}

bool DelayedGradients::finish_applied() { return finish(1 - now_); }
bool DelayedGradients::finish_pending() { return finish(now_); }

}  // namespace trainer::runtime
