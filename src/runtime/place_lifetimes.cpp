#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "trainer/runtime/stage_layout.hpp"

namespace trainer::runtime {

namespace {

/// Intervals of time, found by what they overlap. An interval overlaps [a, b] when it covers a, or begins in (a, b].
class Timeline {
 public:
  /// `lifetimes` are those that will be added; they must outlive this.
  explicit Timeline(const std::vector<Lifetime>& lifetimes) : lifetimes_(lifetimes) {
    for (const Lifetime& lifetime : lifetimes) {
      times_.push_back(lifetime.first);
      times_.push_back(lifetime.last);
    }
    std::sort(times_.begin(), times_.end());
    times_.erase(std::unique(times_.begin(), times_.end()), times_.end());
    covering_.resize(2 * times_.size());
  }

  void add(std::size_t index) {
    const Lifetime& lifetime = lifetimes_[index];
    std::size_t left = leaf(lifetime.first);
    std::size_t right = leaf(lifetime.last) + 1;
    for (; left < right; left /= 2, right /= 2) {
      if (left % 2 == 1) covering_[left++].push_back(index);
      if (right % 2 == 1) covering_[--right].push_back(index);
    }
    beginning_.emplace(lifetime.first, index);
  }

  /// Calls visit(index) once for each added lifetime that shares a moment with this one.
  template <class Visit>
  void for_overlapping(const Lifetime& lifetime, const Visit& visit) const {
    for (std::size_t node = leaf(lifetime.first); node > 0; node /= 2) {
      for (const std::size_t index : covering_[node]) visit(index);
    }
    const auto end = beginning_.upper_bound(lifetime.last);
    for (auto it = beginning_.upper_bound(lifetime.first); it != end; ++it) visit(it->second);
  }

 private:
  std::size_t leaf(std::int64_t time) const {
    const auto at = std::lower_bound(times_.begin(), times_.end(), time) - times_.begin();
    return times_.size() + static_cast<std::size_t>(at);
  }

  const std::vector<Lifetime>& lifetimes_;
  std::vector<std::int64_t> times_;                     // ascending
  std::vector<std::vector<std::size_t>> covering_;      // segment tree over times_, leaves from times_.size()
  std::multimap<std::int64_t, std::size_t> beginning_;  // by first
};

}  // namespace

std::size_t place_lifetimes(std::vector<Lifetime>& lifetimes) {
  std::vector<std::size_t> order(lifetimes.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return lifetimes[a].bytes > lifetimes[b].bytes; });
  Timeline placed(lifetimes);
  std::vector<std::pair<std::size_t, std::size_t>> busy;  // offset ranges of those alive at the same time
  std::size_t total = 0;
  for (const std::size_t index : order) {
    Lifetime& mine = lifetimes[index];
    busy.clear();
    placed.for_overlapping(mine, [&](std::size_t other) {
      busy.emplace_back(lifetimes[other].offset, lifetimes[other].offset + lifetimes[other].bytes);
    });
    std::sort(busy.begin(), busy.end());
    std::size_t offset = 0;
    for (const auto& [begin, end] : busy) {
      if (offset + mine.bytes <= begin) break;
      offset = std::max(offset, end);
    }
    mine.offset = offset;
    total = std::max(total, offset + mine.bytes);
    placed.add(index);
  }
  return total;
}

}  // namespace trainer::runtime
