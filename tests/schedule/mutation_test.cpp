// Every single damage to a valid table: what the verifier lets pass must run, and what loses or doubles work must not
// pass.
#include <doctest/doctest.h>

#include <algorithm>

#include "check_table.hpp"
#include "tables.hpp"

using namespace trainer;
using namespace trainer::schedule;
using namespace trainer::schedule::test;

namespace {

struct Tally {
  int refused = 0, deadlocks = 0, harmless = 0;
};

/// A mutation that keeps every action: refused, or it runs to its end with sound slots under rendezvous sends.
void check_reordered(const Schedule& mutated, Tally& tally) {
  const std::optional<Violation> violation = verify(mutated);
  if (violation) {
    ++(violation->message.starts_with("deadlock") ? tally.deadlocks : tally.refused);
    return;
  }
  ++tally.harmless;
  const std::vector<Ticks> ticks(static_cast<std::size_t>(mutated.stages));
  const Replayed run = replay(mutated, assign_slots(mutated), ticks, {false, 1, 7});
  INFO(to_csv(mutated));
  CHECK(run.fault == "");
  CHECK(run.finished);
}

void check_every_mutation(const Schedule& good, Tally& tally) {
  REQUIRE_FALSE(verify(good));
  for (std::size_t r = 0; r < good.ranks.size(); ++r) {
    for (std::size_t i = 0; i < good.ranks[r].size(); ++i) {
      CAPTURE(r);
      CAPTURE(i);
      Schedule dropped = good;
      dropped.ranks[r].erase(dropped.ranks[r].begin() + static_cast<std::ptrdiff_t>(i));
      CHECK(verify(dropped));
      for (const std::size_t to : {i, good.ranks[r].size()}) {
        Schedule doubled = good;
        doubled.ranks[r].insert(doubled.ranks[r].begin() + static_cast<std::ptrdiff_t>(to), good.ranks[r][i]);
        CHECK(verify(doubled));
      }
      for (std::size_t rank = 0; rank < good.ranks.size(); ++rank) {
        if (rank == r) continue;
        Schedule elsewhere = good;
        elsewhere.ranks[rank].push_back(good.ranks[r][i]);
        CHECK(verify(elsewhere));
      }
      for (std::size_t j = i + 1; j < good.ranks[r].size(); ++j) {
        Schedule swapped = good;
        std::swap(swapped.ranks[r][i], swapped.ranks[r][j]);
        check_reordered(swapped, tally);
        Schedule moved = good;
        std::rotate(moved.ranks[r].begin() + static_cast<std::ptrdiff_t>(i),
                    moved.ranks[r].begin() + static_cast<std::ptrdiff_t>(i) + 1,
                    moved.ranks[r].begin() + static_cast<std::ptrdiff_t>(j) + 1);
        check_reordered(moved, tally);
      }
    }
  }
}

}  // namespace

TEST_CASE("no dropped, doubled, swapped or moved action passes that could hang or change the sums") {
  Tally tally;
  for (const Generator& generator : generators()) {
    CAPTURE(generator.name);
    const std::int64_t chunks = generator.chunks == 0 ? 2 : generator.chunks;
    check_every_mutation(generated(generator, 2, chunks, 3), tally);
    check_every_mutation(generated(generator, 3, chunks, 2, generator.always_splits), tally);
  }
  MESSAGE(tally.refused << " refused for their structure, " << tally.deadlocks << " for a deadlock, " << tally.harmless
                        << " harmless");
  CHECK(tally.deadlocks > 100);
  CHECK(tally.harmless > 100);
}
