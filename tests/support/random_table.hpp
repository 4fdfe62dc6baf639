// Tables that no generator makes.
#pragma once

#include <algorithm>
#include <random>
#include <vector>

#include "trainer/schedule/schedule.hpp"

namespace trainer::test {

/// A valid table of compute actions: stages on random ranks (each has one at least), every order that the data allow,
/// backwards joint or split at random, W ascending. Orders that finite buffers would stop are drawn again.
inline schedule::Schedule random_table(std::int64_t ranks, std::int64_t stages, std::int64_t micro_batches,
                                       std::uint32_t seed) {
  using schedule::Action;
  using schedule::ActionKind;
  std::mt19937 random(seed);
  while (true) {
    schedule::Schedule table;
    table.stages = stages;
    table.micro_batches = micro_batches;
    table.ranks.resize(static_cast<std::size_t>(ranks));
    for (std::int64_t s = 0; s < stages; ++s) table.rank_of_stage.push_back(static_cast<std::int32_t>(s % ranks));
    std::shuffle(table.rank_of_stage.begin(), table.rank_of_stage.end(), random);
    const auto n = static_cast<std::size_t>(stages);
    std::vector<std::vector<bool>> forward(n, std::vector<bool>(static_cast<std::size_t>(micro_batches)));
    auto input = forward;
    std::vector<std::int64_t> weights(n, 0);
    while (true) {
      std::vector<Action> ready;
      for (std::int64_t s = 0; s < stages; ++s) {
        const auto at = static_cast<std::size_t>(s);
        for (std::int64_t m = 0; m < micro_batches; ++m) {
          const auto i = static_cast<std::size_t>(m);
          if (!forward[at][i]) {
            if (s == 0 || forward[at - 1][i]) ready.push_back({StageId(s), ActionKind::Forward, MicroBatchId(m)});
          } else if (!input[at][i]) {
            if (s + 1 < stages && !input[at + 1][i]) continue;
            ready.push_back({StageId(s), ActionKind::BackwardInput, MicroBatchId(m)});
            if (weights[at] == m) ready.push_back({StageId(s), ActionKind::Backward, MicroBatchId(m)});
          } else if (weights[at] == m) {
            ready.push_back({StageId(s), ActionKind::BackwardWeight, MicroBatchId(m)});
          }
        }
      }
      if (ready.empty()) break;
      const Action action = ready[random() % ready.size()];
      const std::size_t s = action.stage.index();
      if (action.kind == ActionKind::Forward) forward[s][action.micro_batch.index()] = true;
      if (action.kind == ActionKind::Backward || action.kind == ActionKind::BackwardInput) {
        input[s][action.micro_batch.index()] = true;
      }
      if (action.kind == ActionKind::Backward || action.kind == ActionKind::BackwardWeight) ++weights[s];
      table.ranks[static_cast<std::size_t>(table.rank_of_stage[s])].push_back(action);
    }
    if (!schedule::verify(schedule::add_communication(table))) return table;
  }
}

}  // namespace trainer::test
