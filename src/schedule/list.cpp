// List scheduling.
#include "list.hpp"

#include <algorithm>
#include <limits>

namespace trainer::schedule {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

class ListScheduler {
 public:
  ListScheduler(const std::vector<std::int32_t>& rank_of_stage, const std::vector<StageTimes>& times,
                const AutomaticOptions& options, const ListPolicy& policy)
      : times_(times), options_(options), policy_(policy), stages_(static_cast<std::int64_t>(times.size())) {
    const auto ranks = static_cast<std::size_t>(options.ranks);
    const auto cells = times.size() * static_cast<std::size_t>(options.micro_batches);
    table_.stages = stages_;
    table_.micro_batches = options.micro_batches;
    table_.rank_of_stage = rank_of_stage;
    table_.ranks.resize(ranks);
    held_stages_.resize(ranks);
    for (std::int64_t s = 0; s < stages_; ++s) held_stages_[rank(s)].push_back(s);
    clock_.assign(ranks, 0);
    parked_.assign(ranks, false);
    in_flight_.assign(ranks, 0);
    held_.assign(ranks, 0);
    forwards_.assign(times.size(), 0);
    inputs_ = weights_ = forwards_;
    forward_end_.assign(cells, kNever);
    input_end_.assign(cells, kNever);
  }

  std::optional<Schedule> run() {
    std::int64_t left = 3 * stages_ * options_.micro_batches;
    while (left > 0) {
      const std::optional<std::size_t> r = next_rank();
      if (!r) return std::nullopt;
      if (act(*r)) {
        --left;
        std::fill(parked_.begin(), parked_.end(), false);
      } else if (const double next = later_than(clock_[*r], *r); next < kNever) {
        clock_[*r] = next;
      } else {
        parked_[*r] = true;
      }
    }
    return std::move(table_);
  }

 private:
  struct Choice {
    std::int64_t stage = -1;
    ActionKind kind = ActionKind::Forward;
    double ready = kNever;
  };

  std::size_t rank(std::int64_t stage) const {
    return static_cast<std::size_t>(table_.rank_of_stage[static_cast<std::size_t>(stage)]);
  }
  std::size_t cell(std::int64_t stage, std::int64_t i) const {
    return static_cast<std::size_t>(stage * options_.micro_batches + i);
  }
  double hop(std::int64_t from, std::int64_t to) const { return rank(from) == rank(to) ? 0 : options_.transfer; }

  /// The unfinished rank that is free first; nullopt: all wait for each other.
  std::optional<std::size_t> next_rank() const {
    std::optional<std::size_t> best;
    double earliest = kNever;
    for (std::size_t r = 0; r < clock_.size(); ++r) {
      if (clock_[r] < earliest && !parked_[r] && !finished(r)) {
        earliest = clock_[r];
        best = r;
      }
    }
    return best;
  }
  bool finished(std::size_t r) const {
    return std::all_of(held_stages_[r].begin(), held_stages_[r].end(),
                       [&](std::int64_t s) { return weights_[static_cast<std::size_t>(s)] == options_.micro_batches; });
  }

  /// The next moment at which anything can have changed for this rank, as far as is known.
  double later_than(double now, std::size_t self) const {
    double next = kNever;
    for (std::size_t r = 0; r < clock_.size(); ++r) {
      if (r != self && clock_[r] > now && !finished(r)) next = std::min(next, clock_[r]);
    }
    for (const std::int64_t s : held_stages_[self]) {
      for (const double ready : {forward_ready(s), input_ready(s)}) {
        if (ready > now) next = std::min(next, ready);
      }
    }
    return next;
  }

  double forward_ready(std::int64_t s) const {
    const std::int64_t i = forwards_[static_cast<std::size_t>(s)];
    if (i == options_.micro_batches) return kNever;
    return s == 0 ? 0 : forward_end_[cell(s - 1, i)] + hop(s - 1, s);
  }
  double input_ready(std::int64_t s) const {
    const std::int64_t i = inputs_[static_cast<std::size_t>(s)];
    if (i == options_.micro_batches) return kNever;
    const double own = forward_end_[cell(s, i)];
    return s + 1 == stages_ ? own : std::max(own, input_end_[cell(s + 1, i)] + hop(s + 1, s));
  }
  bool may_begin(std::size_t r, std::int64_t s) const {
    if (options_.most_held > 0 && held_[r] >= options_.most_held) return false;
    // Micro-batches under way on this rank go on, whatever the limit.
    return s != held_stages_[r].front() || in_flight_[r] < policy_.in_flight[r];
  }

  /// Does the most urgent thing, if there is one to do now.
  bool act(std::size_t r) {
    const double now = clock_[r];
    Choice backward;
    Choice forward;
    std::int64_t owed = -1;
    for (const std::int64_t s : held_stages_[r]) {
      const auto stage = static_cast<std::size_t>(s);
      const double input = input_ready(s);
      if (input < backward.ready || (input <= now && input < kNever)) backward = {s, ActionKind::BackwardInput, input};
      if (weights_[stage] < inputs_[stage] &&
          (owed < 0 || weights_[stage] < weights_[static_cast<std::size_t>(owed)])) {
        owed = s;
      }
      const double ready = forward_ready(s);
      if (ready == kNever || !may_begin(r, s)) continue;
      const bool both = ready <= now && forward.ready <= now;
      if (both ? policy_.deepest_first : ready < forward.ready) forward = {s, ActionKind::Forward, ready};
    }
    if (backward.ready <= now) return perform(r, backward.stage, backward.kind);
    if (forward.ready <= now) return perform(r, forward.stage, forward.kind);
    if (owed < 0) return false;
    const double due = std::min(backward.ready, forward.ready);
    if (due < now + policy_.patience * times_[static_cast<std::size_t>(owed)].backward_weight) return false;
    return perform(r, owed, ActionKind::BackwardWeight);
  }

  bool perform(std::size_t r, std::int64_t s, ActionKind kind) {
    const auto stage = static_cast<std::size_t>(s);
    std::int64_t i = 0;
    switch (kind) {
      case ActionKind::Forward:
        i = forwards_[stage]++;
        ++in_flight_[r];
        ++held_[r];
        clock_[r] += times_[stage].forward;
        forward_end_[cell(s, i)] = clock_[r];
        break;
      case ActionKind::BackwardInput:
        i = inputs_[stage]++;
        --in_flight_[r];
        clock_[r] += times_[stage].backward_input;
        input_end_[cell(s, i)] = clock_[r];
        break;
      default:
        i = weights_[stage]++;
        --held_[r];
        clock_[r] += times_[stage].backward_weight;
        break;
    }
    table_.ranks[r].push_back({StageId(s), kind, MicroBatchId(i)});
    return true;
  }

  const std::vector<StageTimes>& times_;
  const AutomaticOptions& options_;
  const ListPolicy& policy_;
  std::int64_t stages_;
  Schedule table_;
  std::vector<std::vector<std::int64_t>> held_stages_;     // [rank] ascending
  std::vector<double> clock_;                              // [rank]
  std::vector<bool> parked_;                               // [rank] waits for what nobody has begun yet
  std::vector<std::int64_t> in_flight_, held_;             // [rank] pairs from F to I, from F to W
  std::vector<std::int64_t> forwards_, inputs_, weights_;  // [stage] done so far
  std::vector<double> forward_end_, input_end_;            // [stage · micro-batches + micro-batch]
};

}  // namespace

std::optional<Schedule> list_schedule(const std::vector<std::int32_t>& rank_of_stage,
                                      const std::vector<StageTimes>& times, const AutomaticOptions& options,
                                      const ListPolicy& policy) {
  return ListScheduler(rank_of_stage, times, options, policy).run();
}

}  // namespace trainer::schedule
