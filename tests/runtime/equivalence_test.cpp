// Any layout gives what one rank gives: ranks as threads of this process.
#include <doctest/doctest.h>

#include <unistd.h>

#include <cstdlib>

#include "support/equivalence.hpp"

using namespace trainer;

namespace {

std::string scratch() {
  static int count = 0;
  const char* tmp = std::getenv("TMPDIR");
  return std::string(tmp ? tmp : "/tmp") + "/trainer-equivalence-" + std::to_string(getpid()) + "-" +
         std::to_string(count++);
}

struct Network {
  comm::SendMode mode = comm::SendMode::Eager;
  std::uint64_t fault_seed = 0;  // 0: none
  int ranks_per_node = 0;        // 0: all on one, sharing memory
};

test::Trained run_threads(const test::Case& c, Network network = {}) {
  test::Trained result;
  const std::string directory = scratch();
  comm::run_in_process(
      static_cast<int>(c.ranks()),
      [&](comm::Communicator& inner) {
        const auto faulty = network.fault_seed == 0 ? nullptr : comm::make_faulty(inner, network.fault_seed, 0.0005);
        test::Trained mine = test::run(faulty ? *faulty : inner, c, directory);
        if (inner.rank() == 0) result = std::move(mine);
      },
      network.mode, network.ranks_per_node);
  return result;
}

}  // namespace

TEST_CASE("any layout is one rank") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  std::map<std::string, test::Trained> references;
  for (std::int64_t ranks = 1; ranks <= 4; ++ranks) {
    for (const test::Case& c : test::layouts(ranks)) {
      CAPTURE(c.name());
      const test::Case one = c.reference();
      if (!references.contains(one.name())) references[one.name()] = run_threads(one);
      const test::Distance d = test::distance(run_threads(c), references[one.name()]);
      CAPTURE(d.where);
      if (test::keeps_bits(c)) CHECK(d.same_bits);
      CHECK(d.loss <= 5e-6);
      CHECK(d.weight <= 1e-4);
      if (std::getenv("TRAINER_TEST_VERBOSE"))
        MESSAGE(c.name() << ": loss " << d.loss << " weight " << d.weight << " in " << d.where);
    }
  }
}

// Rounding to 8 bits changes a term of a product by at most 2⁻⁸ of itself, and so, in these few steps, the losses. A
// sum in another order redraws such roundings: two draws are no further apart than twice what one is from float32.
TEST_CASE("any layout is one rank, in bfloat16 too") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  std::map<std::string, test::Trained> references;
  for (std::int64_t ranks = 1; ranks <= 4; ++ranks) {
    for (const test::Case& c : test::bfloat16_layouts(ranks)) {
      CAPTURE(c.name());
      const test::Case one = c.reference();
      test::Case float32 = one;
      float32.precision = "float32";
      for (const test::Case& reference : {one, float32}) {
        if (!references.contains(reference.name())) references[reference.name()] = run_threads(reference);
      }
      const test::Distance rounding = test::distance(references[one.name()], references[float32.name()]);
      CHECK(rounding.loss > 0);
      CHECK(rounding.loss <= 0x1p-8);
      const test::Distance d = test::distance(run_threads(c), references[one.name()]);
      CAPTURE(d.where);
      if (test::keeps_bits(c)) CHECK(d.same_bits);
      CHECK(d.loss <= 2 * rounding.loss);
      CHECK(d.weight <= 2 * rounding.weight);
      if (std::getenv("TRAINER_TEST_VERBOSE"))
        MESSAGE(c.name() << ": loss " << d.loss << " weight " << d.weight << " in " << d.where << "; float32 is "
                         << rounding.loss << " and " << rounding.weight << " away");
    }
  }
}

TEST_CASE("late and reordered messages, and sends that wait for their receive, change nothing") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  const std::vector<test::Case> cases{{"gpt tied", 1, 4, 1, "1f1b", 1, 6, "training.steps=4"},
                                      {"gpt tied", 2, 2, 1, "gpipe", 1, 3, "training.steps=4"},
                                      {"sequential", 1, 2, 2, "1f1b", 1, 4, "training.steps=4"},
                                      {"gpt tied", 1, 2, 1, "zb-h1", 1, 4, "training.steps=4"},
                                      {"gpt untied", 2, 1, 2, "1f1b", 2, 2, "training.steps=4"},
                                      {"mlp", 3, 1, 1, "1f1b", 1, 2, "training.steps=4"}};
  for (const test::Case& c : cases) {
    CAPTURE(c.name());
    const test::Trained calm = run_threads(c);
    CHECK(test::distance(run_threads(c, {comm::SendMode::Rendezvous, 0}), calm).same_bits);
    for (const std::uint64_t seed : {1, 2}) {
      CHECK(test::distance(run_threads(c, {comm::SendMode::Rendezvous, seed}), calm).same_bits);
    }
  }
}

TEST_CASE("ranks on several nodes, which share no memory or only some, give the bits of one node") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  const std::vector<test::Case> cases{{"gpt tied", 2, 1, 1, "1f1b", 1, 2, "training.steps=4"},
                                      {"gpt tied", 1, 1, 3, "1f1b", 2, 2, "training.steps=4"},
                                      {"gpt tied", 2, 2, 1, "zb-h1", 1, 3, "training.steps=4"},
                                      {"gpt untied", 2, 1, 2, "1f1b", 1, 2, "training.steps=4"},
                                      {"sequential", 1, 4, 1, "1f1b", 1, 4, "training.steps=4"},
                                      {"mlp", 3, 1, 1, "1f1b", 1, 2, "training.steps=4"}};
  for (const test::Case& c : cases) {
    CAPTURE(c.name());
    const test::Trained one_node = run_threads(c);
    for (const int ranks_per_node : {1, 2}) {
      CAPTURE(ranks_per_node);
      const Network spread{comm::SendMode::Rendezvous, 0, ranks_per_node};
      CHECK(test::distance(run_threads(c, spread), one_node).same_bits);
    }
    const Network bad{comm::SendMode::Rendezvous, 3, 2};
    CHECK(test::distance(run_threads(c, bad), one_node).same_bits);
  }
}
