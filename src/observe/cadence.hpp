// Which steps are logged.
#pragma once

#include "trainer/core/observer.hpp"

namespace trainer::observe {

inline bool is_logged(const StepReport& report, std::int64_t every_steps) {
  return trainer::is_logged(report.step, report.total_steps, every_steps);
}

}  // namespace trainer::observe
