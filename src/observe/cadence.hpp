// Which steps are logged.
#pragma once

#include "trainer/core/observer.hpp"

namespace trainer::observe {

inline bool is_logged(const StepReport& report, std::int64_t every_steps) {
  return report.step == 1 || report.step == report.total_steps || (every_steps > 0 && report.step % every_steps == 0);
}

}  // namespace trainer::observe
