// Rounds of local steps (parallel.exchange "local") against a serial simulation, in several layouts, interrupted, and
// their special cases.
#include <doctest/doctest.h>

#include <cmath>
#include <mutex>

#include "support/local_cases.hpp"
#include "trainer/core/error.hpp"
#include "trainer/runtime/local_rounds.hpp"

using namespace trainer;
using test::local_case;
using test::rounds_of;
using test::travel;

namespace {

void be_patient() { comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}}); }

// The samples that one replica takes, as a set of their own: position p of a run over this set, which has b samples a
// step, is position (p / b) · D · b + r · b + p mod b of the run over all of them.
class ShareOfData final : public storage::Dataset {
 public:
  ShareOfData(const storage::Dataset& all, std::uint64_t seed, std::int64_t steps, std::int64_t batch,
              std::int64_t replica, std::int64_t replicas)
      : all_(all), of_(static_cast<std::size_t>(steps * batch)) {
    const storage::SampleOrder theirs(seed, all.size());
    const storage::SampleOrder mine(seed, steps * batch);
    for (std::int64_t p = 0; p < steps * batch; ++p) {
      const std::int64_t there = (p / batch * replicas + replica) * batch + p % batch;
      of_[static_cast<std::size_t>(mine(p))] = theirs(there);
    }
  }
  const storage::SampleKind& kind() const override { return all_.kind(); }
  std::int64_t size() const override { return static_cast<std::int64_t>(of_.size()); }
  void read(std::int64_t sample, const storage::SampleTarget& to) const override {
    all_.read(of_[static_cast<std::size_t>(sample)], to);
  }
  std::size_t bytes() const override { return 0; }

 private:
  const storage::Dataset& all_;
  std::vector<std::int64_t> of_;
};

struct Simulated {
  std::vector<double> losses, norms;
  std::vector<float> weights;  // θ at the end, as one rank holds the model
};

// One process, one replica after the other, each an ordinary one-rank run; the outer step written out.
Simulated simulate(const test::Case& c) {
  const auto config = config::parse(test::model_json(c.model), "test", test::overrides(c, ""));
  const config::LocalSteps local = config.parallel.local;
  test::Case one = c;
  one.data = 1;
  one.extra.clear();
  const std::int64_t batch = config.training.batch_size / c.data;
  one.extra = "training.batch_size=" + std::to_string(batch);
  const runtime::RunPlan plan =
      runtime::make_plan(config::parse(test::model_json(c.model), "test", test::overrides(one, "")), 1);
  const auto data = storage::load_dataset(config.data, runtime::model_input(plan.graph), config.training.seed);
  const std::int64_t steps = config.training.steps;
  Simulated result;
  comm::run_in_process(1, [&](comm::Communicator& world) {
    ThreadPool pool(1, false);
    std::vector<std::unique_ptr<ShareOfData>> shares;
    std::vector<std::unique_ptr<runtime::Worker>> workers;
    for (std::int64_t r = 0; r < c.data; ++r) {
      shares.push_back(std::make_unique<ShareOfData>(*data, config.training.seed, steps, batch, r, c.data));
      workers.push_back(std::make_unique<runtime::Worker>(world, plan, *shares.back(), pool, true));
      workers.back()->initialise();
    }
    const std::size_t elements = workers.front()->parameters().layout().weight_elements;
    const auto weights_of = [&](std::size_t r) { return workers[r]->parameters().weights(); };
    std::vector<float> theta(weights_of(0), weights_of(0) + elements), u(elements, 0.0f);
    for (std::int64_t step = 1; step <= steps; ++step) {
      double loss = 0, norm = 0;
      for (const auto& worker : workers) {
        const runtime::StepOutcome outcome = worker->step(step, false);
        loss += outcome.loss / static_cast<double>(c.data);
        norm += outcome.grad_norm / static_cast<double>(c.data);
      }
      result.losses.push_back(loss);
      result.norms.push_back(norm);
      if (step % local.steps != 0 && step != steps) continue;
      for (std::size_t i = 0; i < elements; ++i) {
        float sum = weights_of(0)[i];
        for (std::size_t r = 1; r < workers.size(); ++r) sum += weights_of(r)[i];
        const double mean = static_cast<double>(sum) / static_cast<double>(workers.size());
        const double eta = local.outer_learning_rate, mu = local.outer_momentum;
        const float before = u[i];
        u[i] = static_cast<float>(mu * before + (theta[i] - mean));
        const double push = local.nesterov ? u[i] : before;
        double moved = (1 - eta) * theta[i] + eta * mean;
        if (mu > 0) moved -= eta * mu * push;
        theta[i] = static_cast<float>(moved);
      }
      for (std::size_t r = 0; r < workers.size(); ++r) std::copy(theta.begin(), theta.end(), weights_of(r));
    }
    result.weights = theta;
  });
  return result;
}

struct Told {
  std::vector<double> losses, norms;
  std::vector<std::vector<float>> weights;  // [rank]
};

// Worker::step alone, with nothing due before the end.
Told run(const test::Case& c) {
  const auto config = config::parse(test::model_json(c.model), "test", test::overrides(c, ""));
  const runtime::RunPlan plan = runtime::make_plan(config, c.ranks());
  const auto data = storage::load_dataset(config.data, runtime::model_input(plan.graph), config.training.seed);
  Told told;
  told.weights.resize(static_cast<std::size_t>(c.ranks()));
  comm::run_in_process(static_cast<int>(c.ranks()), [&](comm::Communicator& world) {
    ThreadPool pool(1, false);
    runtime::Worker worker(world, plan, *data, pool, true);
    worker.initialise();
    for (std::int64_t step = 1; step <= config.training.steps; ++step) {
      const runtime::StepResult result = worker.step(step, false, false);
      const bool ends = step % config.parallel.local.steps == 0 || step == config.training.steps;
      CHECK(result.now.has_value() == ends);
      if (world.rank() != 0 || !result.now) continue;
      for (const runtime::StepOutcome& outcome : result.round) {
        told.losses.push_back(outcome.loss);
        told.norms.push_back(outcome.grad_norm);
      }
      told.losses.push_back(result.now->loss);
      told.norms.push_back(result.now->grad_norm);
      CHECK(result.now->step == step);
    }
    const float* weights = worker.parameters().weights();
    told.weights[static_cast<std::size_t>(world.rank())].assign(weights,
                                                                weights + worker.parameters().layout().weight_elements);
  });
  return told;
}

}  // namespace

TEST_CASE("local SGD and DiLoCo have the bits of their serial simulation") {
  be_patient();
  for (const std::string model : {"mlp", "gpt tied"}) {
    for (const std::int64_t replicas : {1, 2, 3}) {
      for (const std::string& rounds :
           {rounds_of(3), rounds_of(4, 0.5, 0.6, false), rounds_of(3, 1, 0), rounds_of(1, 0.7, 0), rounds_of(50)}) {
        const test::Case c = local_case(model, replicas, 1, 1, rounds);
        CAPTURE(c.name());
        const Simulated expected = simulate(c);
        const Told told = run(c);
        CHECK(told.norms == expected.norms);
        for (const auto& weights : told.weights) CHECK(weights == expected.weights);
        REQUIRE(told.losses.size() == 20);
        for (std::size_t i = 0; i < told.losses.size(); ++i) {
          // The same sums, divided before or after they are added: a rounding each for the replicas and their sum.
          const double bound = static_cast<double>(2 * replicas + 2) * 0x1p-53 * expected.losses[i];
          CHECK(std::abs(told.losses[i] - expected.losses[i]) <= bound);
        }
      }
    }
  }
}

TEST_CASE("one replica that averages with nobody is an ordinary run, whatever its rounds") {
  be_patient();
  for (const auto& [model, pipeline, tensor] : {std::tuple{"mlp", 1, 1}, {"gpt dropout", 2, 1}, {"gpt tied", 1, 2}}) {
    const test::Folder plain("rounds-plain"), local("rounds-one");
    const test::Heard expected = travel(plain, local_case(model, 1, pipeline, tensor, ""));
    for (const std::int64_t steps : {1, 6, 100}) {
      const test::Heard heard = travel(local, local_case(model, 1, pipeline, tensor, rounds_of(steps, 1, 0)));
      CHECK(heard.losses == expected.losses);
      CHECK(test::tensors_of(local) == test::tensors_of(plain));
    }
  }
}

TEST_CASE("one local step of plain SGD is synchronous SGD, within rounding") {
  be_patient();
  const std::string sgd =
      R"(;optimizer={"type": "sgd", "learning_rate": 0.05};training.gradient_clip=0;training.steps=1)";
  for (const std::string model : {"mlp", "gpt untied"}) {
    for (const std::int64_t replicas : {2, 4}) {
      const test::Case local = local_case(model, replicas, 1, 1, rounds_of(1, 1, 0) + sgd);
      const test::Case plain = local_case(model, replicas, 1, 1, sgd.substr(1));
      CAPTURE(local.name());
      const auto config = config::parse(test::model_json(model), "test", test::overrides(local, ""));
      const runtime::RunPlan plan = runtime::make_plan(config, replicas);
      const auto data = storage::load_dataset(config.data, runtime::model_input(plan.graph), config.training.seed);
      std::vector<float> start, averaged, summed;
      std::vector<double> reach;  // |θ| + η·|gradient of a replica's mean|, the most of any replica
      std::mutex lock;
      comm::run_in_process(static_cast<int>(replicas), [&](comm::Communicator& world) {
        ThreadPool pool(1, false);
        runtime::Worker worker(world, plan, *data, pool, true);
        worker.initialise();
        const runtime::ParameterLayout& layout = worker.parameters().layout();
        const std::vector<float> before(worker.parameters().weights(),
                                        worker.parameters().weights() + layout.weight_elements);
        worker.step(1, false);
        const std::lock_guard guard(lock);
        reach.resize(before.size(), 0);
        for (const runtime::HeldParameter& held : layout.held) {
          for (std::size_t i = 0; i < static_cast<std::size_t>(held.elements); ++i) {
            const double gradient = worker.parameters().gradients()[held.gradients.front() + i];
            double& most = reach[held.weight + i];
            most = std::max(most, std::abs(before[held.weight + i]) + 0.05 * std::abs(gradient));
          }
        }
        start = before;
        averaged.assign(worker.parameters().weights(), worker.parameters().weights() + layout.weight_elements);
      });
      const auto synchronous =
          runtime::make_plan(config::parse(test::model_json(model), "test", test::overrides(plain, "")), replicas);
      comm::run_in_process(static_cast<int>(replicas), [&](comm::Communicator& world) {
        ThreadPool pool(1, false);
        runtime::Worker worker(world, synchronous, *data, pool, true);
        worker.initialise();
        worker.step(1, false);
        world.barrier();
        const std::lock_guard guard(lock);
        summed.assign(worker.parameters().weights(), worker.parameters().weights() + start.size());
      });
      // With D a power of two a replica's gradient is D times its part of the sum, to the bit. Let u = 2^-24 and m the
      // reach. Averaged: a product and a difference on each replica (2um at most), D − 1 additions of them (each at
      // most u·D·m, over D), a rounding of the mean: u(D + 2)m. Synchronous: D − 1 additions of gradients, a product, a
      // difference: u(D + 1)m.
      std::size_t beyond = 0, moved = 0;
      for (std::size_t i = 0; i < start.size(); ++i) {
        const double bound = 1.001 * static_cast<double>(2 * replicas + 3) * 0x1p-24 * reach[i];
        if (!(std::abs(static_cast<double>(averaged[i]) - summed[i]) <= bound)) ++beyond;
        if (averaged[i] != start[i]) ++moved;
      }
      CHECK(beyond == 0);
      CHECK(moved > 500);
    }
  }
}

TEST_CASE("neither stage cut, schedule, threads nor nodes change a bit of rounds") {
  be_patient();
  for (const std::string model : {"gpt tied", "gpt dropout", "mlp"}) {
    const std::string keys = rounds_of(6) + ";checkpoint.every_steps=8;checkpoint.keep=9";
    const test::Folder folder("rounds-layouts");
    const test::Heard one = travel(folder, local_case(model, 2, 1, 1, keys));
    const test::Tensors within = test::tensors_of(folder, 8), last = test::tensors_of(folder);
    CHECK(one.losses.size() == 20);
    CHECK(within.contains("optimizer.local.1.weight." + last.begin()->first) ==
          !last.begin()->first.starts_with("optimizer."));
    test::Case cut = local_case(model, 2, 2, 1, keys), three = local_case(model, 2, 3, 1, keys),
               threads = local_case(model, 2, 1, 1, keys);
    cut.schedule = "zb-h1";
    three.schedule = "gpipe";
    threads.threads = 3;
    for (const test::Case& c : {cut, three, threads}) {
      for (const int ranks_per_node : {0, 1}) {
        CAPTURE(c.name());
        const test::Heard heard = travel(folder, c, {.ranks_per_node = ranks_per_node});
        CHECK(heard.losses == one.losses);
        CHECK(test::tensors_of(folder, 8) == within);
        CHECK(test::tensors_of(folder) == last);
      }
    }
  }
}

TEST_CASE("interrupted within a round and resumed, a run has the bits of one that was not") {
  be_patient();
  for (const auto& [model, data, pipeline, tensor] :
       {std::tuple{"mlp", 3, 1, 1}, {"gpt tied", 2, 2, 1}, {"sequential", 2, 1, 2}, {"gpt dropout", 1, 2, 1}}) {
    for (const std::string& rounds : {rounds_of(7), rounds_of(4, 1, 0), rounds_of(30, 0.6, 0.8, false)}) {
      const test::Folder whole("rounds-whole"), cut("rounds-cut");
      const test::Case undisturbed = local_case(model, data, pipeline, tensor, rounds);
      const test::Case c =
          local_case(model, data, pipeline, tensor, rounds + ";checkpoint.every_steps=5;checkpoint.keep=9");
      CAPTURE(c.name());
      const test::Heard expected = travel(whole, undisturbed);
      CHECK(expected.losses.size() == 20);
      test::Heard heard = travel(cut, c, {.stop_at = 6});
      // Heard of with the meeting after step 6 or behind it; noticed at the next one.
      CHECK(heard.result.code == ExitCode::Interrupted);
      const std::int64_t last = heard.result.last_step;
      CHECK(last > 6);
      CHECK(last < 20);
      test::Heard more = travel(cut, c, {.resume = true});
      CHECK(more.warnings.empty());
      heard.losses.insert(heard.losses.end(), more.losses.begin(), more.losses.end());
      CHECK(heard.losses == expected.losses);
      CHECK(test::tensors_of(cut) == test::tensors_of(whole));
    }
  }
}

TEST_CASE("within a round the usual names, and evaluation, are of the model that it began with") {
  be_patient();
  const test::Folder folder("rounds-eval"), undisturbed("rounds-undisturbed");
  const std::string keys = rounds_of(6) + ";data.validation_fraction=0.25";
  const test::Case c =
      local_case("gpt tied", 2, 2, 1, keys + ";training.eval_every=1;checkpoint.every_steps=1;checkpoint.keep=99");
  const test::Heard heard = travel(folder, c);
  const test::Heard expected = travel(undisturbed, local_case("gpt tied", 2, 2, 1, keys));
  CHECK(heard.losses == expected.losses);
  CHECK(test::tensors_of(folder) == test::tensors_of(undisturbed));
  CHECK(heard.validation.at(20) == expected.validation.at(20));
  for (std::int64_t step = 6; step < 20; ++step) {
    CAPTURE(step);
    const std::int64_t round = step / 6 * 6;
    CHECK(heard.validation.at(step) == heard.validation.at(round));
    const test::Tensors begin = test::tensors_of(folder, round), now = test::tensors_of(folder, step);
    std::size_t same = 0, apart = 0;
    for (const auto& [name, values] : now) {
      if (name.starts_with("optimizer.local.0.weight.")) ++apart;
      if (name.starts_with("optimizer.")) continue;
      CHECK(values == begin.at(name));
      if (step != round) CHECK(values != now.at("optimizer.local.1.weight." + name));
      ++same;
    }
    CHECK(same > 10);
    CHECK(apart == (step == round ? 0 : same));
  }
  CHECK(heard.validation.at(12) != heard.validation.at(6));
}

TEST_CASE("other replicas and other exchanges go on from the last round's model, and say so") {
  be_patient();
  const test::Folder folder("rounds-others");
  const std::string steps = ";training.steps=8;optimizer.schedule.type=constant";
  travel(folder, local_case("gpt tied", 3, 1, 1, rounds_of(6) + steps + ";checkpoint.every_steps=4;checkpoint.keep=9"),
         {.stop_at = 4});
  const auto begun = [&](const test::Case& c) {
    // Of the checkpoint within the first round: initial values of the model, and its moved copies.
    std::vector<std::string> passed_over;
    const auto checkpoint =
        storage::find_checkpoint(storage::real_file_system(), storage::final_path(folder.path, 4), passed_over);
    const runtime::RunPlan plan =
        runtime::make_plan(config::parse(test::model_json(c.model), "test", test::overrides(c, "")), c.ranks());
    const auto data =
        storage::load_dataset(plan.config.data, runtime::model_input(plan.graph), plan.config.training.seed);
    std::vector<float> loaded;
    comm::run_in_process(static_cast<int>(c.ranks()), [&](comm::Communicator& world) {
      ThreadPool pool(1, false);
      runtime::Worker worker(world, plan, *data, pool, true);
      if (world.rank() == c.ranks() - 1) worker.load(*checkpoint);
      world.barrier();
      if (world.rank() != c.ranks() - 1) return;
      const auto& parameters = worker.parameters();
      loaded.assign(worker.parameters().weights(),
                    worker.parameters().weights() + parameters.layout().held.front().elements);
    });
    return std::pair(loaded, runtime::lost_of_rounds(
                                 *checkpoint, config::parse(checkpoint->record().config, "checkpoint"), plan.config));
  };
  const test::Tensors saved = test::tensors_of(folder, 4);
  const std::string name = "wte.weight";
  REQUIRE(saved.contains(name));
  const auto [same, nothing] = begun(local_case("gpt tied", 3, 1, 1, rounds_of(6) + steps));
  CHECK(same == saved.at("optimizer.local.2.weight." + name));
  CHECK(nothing.empty());
  const auto [two, fewer] = begun(local_case("gpt tied", 2, 1, 1, rounds_of(6) + steps));
  CHECK(two == saved.at(name));
  CHECK(
      fewer.ends_with("holds 3 replicas with local steps of their own, this run has 2: the run goes on from the model "
                      "that all had 4 steps earlier, at the end of the last round, and with the optimizer state of "
                      "replica 0"));
  const auto [summed, other] = begun(local_case("gpt tied", 1, 1, 1, steps.substr(1)));
  CHECK(summed == saved.at(name));
  CHECK(other.find("this run has no local steps (parallel.exchange): the run goes on from") != std::string::npos);
  // And the other way: rounds begin with what all-reduce has left.
  const test::Folder plain("rounds-from-plain");
  travel(plain, local_case("gpt tied", 2, 1, 1, "training.steps=4"));
  const test::Heard on = travel(plain, local_case("gpt tied", 3, 1, 1, rounds_of(2) + steps), {.resume = true});
  CHECK(on.losses.size() == 4);
  CHECK(on.warnings.empty());
}

TEST_CASE("a replica that diverges is named, with the step, when the round ends") {
  be_patient();
  for (const auto& [data, pipeline] : {std::pair{2, 1}, {3, 2}}) {
    // Rounds as long as the run, so that only meetings could tell; nothing is due before.
    const test::Case c =
        local_case("mlp", data, pipeline, 1, rounds_of(100) + ";optimizer.learning_rate=1e12;training.gradient_clip=0");
    const test::Folder folder("rounds-diverged");
    std::string message;
    try {
      travel(folder, c);
    } catch (const Error& error) {
      CHECK(error.code() == ExitCode::Diverged);
      message = error.what();
    }
    CAPTURE(message);
    CHECK(message.find(": diverged in replica ") != std::string::npos);
    CHECK(message.find("Its weights were not changed in this step, and no model of all replicas was made since") !=
          std::string::npos);
    CHECK(storage::checkpoint_steps(storage::real_file_system(), folder.path).empty());
  }
}

TEST_CASE("bytes are those of a sum of the weights a round, and a replica without samples rests") {
  be_patient();
  const test::Folder folder("rounds-bytes");
  test::Case c = local_case("mlp", 3, 1, 1, rounds_of(6));
  const test::Heard heard = travel(folder, c);
  const runtime::RunPlan plan =
      runtime::make_plan(config::parse(test::model_json(c.model), "test", test::overrides(c, "")), 3);
  const auto layout = runtime::lay_out_parameters(plan, plan::shard(plan.graph, 1, 0), {0, 0, 0});
  double round = 0;
  for (int r = 0; r < 3; ++r) {
    round += static_cast<double>(
        comm::Communicator::all_reduce_sent_bytes(static_cast<std::int64_t>(layout.weight_elements), 3, r));
  }
  CHECK(heard.result.exchange_bytes == 4 * round);  // 6, 12, 18, 20
  for (const StepReport& report : heard.steps) {
    const bool ends = report.step % 6 == 0 || report.step == 20;
    CHECK(report.exchange_bytes == (ends ? round : 0));
  }
  // 106 samples of 24 a step: the last batch has 10, all of them replica 0's.
  const test::Case partial = local_case("mlp", 2, 1, 1,
                                        rounds_of(4) +
                                            ";training.steps=0;training.epochs=1.104;"
                                            "checkpoint.every_steps=1;checkpoint.keep=9");
  const test::Heard rest = travel(folder, partial);
  CHECK(rest.losses.size() == 5);
  CHECK(std::isfinite(rest.losses.back()));
  const test::Tensors before = test::tensors_of(folder, 4), after = test::tensors_of(folder, 5);
  for (const auto& [name, values] : before) {
    if (name.starts_with("optimizer.local.1.exp_avg")) CHECK(values == after.at(name));
    if (name.starts_with("optimizer.exp_avg.")) CHECK(values != after.at(name));
  }
}
