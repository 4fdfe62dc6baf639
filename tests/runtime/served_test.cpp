// Runs whose parameters live on servers: ranks as threads.
#include <doctest/doctest.h>
#include <unistd.h>

#include "support/served_cases.hpp"

using namespace trainer;

namespace {

test::Trained train(const test::Case& c, std::int64_t ranks, comm::SendMode mode = comm::SendMode::Eager,
                    std::uint64_t fault_seed = 0) {
  static int count = 0;
  const std::string directory = (std::filesystem::temp_directory_path() /
                                 ("trainer-served-" + std::to_string(getpid()) + "-" + std::to_string(count++)))
                                    .string();
  test::Trained trained;
  comm::run_in_process(
      static_cast<int>(ranks),
      [&](comm::Communicator& inner) {
        const auto faulty = fault_seed == 0 ? nullptr : comm::make_faulty(inner, fault_seed, 0.0005);
        test::Trained mine = test::run(faulty ? *faulty : inner, c, directory);
        if (inner.rank() == 0) trained = std::move(mine);
      },
      mode);
  return trained;
}

test::Case mesh(const std::string& model, std::int64_t data, std::int64_t pipeline, std::int64_t tensor,
                const std::string& extra = "") {
  test::Case c;
  c.model = model;
  c.data = data;
  c.pipeline = pipeline;
  c.tensor = tensor;
  c.micro_batches = 2;
  c.extra = extra;
  return c;
}

}  // namespace

TEST_CASE("bsp servers give the bits of all_reduce") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  const std::string momentum =
      "optimizer={\"type\":\"sgd\",\"learning_rate\":0.1,\"momentum\":0.9,\"weight_decay\":0.01};training.steps=8";
  std::vector<test::ServedCase> cases;
  for (std::int64_t servers = 1; servers <= 3; ++servers) {
    for (std::int64_t replicas = 1; replicas <= 4; ++replicas) {
      cases.push_back({mesh(replicas % 2 == 1 ? "mlp" : "gpt tied", replicas, 1, 1), servers, ""});
      cases.push_back({mesh("gpt tied", replicas, 1, 1, momentum), servers, "parallel.notify=true"});
    }
    cases.push_back({mesh("gpt tied", 2, 2, 1), servers, ""});
    cases.push_back({mesh("gpt untied", 2, 1, 2), servers, "parallel.notify=true"});
    cases.push_back({mesh("gpt tied", 2, 2, 2, "training.steps=6"), servers, ""});
    cases.push_back({mesh("sequential", 3, 1, 2, "training.steps=6"), servers, ""});
    cases.push_back({mesh("mlp", 3, 1, 1, "model.hidden_sizes=[300,217];training.gradient_clip=0.05"), servers, ""});
  }
  for (const test::ServedCase& c : cases) {
    CAPTURE(c.name());
    const test::Trained served = train(c.served(), c.ranks());
    CHECK(test::distance(served, train(c.c, c.c.ranks())).same_bits);
  }
}
