// The best of the published orders, and list schedules that beat it.
#include "trainer/schedule/automatic.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <random>

#include "list.hpp"
#include "trainer/core/error.hpp"

namespace trainer::schedule {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

class Search {
 public:
  Search(const std::vector<StageTimes>& times, const AutomaticOptions& options)
      : times_(times), options_(options), chunks_(static_cast<std::int64_t>(times.size()) / options.ranks) {
    best_.step = kNever;
    best_.lower_bound = kNever;
  }

  Automatic run() {
    try_generators();
    for (const std::vector<std::int32_t>& placement : placements_) {
      best_.lower_bound = std::min(best_.lower_bound, step_lower_bound(placement, times_, options_));
    }
    for (const std::vector<std::int32_t>& placement : placements_) try_lists(placement);
    if (best_.step == kNever) {
      throw Error(ExitCode::Usage,
                  fmt::format("no schedule holds at most {} micro-batches of a stage on a rank", options_.most_held));
    }
    return std::move(best_);
  }

 private:
  void try_generators() {
    for (const Generator& generator : generators()) {
      if (generator.chunks != 0 && generator.chunks != chunks_) continue;
      for (const bool split : {true, false}) {
        if (!split && generator.always_splits) continue;
        const Schedule table = generator.make({options_.ranks * chunks_, options_.micro_batches, split, chunks_});
        if (std::find(placements_.begin(), placements_.end(), table.rank_of_stage) == placements_.end()) {
          placements_.push_back(table.rank_of_stage);
        }
        offer(table, std::string(generator.name));
      }
    }
  }

  /// Takes the table if it fits, runs and is faster. Returns whether.
  bool offer(const Schedule& table, const std::string& origin) {
    if (options_.most_held > 0) {
      const std::vector<std::int64_t> held = most_held(table);
      if (*std::max_element(held.begin(), held.end()) > options_.most_held) return false;
    }
    const Schedule full = add_communication(table);
    if (verify(full)) return false;  // finite buffers may stop a list schedule
    const double step = simulate(full, times_, options_.transfer).step;
    if (step >= best_.step) return false;
    best_.schedule = table;
    best_.origin = origin;
    best_.step = step;
    return true;
  }

  bool try_list(const std::vector<std::int32_t>& placement, const ListPolicy& policy) {
    const std::optional<Schedule> table = list_schedule(placement, times_, options_, policy);
    return table && offer(*table, "list");
  }

  /// Policies modelled on the published orders, then small random changes to the best so far, as long as there is a
  /// gap.
  void try_lists(const std::vector<std::int32_t>& placement) {
    ListPolicy best;
    const auto consider = [&](const ListPolicy& policy) {
      if (try_list(placement, policy)) best = policy;
    };
    for (const std::int64_t slope : {1, 2}) {
      for (const double patience : {0.0, 0.5, 1.0}) {
        for (const bool deepest : {true, false}) {
          ListPolicy policy{{}, patience, deepest};
          for (std::int64_t r = 0; r < options_.ranks; ++r) {
            const std::int64_t below = slope * (options_.ranks - r) - (slope - 1);
            policy.in_flight.push_back(below + (chunks_ - 1) * options_.ranks);
          }
          if (best.in_flight.empty()) best = policy;
          consider(policy);
          std::fill(policy.in_flight.begin(), policy.in_flight.end(), options_.micro_batches * chunks_);
          consider(policy);
        }
      }
    }
    std::mt19937 random(1);
    for (std::int64_t k = 0; k < options_.tries && best_.step > best_.lower_bound; ++k) {
      ListPolicy policy = best;
      for (std::uint32_t changes = 1 + random() % 3; changes > 0; --changes) {
        std::int64_t& limit = policy.in_flight[random() % policy.in_flight.size()];
        limit = std::clamp<std::int64_t>(limit + (random() % 2 == 0 ? 1 : -1), 1, options_.micro_batches * chunks_);
      }
      if (random() % 4 == 0) policy.patience = static_cast<double>(random() % 9) / 8;
      consider(policy);
    }
  }

  const std::vector<StageTimes>& times_;
  const AutomaticOptions& options_;
  std::int64_t chunks_;
  std::vector<std::vector<std::int32_t>> placements_;
  Automatic best_;
};

}  // namespace

double step_lower_bound(const std::vector<std::int32_t>& rank_of_stage, const std::vector<StageTimes>& times,
                        const AutomaticOptions& options) {
  const auto m = static_cast<double>(options.micro_batches);
  const auto hop = [&](std::size_t a, std::size_t b) {
    return rank_of_stage[a] == rank_of_stage[b] ? 0 : options.transfer;
  };
  // Of each stage: when it can begin, when it can go backward, what follows its last I: down to stage 0's, then its W.
  std::vector<double> head(times.size(), 0);
  std::vector<double> turn(times.size(), 0);
  std::vector<double> tail(times.size(), 0);
  for (std::size_t s = 1; s < times.size(); ++s) {
    head[s] = head[s - 1] + times[s - 1].forward + hop(s - 1, s);
    tail[s] = tail[s - 1] + times[s - 1].backward_input + hop(s, s - 1);
  }
  for (double& rest : tail) rest += times[0].backward_weight;
  turn.back() = head.back() + times.back().forward;
  for (std::size_t s = times.size() - 1; s > 0; --s) turn[s - 1] = turn[s] + times[s].backward_input + hop(s, s - 1);

  double bound = 0;
  for (std::size_t r = 0; r < static_cast<std::size_t>(options.ranks); ++r) {
    double first = kNever;
    double back = kNever;
    double behind = kNever;
    double f = 0;
    double i = 0;
    double w = 0;
    double most_f = 0;
    double most_w = 0;
    double pairs = 0;
    for (std::size_t s = 0; s < times.size(); ++s) {
      if (rank_of_stage[s] != static_cast<std::int32_t>(r)) continue;
      first = std::min(first, head[s]);
      back = std::min(back, turn[s]);
      behind = std::min(behind, tail[s]);
      f += m * times[s].forward;
      i += m * times[s].backward_input;
      w += m * times[s].backward_weight;
      most_f = std::max(most_f, times[s].forward);
      most_w = std::max(most_w, times[s].backward_weight);
      pairs += m;
    }
    const double held = options.most_held > 0 ? std::min(pairs, static_cast<double>(options.most_held)) : pairs;
    const double early = std::min({f, held * most_f, back - first});  // what fits before the first I
    const double late = std::min(w, held * most_w);                   // W that can wait behind the last I
    const double begin = back - early;  // as if the rank worked without a pause from here on
    bound = std::max({bound, begin + f + i + w, begin + f + i + (w - late) + behind});
  }
  return bound;
}

Automatic automatic(const std::vector<StageTimes>& times, const AutomaticOptions& options) {
  if (options.ranks < 1 || times.empty() || static_cast<std::int64_t>(times.size()) % options.ranks != 0) {
    internal_error(fmt::format("{} stages on {} ranks", times.size(), options.ranks));
  }
  return Search(times, options).run();
}

}  // namespace trainer::schedule
