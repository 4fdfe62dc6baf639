// Runs whose parameters live on servers: ranks as threads.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "support/served_cases.hpp"
#include "trainer/runtime/batch_book.hpp"
#include "trainer/runtime/server_plan.hpp"

using namespace trainer;
using test::Conditions;
using test::log_of;
using test::mesh_case;
using test::run_in;
using test::RunDirectory;
using test::ServedCase;
using test::tensors_of;

namespace {

void be_patient() { comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}}); }

const std::string kMomentum =
    "optimizer={\"type\":\"sgd\",\"learning_rate\":0.1,\"momentum\":0.9,\"weight_decay\":0.01}";

// Losses, norms, weights and optimizer state.
void check_same(const test::Kept& a, const test::Kept& b) {
  REQUIRE(a.steps.size() == b.steps.size());
  for (std::size_t i = 0; i < a.steps.size(); ++i) {
    CHECK(a.steps[i].step == b.steps[i].step);
    CHECK(a.steps[i].loss == b.steps[i].loss);
    CHECK(a.steps[i].grad_norm == b.steps[i].grad_norm);
    CHECK(a.steps[i].learning_rate == b.steps[i].learning_rate);
  }
  CHECK(a.result.validation_loss == b.result.validation_loss);
  const auto mine = tensors_of(a.result.checkpoint, true);
  CHECK(mine.size() > 3);
  CHECK(mine == tensors_of(b.result.checkpoint, true));
}

}  // namespace

TEST_CASE("bsp servers give the bits of all_reduce") {
  be_patient();
  std::vector<ServedCase> cases;
  for (std::int64_t servers = 1; servers <= 3; ++servers) {
    for (std::int64_t replicas = 1; replicas <= 4; ++replicas) {
      cases.push_back({mesh_case(replicas % 2 == 1 ? "mlp" : "gpt tied", replicas, 1, 1), servers, ""});
      cases.push_back(
          {mesh_case("gpt tied", replicas, 1, 1, kMomentum + ";training.steps=8"), servers, "parallel.notify=true"});
    }
    cases.push_back({mesh_case("gpt tied", 2, 2, 1), servers, ""});
    cases.push_back({mesh_case("gpt untied", 2, 1, 2), servers, "parallel.notify=true"});
    cases.push_back({mesh_case("gpt tied", 2, 2, 2, "training.steps=6"), servers, ""});
    cases.push_back({mesh_case("sequential", 3, 1, 2, "training.steps=6"), servers, ""});
    cases.push_back(
        {mesh_case("mlp", 3, 1, 1, "model.hidden_sizes=[300,217];training.gradient_clip=0.05"), servers, ""});
  }
  // A last step that is partly padding, and evaluations on the way.
  cases.push_back({mesh_case("mlp", 3, 1, 1,
                             "training.epochs=2.3;training.steps=0;data.validation_fraction=0.2;"
                             "training.eval_every=3;checkpoint.every_steps=4"),
                   2, ""});
  for (const ServedCase& c : cases) {
    CAPTURE(c.name());
    const RunDirectory served("served"), summed("summed");
    check_same(run_in(served.path, c.served(), c.ranks()), run_in(summed.path, c.c, c.c.ranks()));
  }
}

TEST_CASE("of an embedding's gradient only the rows that a batch touches travel, and no bit changes") {
  be_patient();
  const std::string large = "model.vocab_size=2000;training.steps=5;" + kMomentum;
  for (const std::string model : {"gpt tied", "gpt untied"}) {
    for (const std::int64_t servers : {1, 3}) {  // three cut the table between rows
      for (const std::int64_t pipeline : {1, 2}) {
        const ServedCase c{mesh_case(model, 2, pipeline, 1, large), servers, ""};
        CAPTURE(c.name());
        const RunDirectory served("served"), summed("summed");
        const test::Kept rows = run_in(served.path, c.served(), c.ranks());
        check_same(rows, run_in(summed.path, c.c, c.c.ranks()));
        const runtime::RunPlan plan = runtime::make_plan(
            config::parse(test::model_json(model), "test", test::overrides(c.served(), "")), c.ranks());
        const runtime::ServerPlan parts = runtime::make_server_plan(plan);
        double whole = 0;  // elements of five steps, had the tables travelled whole
        for (std::int64_t rank = 0; rank < plan.mesh.size(); ++rank) {
          for (int server = 0; server < parts.count(); ++server) {
            const runtime::ServerStream stream = runtime::make_stream(plan, parts, server, plan.mesh.coordinates(rank));
            for (const runtime::ServerMessage& message : stream.push)
              whole += 5.0 * static_cast<double>(message.elements);
            for (const runtime::ServerMessage& message : stream.pull)
              whole += 5.0 * static_cast<double>(message.elements);
          }
        }
        const double sent = rows.result.exchange_bytes / sizeof(float);
        // A replica's batch has 132 tokens, of 2000.
        const double tables = 5.0 * 2 * 2000 * 24;
        CHECK(sent < whole - 0.85 * tables);
      }
    }
    // Each replica by itself; one has the bits of an ordinary run.
    const ServedCase one{mesh_case(model, 1, 1, 1, large), 2, "parallel.consistency=async;parallel.notify=true"};
    const RunDirectory served("served"), alone("alone");
    check_same(run_in(served.path, one.served(), one.ranks()), run_in(alone.path, one.c, 1));
  }
  const ServedCase late{mesh_case("gpt tied", 2, 1, 1, large), 2, ""};
  const RunDirectory calm("calm"), rough("rough");
  check_same(run_in(rough.path, late.served(), late.ranks(), {.mode = comm::SendMode::Rendezvous, .fault_seed = 7}),
             run_in(calm.path, late.served(), late.ranks()));
}

TEST_CASE("late and reordered messages, and sends that wait for their receive, change no bit of bsp") {
  be_patient();
  for (const ServedCase& c : {ServedCase{mesh_case("gpt tied", 2, 2, 1, "training.steps=4"), 2, ""},
                              ServedCase{mesh_case("mlp", 3, 1, 1, "training.steps=4;model.hidden_sizes=[300,217]"), 3,
                                         "parallel.notify=true"}}) {
    const RunDirectory calm("calm");
    const test::Kept reference = run_in(calm.path, c.served(), c.ranks());
    for (const std::uint64_t seed : {0, 1, 2}) {
      const RunDirectory rough("rough");
      check_same(run_in(rough.path, c.served(), c.ranks(), {.mode = comm::SendMode::Rendezvous, .fault_seed = seed}),
                 reference);
    }
  }
}

TEST_CASE("one replica by itself has the bits of one rank, in every consistency") {
  be_patient();
  const test::Case one = mesh_case("gpt tied", 1, 1, 1);
  const RunDirectory alone("alone");
  const test::Kept reference = run_in(alone.path, one, 1);
  for (const std::string keys : {"parallel.consistency=async", "parallel.consistency=ssp;parallel.staleness=0",
                                 "parallel.consistency=async;parallel.notify=true", "parallel.consistency=bsp"}) {
    for (const std::int64_t servers : {1, 2}) {
      CAPTURE(keys);
      const ServedCase c{one, servers, keys};
      const RunDirectory served("served");
      check_same(run_in(served.path, c.served(), c.ranks()), reference);
    }
  }
}

// ---- what a replica may read ------------------------------------------------------------------------------------

namespace {

// Walks a server's log and asserts the bound at every read. Returns how many reads saw an update of a clock that the
// reader itself has still to make.
int check_reads(const runtime::ExchangeLog& log, std::int64_t staleness) {
  std::vector<std::int64_t> clocks(static_cast<std::size_t>(log.header.replicas));
  std::int64_t version = log.records.front().version;
  int ahead = 0;
  for (const runtime::ExchangeRecord& record : log.records) {
    auto& mine = clocks[static_cast<std::size_t>(record.replica)];
    CHECK(record.clock == mine);
    if (record.kind == runtime::ExchangeKind::Push) {
      ++mine;
      CHECK(record.version == ++version);
    } else {
      CHECK(record.version == version);
      // Its own updates, and everybody's up to clock − staleness − 1, which makes so many updates.
      for (const std::int64_t other : clocks) CHECK(other >= record.clock - staleness);
      if (*std::max_element(clocks.begin(), clocks.end()) > record.clock) ++ahead;
    }
    const auto [least, most] = std::minmax_element(clocks.begin(), clocks.end());
    CHECK(*most - *least <= staleness + 1);
  }
  return ahead;
}

}  // namespace

TEST_CASE("ssp: no read is staler than it may be, under delays, and staleness 0 is not synchronous SGD") {
  be_patient();
  int ahead_at_0 = 0;
  for (const std::int64_t staleness : {0, 1, 3}) {
    for (const std::uint64_t seed : {1, 2, 3}) {
      const std::string slow = seed == 2 ? ";parallel.injected_delay=[0,0.4,0]" : "";
      const ServedCase c{mesh_case("mlp", 3, 1, 1, "training.steps=12"), 2,
                         "parallel.consistency=ssp;parallel.staleness=" + std::to_string(staleness) + slow +
                             (seed == 3 ? ";parallel.notify=true" : "")};
      CAPTURE(c.name());
      const RunDirectory directory("ssp");
      // Where only one replica's messages are late, the others have long pushed when it pulls.
      const Conditions rough{.mode = comm::SendMode::Rendezvous,
                             .fault_seed = seed,
                             .most_delay = 0.003,
                             .faulty_rank = seed == 1 ? 1 : -1};
      const test::Kept kept = run_in(directory.path, c.served(), c.ranks(), rough);
      CHECK(kept.steps.size() == 12);
      for (int s = 0; s < 2; ++s) {
        const int ahead = check_reads(log_of(directory.path, s), staleness);
        if (staleness == 0) ahead_at_0 += ahead;
      }
    }
  }
  CHECK(ahead_at_0 > 0);
}

TEST_CASE("async: every batch of the stream is pushed once, at each replica's own pace") {
  be_patient();
  for (const std::string notify : {"false", "true"}) {
    const ServedCase c{mesh_case("gpt tied", 3, 1, 1, "training.steps=10"), 2,
                       "parallel.consistency=async;parallel.injected_delay=[0,0,3];parallel.notify=" + notify};
    const RunDirectory directory("async");
    const test::Kept kept = run_in(directory.path, c.served(), c.ranks());
    REQUIRE(kept.steps.size() == 10);
    CHECK(kept.steps.back().exchange_bytes > 0);
    for (int s = 0; s < 2; ++s) {
      std::vector<std::int64_t> firsts, of_replica(3);
      for (const runtime::ExchangeRecord& record : log_of(directory.path, s).records) {
        if (record.kind != runtime::ExchangeKind::Push) continue;
        CHECK(record.count == 8);
        firsts.push_back(record.first);
        ++of_replica[static_cast<std::size_t>(record.replica)];
      }
      std::sort(firsts.begin(), firsts.end());
      REQUIRE(firsts.size() == 30);
      for (std::size_t i = 0; i < firsts.size(); ++i) CHECK(firsts[i] == static_cast<std::int64_t>(8 * i));
      CHECK(of_replica[2] < std::min(of_replica[0], of_replica[1]));
    }
  }
}

TEST_CASE("backup: padding alone is no step") {
  // 3 replicas of 4 samples, of which the second step has 2: those of replica 0.
  const auto book = runtime::make_step_book(3, 1, 4, 14);
  book->restore(1, {});
  book->open_until(2);
  for (int replica = 0; replica < 3; ++replica) CHECK(book->next(replica, 0)->first == 12 + 4 * replica);
  CHECK(book->report(2, 1));
  CHECK(!book->report(1, 2));  // the step would be without a sample
  CHECK(!book->complete());
  CHECK(!book->next(1, 2));
  CHECK(book->report(0, 3));
  CHECK(book->complete());
}

TEST_CASE("backup: a step goes without its slowest replica, and its gradient is the mean over the others") {
  be_patient();
  const ServedCase c{mesh_case("mlp", 3, 1, 1, "training.steps=10"), 2,
                     "parallel.backup=1;parallel.injected_delay=[0,2.5,0]"};
  const RunDirectory directory("backup");
  const test::Kept kept = run_in(directory.path, c.served(), c.ranks());
  CHECK(kept.steps.size() == 10);
  std::int64_t of_slow = 0;
  for (int s = 0; s < 2; ++s) {
    std::int64_t pushes = 0, steps = 0;
    for (const runtime::ExchangeRecord& record : log_of(directory.path, s).records) {
      if (record.kind == runtime::ExchangeKind::Push) {
        ++pushes;
        CHECK(record.clock == steps);
        if (record.replica == 1) ++of_slow;
      }
      if (record.kind != runtime::ExchangeKind::Apply) continue;
      CHECK(pushes == 2);
      pushes = 0;
      CHECK(record.clock == ++steps);
    }
    CHECK(steps == 10);
  }
  CHECK(of_slow < 10);
  // A first step without replica 1 is the step of the other two, whose shares make the whole batch.
  const RunDirectory first("first");
  const ServedCase once{mesh_case("mlp", 3, 1, 1, "training.steps=1"), 1,
                        "parallel.backup=1;parallel.injected_delay=[0,40,0]"};
  const test::Kept step = run_in(first.path, once.served(), once.ranks());
  const ServedCase all{mesh_case("mlp", 3, 1, 1, "training.steps=1"), 1, ""};
  const RunDirectory whole("whole");
  const test::Kept usual = run_in(whole.path, all.served(), all.ranks());
  CHECK(step.steps.front().loss == doctest::Approx(usual.steps.front().loss).epsilon(0.2));
  CHECK(step.steps.front().loss != usual.steps.front().loss);
  CHECK(step.steps.front().grad_norm == doctest::Approx(usual.steps.front().grad_norm).epsilon(0.5));
}
