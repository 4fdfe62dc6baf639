// What must hold of a table before its actions can be run at all, order of ranks aside.
#pragma once

#include <cstddef>
#include <optional>
#include <string>

#include "trainer/schedule/schedule.hpp"

namespace trainer::schedule {

/// The first broken promise of verify() short of deadlock, as a person reads it; nullopt: sound.
std::optional<Violation> structural_fault(const Schedule& schedule);

/// A line of the grid: the rank's actions around a position, that one in brackets if `marked`, indented by two.
std::string excerpt(const Schedule& schedule, std::size_t rank, std::size_t position, bool marked = true);

}  // namespace trainer::schedule
