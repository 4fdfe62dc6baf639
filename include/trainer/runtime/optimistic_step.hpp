// The optimizer step without a barrier: this rank updates as soon as its own gradients are final, as if nothing had to
// be clipped, and goes on; what all ranks agree on afterwards confirms the update or has it taken back exactly.
#pragma once

#include <cstdint>
#include <optional>

#include "trainer/comm/communicator.hpp"
#include "trainer/runtime/deferred_sum.hpp"

namespace trainer::runtime {

/// Keeps what is open between two passes. All ranks see the same agreed numbers, so all decide alike.
///
/// Of one step and rank: the pass; `open` starts the agreement; the update; the next pass begins; before its first
/// backward, `close` waits for the agreement. By then every stage of the replica has long been past its own step, or
/// its forward would not have arrived, so that there is little to wait for. Gradients stay as they are until then, as a
/// rollback needs them, and as neighbours may still be adding them up.
class OptimisticStep {
 public:
  /// Collective over `world`. `count`: numbers in an agreement.
  OptimisticStep(comm::Communicator& world, std::size_t count);

  /// Whether the next step is worth trying: not while more than half of the last kRemembered agreements had to be
  /// clipped.
  bool promising() const { return 2 * clipped_ <= kRemembered; }
  /// After every agreed step, tried or not.
  void remember(bool clipped);

  /// This rank's terms of the agreement on `step`.
  std::span<double> terms() { return sum_.values(); }
  void open(std::int64_t step);
  std::optional<std::int64_t> step() const { return step_; }  // that is open
  /// Lets the agreement move on, here and for others; cheap when there is nothing to do.
  void progress() { (void)sum_.test(); }
  /// Waits for the sums of the open step.
  std::span<const double> close();

  static constexpr int kRemembered = 16;

 private:
  DeferredSum sum_;
  std::optional<std::int64_t> step_;
  std::uint32_t history_ = 0;  // a bit a step, newest lowest: clipped
  int clipped_ = 0;            // of the history
};

}  // namespace trainer::runtime
