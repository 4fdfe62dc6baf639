#include "trainer/plan/balance.hpp"

#include <algorithm>
#include <numeric>

#include "trainer/core/error.hpp"
#include "trainer/core/shape.hpp"

namespace trainer::plan {

double split_seconds(std::span<const double> seconds, std::span<const std::int64_t> shares, std::int64_t fill) {
  double most = 0;
  for (std::size_t r = 0; r < seconds.size(); ++r) {
    most = std::max(most, static_cast<double>(shares[r] + fill) * seconds[r]);
  }
  return most;
}

// Each replica's time only grows with its share, so giving the next micro-batch to the one that would be done first
// keeps the largest time the least there is: any other split of as many gives some replica more than it has here.
std::vector<std::int64_t> split_by_speed(std::span<const double> seconds, std::int64_t total, std::int64_t fill) {
  const auto replicas = static_cast<std::int64_t>(seconds.size());
  if (replicas == 0 || total < replicas) internal_error("fewer micro-batches than replicas to split them over");
  std::vector<std::int64_t> shares(seconds.size(), 1);
  for (std::int64_t given = replicas; given < total; ++given) {
    std::size_t first = 0;
    const auto done = [&](std::size_t r) { return static_cast<double>(shares[r] + 1 + fill) * seconds[r]; };
    for (std::size_t r = 1; r < shares.size(); ++r) {
      if (done(r) < done(first)) first = r;
    }
    ++shares[first];
  }
  return shares;
}

std::vector<std::int64_t> rebalanced(std::span<const double> seconds, std::span<const std::int64_t> current,
                                     std::int64_t fill, double gain) {
  const std::int64_t total = std::accumulate(current.begin(), current.end(), std::int64_t{0});
  std::vector<std::int64_t> best = split_by_speed(seconds, total, fill);
  const bool better = split_seconds(seconds, best, fill) * (1 + gain) < split_seconds(seconds, current, fill);
  return better ? best : std::vector<std::int64_t>(current.begin(), current.end());
}

std::vector<std::int64_t> split_evenly(std::int64_t total, std::int64_t replicas) {
  std::vector<std::int64_t> shares;
  for (std::int64_t r = 0; r < replicas; ++r) shares.push_back(split_range(total, replicas, r).size());
  return shares;
}

}  // namespace trainer::plan
