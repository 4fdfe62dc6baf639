// Served runs that stop, go on, change their layout, and diverge: ranks as threads.
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>

#include "support/served_cases.hpp"

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

const std::string kSteps = "training.steps=12;checkpoint.every_steps=5;checkpoint.keep=9";

void remove_last_checkpoint(const test::Kept& kept) { std::filesystem::remove_all(kept.result.checkpoint); }

}  // namespace

TEST_CASE(
    "bsp: a run that goes on from a checkpoint, of servers or of all_reduce, has the bits of one that never stopped") {
  be_patient();
  const test::Case mesh = mesh_case("gpt tied", 2, 2, 1, kSteps);
  const RunDirectory summed("summed");
  const test::Kept reference = run_in(summed.path, mesh, mesh.ranks());
  const auto expected = tensors_of(reference.result.checkpoint, true);
  const ServedCase one{mesh, 1, ""}, three{mesh, 3, "parallel.notify=true"};
  struct Way {
    test::Case before, after;
    std::int64_t before_ranks, after_ranks;
  };
  for (const Way& way :
       {Way{one.served(), one.served(), one.ranks(), one.ranks()},
        Way{three.served(), one.served(), three.ranks(), one.ranks()},
        Way{one.served(), mesh, one.ranks(), mesh.ranks()}, Way{mesh, three.served(), mesh.ranks(), three.ranks()}}) {
    CAPTURE(way.before.name());
    CAPTURE(way.after.name());
    const RunDirectory directory("resumed");
    remove_last_checkpoint(run_in(directory.path, way.before, way.before_ranks));
    const test::Kept resumed = run_in(directory.path, way.after, way.after_ranks, {.resume = true});
    REQUIRE(resumed.steps.size() == 2);
    CHECK(resumed.steps.front().step == 11);
    for (std::size_t i = 0; i < 2; ++i) CHECK(resumed.steps[i].loss == reference.steps[10 + i].loss);
    CHECK(tensors_of(resumed.result.checkpoint, true) == expected);
  }
}

TEST_CASE("ssp and async: clocks, counters and the stream go on where the checkpoint has them") {
  be_patient();
  for (const std::string consistency : {"ssp", "async"}) {
    CAPTURE(consistency);
    const ServedCase c{mesh_case("mlp", 3, 1, 1, kSteps), 2,
                       "parallel.consistency=" + consistency + ";parallel.injected_delay=[0,0.3,0]"};
    const RunDirectory directory("resumed");
    remove_last_checkpoint(run_in(directory.path, c.served(), c.ranks()));
    const test::Kept resumed = run_in(directory.path, c.served(), c.ranks(), {.resume = true});
    CHECK(resumed.steps.size() == 2);
    CHECK(resumed.steps.back().step == 12);
    for (int s = 0; s < 2; ++s) {
      // One log, cut where the checkpoint stood and gone on with: each batch once, clocks without a gap.
      const runtime::ExchangeLog log = log_of(directory.path, s);
      CHECK(log.header.after == 0);
      std::vector<std::int64_t> firsts, clocks(3);
      for (const runtime::ExchangeRecord& record : log.records) {
        if (record.kind != runtime::ExchangeKind::Push) continue;
        firsts.push_back(record.first);
        CHECK(record.clock == clocks[static_cast<std::size_t>(record.replica)]++);
        CHECK(record.version == static_cast<std::int64_t>(firsts.size()));
      }
      std::sort(firsts.begin(), firsts.end());
      REQUIRE(firsts.size() == 36);
      for (std::size_t i = 0; i < firsts.size(); ++i) CHECK(firsts[i] == static_cast<std::int64_t>(8 * i));
    }
    // Another layout takes it over too.
    const test::Case summed = mesh_case("mlp", 2, 1, 1, kSteps + ";training.steps=14");
    CHECK(run_in(directory.path, summed, 2, {.resume = true}).steps.back().step == 14);
  }
}

TEST_CASE("a stop pauses everybody behind a whole step, saved, to go on from") {
  be_patient();
  for (const std::string keys :
       {"parallel.consistency=bsp", "parallel.consistency=ssp", "parallel.consistency=async", "parallel.backup=1"}) {
    CAPTURE(keys);
    const ServedCase c{mesh_case("mlp", 3, 1, 1, "training.steps=40;data.validation_fraction=0.2"), 2, keys};
    const RunDirectory directory("stopped");
    const test::Kept stopped = run_in(directory.path, c.served(), c.ranks(), {.stop_at = 4});
    CHECK(stopped.result.code == ExitCode::Interrupted);
    const std::int64_t last = stopped.result.last_step;
    CHECK(last >= 4);
    CHECK(last < 40);
    CHECK(static_cast<std::int64_t>(stopped.steps.size()) == last);
    CHECK(stopped.result.checkpoint == storage::final_path(directory.path, last));
    CHECK(!stopped.result.validation_loss);
    const test::Kept resumed = run_in(directory.path, c.served(), c.ranks(), {.resume = true});
    CHECK(resumed.result.code == ExitCode::Done);
    CHECK(resumed.steps.front().step == last + 1);
    CHECK(resumed.result.last_step == 40);
    CHECK(resumed.result.validation_loss.has_value());
    if (!keys.ends_with("bsp")) continue;
    const RunDirectory whole("whole");
    const test::Kept reference = run_in(whole.path, c.served(), c.ranks());
    CHECK(tensors_of(resumed.result.checkpoint, true) == tensors_of(reference.result.checkpoint, true));
  }
}

TEST_CASE("a run that diverges ends on every rank, and the checkpoint before it is whole") {
  be_patient();
  for (const std::string keys : {"parallel.consistency=bsp", "parallel.consistency=bsp;parallel.notify=true",
                                 "parallel.consistency=ssp", "parallel.consistency=async"}) {
    CAPTURE(keys);
    const ServedCase c{mesh_case("mlp", 3, 1, 1,
                                 "training.steps=60;checkpoint.every_steps=1;optimizer={\"type\":\"sgd\","
                                 "\"learning_rate\":1e30};training.gradient_clip=0"),
                       2, keys};
    const RunDirectory directory("diverged");
    std::string message;
    try {
      run_in(directory.path, c.served(), c.ranks());
    } catch (const Error& error) {
      CHECK(error.code() == ExitCode::Diverged);
      message = error.what();
    }
    CHECK(message.find("diverged") != std::string::npos);
    CHECK(message.find("optimizer.learning_rate") != std::string::npos);
    const auto steps = storage::checkpoint_steps(storage::real_file_system(), directory.path);
    // Without an order of replicas, one may have met what another's first push made of the weights before a step was
    // whole, and then there is none.
    if (keys.find("bsp") != std::string::npos) REQUIRE(!steps.empty());
    for (const std::int64_t step : steps) {
      storage::open_checkpoint(storage::real_file_system(), storage::final_path(directory.path, step))->verify();
    }
    // bsp: the step of all_reduce, in the same words.
    if (!keys.ends_with("bsp")) continue;
    const RunDirectory summed("summed");
    try {
      run_in(summed.path, c.c, c.c.ranks());
    } catch (const Error& error) {
      CHECK(message == error.what());
    }
  }
}
