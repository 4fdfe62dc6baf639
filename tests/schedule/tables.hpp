// Tables that several suites use.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "trainer/schedule/schedule.hpp"

namespace trainer::schedule::test {

/// Everything the executor gets: communication and reductions.
inline Schedule lowered(Schedule compute) { return add_reductions(add_communication(std::move(compute))); }

/// Rows of actions separated by spaces, as written by hand in a test.
inline Schedule table(std::int64_t micro_batches, std::vector<std::int32_t> rank_of_stage,
                      const std::vector<std::string>& rows) {
  Schedule schedule;
  schedule.stages = static_cast<std::int64_t>(rank_of_stage.size());
  schedule.micro_batches = micro_batches;
  schedule.rank_of_stage = std::move(rank_of_stage);
  for (const std::string& row : rows) {
    std::vector<Action>& actions = schedule.ranks.emplace_back();
    for (std::size_t at = 0; at < row.size();) {
      const std::size_t end = std::min(row.find(' ', at), row.size());
      const std::string word = row.substr(at, end - at);
      const std::optional<Action> action = parse_action(word);
      if (!action) throw std::runtime_error("no action: " + word);
      actions.push_back(*action);
      at = end + 1;
    }
  }
  return schedule;
}

/// All forwards, chunk by chunk, then all backwards in reverse order of chunks, for any mapping of stages to ranks
/// where stage numbers rise along a micro-batch's way: the plainest table with several stages a rank.
inline Schedule chunked_gpipe(std::int64_t micro_batches, const std::vector<std::int32_t>& rank_of_stage, bool split) {
  Schedule schedule;
  schedule.stages = static_cast<std::int64_t>(rank_of_stage.size());
  schedule.micro_batches = micro_batches;
  schedule.rank_of_stage = rank_of_stage;
  std::int32_t ranks = 0;
  for (std::int32_t rank : rank_of_stage) ranks = std::max(ranks, rank + 1);
  schedule.ranks.resize(static_cast<std::size_t>(ranks));
  const auto add = [&](std::int64_t s, ActionKind kind, std::int64_t i) {
    const auto rank = static_cast<std::size_t>(rank_of_stage[static_cast<std::size_t>(s)]);
    schedule.ranks[rank].push_back({StageId(s), kind, MicroBatchId(i)});
  };
  for (std::int64_t s = 0; s < schedule.stages; ++s) {
    for (std::int64_t i = 0; i < micro_batches; ++i) add(s, ActionKind::Forward, i);
  }
  for (std::int64_t s = schedule.stages - 1; s >= 0; --s) {
    for (std::int64_t i = 0; i < micro_batches; ++i) {
      add(s, split ? ActionKind::BackwardInput : ActionKind::Backward, i);
      if (split) add(s, ActionKind::BackwardWeight, i);
    }
  }
  return schedule;
}

}  // namespace trainer::schedule::test
