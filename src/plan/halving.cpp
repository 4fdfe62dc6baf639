#include "trainer/plan/halving.hpp"

#include <algorithm>
#include <numeric>

namespace trainer::plan {

std::vector<std::int64_t> halving_rounds(std::int64_t candidates, std::int64_t steps) {
  constexpr std::int64_t kLeast = 3;
  std::vector<std::int64_t> rounds{steps};
  for (std::int64_t left = (candidates + 1) / 2; left > 1; left = (left + 1) / 2) {
    rounds.push_back(std::min(steps, std::max(kLeast, (rounds.back() + 1) / 2)));
  }
  std::reverse(rounds.begin(), rounds.end());
  return rounds;
}

std::vector<std::size_t> faster_half(const std::vector<double>& rates) {
  std::vector<std::size_t> order(rates.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return rates[a] > rates[b]; });
  order.resize((order.size() + 1) / 2);
  std::sort(order.begin(), order.end());
  return order;
}

}  // namespace trainer::plan
