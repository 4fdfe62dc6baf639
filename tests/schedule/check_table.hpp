// What must hold of any table that the executor gets, asked of the verifier, the simulator and the replay.
#pragma once

#include <cstdint>
#include <vector>

#include "replay.hpp"
#include "trainer/schedule/schedule.hpp"

namespace trainer::schedule::test {

/// The replay took as many slots at once as were assigned.
void check_slots(const Replayed& run, const std::vector<StageSlots>& slots);

/// Valid; comes to its end under eager and rendezvous sends; the slots are sound and no more than needed; the simulated
/// times are the replayed ones, for random times of the stages made from `seed`.
void check_table(const Schedule& schedule, std::uint32_t seed);

/// A lowered table of a generator, as the executor gets it.
inline Schedule generated(const Generator& generator, std::int64_t ranks, std::int64_t chunks,
                          std::int64_t micro_batches, bool split = true, std::int64_t group = 0) {
  return add_reductions(add_communication(generator.make({ranks * chunks, micro_batches, split, chunks, group})));
}

}  // namespace trainer::schedule::test
