// How many micro-batches of a step each replica takes when replicas are not equally fast (parallel.balance "auto").
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace trainer::plan {

/// Seconds until the slowest replica is done, where replica r takes (shares[r] + fill) · seconds[r]. `fill`: what a
/// pipeline adds to its micro-batches to fill and drain, in micro-batches of its slowest stage.
double split_seconds(std::span<const double> seconds, std::span<const std::int64_t> shares, std::int64_t fill);

/// Shares of `total` micro-batches, at least 1 each, with the least split_seconds; among equals the one that comes of
/// handing out one micro-batch after the other to the replica that would then be done first, the lower one of two.
/// seconds[r] > 0 is what a micro-batch takes replica r; total ≥ seconds.size().
std::vector<std::int64_t> split_by_speed(std::span<const double> seconds, std::int64_t total, std::int64_t fill);

/// The same with hysteresis: `current` unless the best split is better by more than `gain` of its time (0.05: 5%), so
/// that noise in the measured seconds does not move micro-batches to and fro.
std::vector<std::int64_t> rebalanced(std::span<const double> seconds, std::span<const std::int64_t> current,
                                     std::int64_t fill, double gain);

/// Nothing differs: split_range's sizes.
std::vector<std::int64_t> split_evenly(std::int64_t total, std::int64_t replicas);

}  // namespace trainer::plan
