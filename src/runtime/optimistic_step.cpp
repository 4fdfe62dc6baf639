#include "trainer/runtime/optimistic_step.hpp"

#include <bit>

namespace trainer::runtime {

OptimisticStep::OptimisticStep(comm::Communicator& world, std::size_t count) : sum_(world, count) {}

void OptimisticStep::remember(bool clipped) {
  static_assert(kRemembered < 32);
  history_ = (history_ << 1 | (clipped ? 1U : 0U)) & ((1U << kRemembered) - 1);
  clipped_ = std::popcount(history_);
}

void OptimisticStep::open(std::int64_t step) {
  sum_.start();
  step_ = step;
}

std::span<const double> OptimisticStep::close() {
  comm::wait(sum_, {"the agreement of all ranks on step", -1, *step_});
  step_.reset();
  return sum_.sums();
}

}  // namespace trainer::runtime
