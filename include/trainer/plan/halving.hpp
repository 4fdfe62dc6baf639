// Successive halving (Jamieson, Talwalkar: Non-stochastic Best Arm Identification, 2016): all candidates get few steps,
// the faster half twice as many, and so on, so that most of the time goes to those that may win.
#pragma once

#include <cstdint>
#include <vector>

namespace trainer::plan {

/// The steps of each round for so many candidates: the last, of at most two, has `steps`, each before it half as many
/// (rounded up), but at least three, of which the first does not count.
std::vector<std::int64_t> halving_rounds(std::int64_t candidates, std::int64_t steps);

/// Indices of the higher half of `rates` (rounded up), ascending; of equal ones the earlier.
std::vector<std::size_t> faster_half(const std::vector<double>& rates);

}  // namespace trainer::plan
