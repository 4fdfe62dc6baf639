// One-step-delayed gradients: the exchange of a step's gradients runs behind the next step's pass.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "trainer/runtime/gradient_sync.hpp"

namespace trainer::runtime {

/// Two sets of gradients, each with an exchange of its own, in turn. Step t computes the gradients g(t) with the
/// weights that step t - 1 has left, and then applies g(t - 1), whose sums over replicas and tied uses are awaited only
/// then:
///
///   w(t) = w(t - 1) - update(t - 1, g(t - 1)),   g(t) = gradient of batch t at w(t - 1),   g(0) = nothing
///
/// So each gradient is applied to weights that are one update older than those it was computed with: a staleness of
/// exactly 1. Its norm, clipping, learning rate and the optimizer's count of updates are those of the step that
/// computed it. The gradients of the last step stay pending: a checkpoint holds them, and a run that goes on applies
/// them first, which makes a resumed run the same as one that was not interrupted. A run of n steps makes n - 1
/// updates.
class DelayedGradients {
 public:
  /// As GradientSync's.
  DelayedGradients(const RunPlan& plan, const plan::Coordinates& at, Parameters& parameters, ThreadPool& pool,
                   comm::Communicator& data, comm::Communicator& pipeline, ActionLog* log);

  /// Swaps the sets; what the pass of `step` hands its gradients to.
  GradientSync& begin_pass(std::int64_t step);
  void progress();
  /// After the pass: waits until what the step applies is final. False when there is nothing to apply.
  bool finish_applied();
  /// Between steps: waits until what the last pass computed is final. False when there was none.
  bool finish_pending();
  /// Parameters::gradients() hold what the last pass had computed.
  void set_pending() { state_[now_] = State::Final; }
  bool pending() const { return state_[now_] == State::Final; }

  std::int64_t sent_bytes() const { return sets_[0]->sent_bytes() + sets_[1]->sent_bytes(); }

 private:
  enum class State { None, Running, Final };
  bool finish(std::size_t set);

  Parameters& parameters_;
  std::array<std::unique_ptr<GradientSync>, 2> sets_;
  std::array<State, 2> state_ = {State::None, State::None};
  std::size_t now_ = 0;  // the set of the pass that runs, or ran last
};

}  // namespace trainer::runtime
