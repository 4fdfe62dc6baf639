// The optimistic step gives the bits of the plain one: weights, optimizer state, losses and norms, whatever had to be
// taken back. (Layouts with it beside one rank without it are in support/equivalence.hpp.)
#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>

#include "support/equivalence.hpp"
#include "trainer/comm/topology.hpp"
#include "trainer/core/error.hpp"
#include "trainer/core/random.hpp"
#include "trainer/runtime/deferred_sum.hpp"

using namespace trainer;

namespace {

struct Network {
  comm::SendMode mode = comm::SendMode::Eager;
  std::uint64_t fault_seed = 0;  // 0: none
  int ranks_per_node = 0;        // 0: all on one, sharing memory
};

/// What a run of Worker::step gives: outcomes as all ranks saw them, and what each rank holds at the end.
struct Told {
  std::vector<double> losses, norms, rates;
  std::vector<std::vector<float>> held;  // [rank] weights, then states
  runtime::Worker::Optimism optimism;
  std::string message;  // of the error that ended it
  bool operator==(const Told& other) const {
    return losses == other.losses && norms == other.norms && rates == other.rates && held == other.held &&
           message == other.message;
  }
};

struct Course {
  std::int64_t steps = 12;
  std::int64_t settle_every = 5;
  std::int64_t stop_at = 0;  // 0: never
};

test::Case with(test::Case c, const std::string& more) {
  c.extra += (c.extra.empty() ? "" : ";") + more;
  return c;
}

void tell(const runtime::StepOutcome& outcome, std::size_t& settled, Told& told) {
  CHECK(outcome.step == static_cast<std::int64_t>(++settled));
  told.losses.push_back(outcome.loss);
  told.norms.push_back(outcome.grad_norm);
  told.rates.push_back(outcome.learning_rate);
}

std::vector<float> held_by(runtime::Worker& worker) {
  std::vector<float> all;
  for (const storage::Piece& piece : worker.pieces()) {
    const auto* values = static_cast<const float*>(piece.data);
    all.insert(all.end(), values, values + piece.box.elements());
  }
  return all;
}

void take_course(runtime::Worker& worker, const Course& course, bool mine, Told& told, std::mutex& lock) {
  std::size_t settled = 0;
  Told heard;
  try {
    for (std::int64_t step = 1; step <= course.steps; ++step) {
      const bool settle = step == course.steps || step % course.settle_every == 0;
      const runtime::StepResult result = worker.step(step, course.stop_at == step && mine, settle);
      bool stop = false;
      for (const auto& outcome : {result.before, result.now}) {
        if (!outcome) continue;
        tell(*outcome, settled, heard);
        stop = outcome->stop;
      }
      if (settle && !stop) CHECK(result.now.has_value());
      if (stop) break;
    }
  } catch (const Error& error) {
    heard.message = error.what();
  }
  const std::lock_guard guard(lock);
  if (mine) {
    heard.held = std::move(told.held);
    told = std::move(heard);
    told.optimism = worker.optimism();
  }
}

Told run(const test::Case& c, const Course& course, Network network = {}) {
  const auto config = config::parse(test::model_json(c.model), "test", test::overrides(c, ""));
  const runtime::RunPlan plan = runtime::make_plan(config, c.ranks());
  const auto data =
      storage::load_dataset(plan.config.data, runtime::model_input(plan.graph), plan.config.training.seed);
  Told told;
  std::mutex lock;
  told.held.resize(static_cast<std::size_t>(c.ranks()));
  comm::run_in_process(
      static_cast<int>(c.ranks()),
      [&](comm::Communicator& inner) {
        const auto faulty = network.fault_seed == 0 ? nullptr : comm::make_faulty(inner, network.fault_seed, 0.0005);
        comm::Communicator& world = faulty ? *faulty : inner;
        ThreadPool pool(1, false);
        runtime::RunPlan own = plan;
        own.node_of_rank = comm::node_of_rank(world);
        runtime::Worker worker(world, own, *data, pool, true);
        worker.initialise();
        take_course(worker, course, world.rank() == 0, told, lock);
        world.barrier();
        std::vector<float> held = held_by(worker);
        const std::lock_guard guard(lock);
        told.held[static_cast<std::size_t>(world.rank())] = std::move(held);
      },
      network.mode, network.ranks_per_node);
  return told;
}

std::vector<test::Case> cases() {
  std::vector<test::Case> all;
  const auto add = [&](const std::string& model, std::int64_t data, std::int64_t pipeline, std::int64_t tensor,
                       const std::string& schedule, std::int64_t micro_batches) {
    test::Case c;
    c.model = model;
    c.data = data;
    c.pipeline = pipeline;
    c.tensor = tensor;
    c.schedule = schedule;
    c.micro_batches = micro_batches;
    all.push_back(c);
  };
  add("mlp", 1, 1, 1, "1f1b", 2);
  add("gpt dropout", 1, 2, 1, "1f1b", 4);
  add("gpt untied", 1, 4, 1, "zb-h2", 6);
  add("gpt tied", 1, 3, 1, "zb-h1", 4);
  add("gpt tied", 1, 2, 1, "gpipe", 3);
  add("gpt untied", 1, 2, 1, "zb-v", 4);
  add("gpt dropout", 1, 2, 1, "interleaved", 4);
  add("gpt tied", 2, 1, 1, "1f1b", 2);
  add("mlp", 3, 1, 1, "1f1b", 2);
  add("gpt untied", 1, 1, 2, "1f1b", 2);
  add("sequential", 1, 2, 2, "1f1b", 4);
  add("gpt tied", 2, 2, 1, "zb-h1", 4);
  add("gpt dropout", 2, 1, 2, "1f1b", 2);
  return all;
}

const std::string kOptimistic = "training.optimistic_step=true";

}  // namespace

TEST_CASE("a deferred sum has the bits of a sum") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  for (const std::uint64_t seed : {0, 1, 2}) {
    for (int ranks = 1; ranks <= 5; ++ranks) {
      comm::run_in_process(ranks, [&](comm::Communicator& inner) {
        const auto faulty = seed == 0 ? nullptr : comm::make_faulty(inner, seed, 0.0005);
        comm::Communicator& world = faulty ? *faulty : inner;
        runtime::DeferredSum sum(world, 7);
        CHECK(sum.test());
        const RandomStream random(9, "terms");
        const comm::WaitProgress progress([&] { (void)sum.test(); });
        for (std::uint64_t round = 0; round < 20; ++round) {
          std::vector<double> plain(7);
          for (std::size_t i = 0; i < plain.size(); ++i) {
            const std::uint64_t bits = random.bits(round * 7 + i, static_cast<std::uint64_t>(world.rank()));
            plain[i] = static_cast<double>(bits) * (bits % 3 == 0 ? 1e-18 : 1e-3);
          }
          std::copy(plain.begin(), plain.end(), sum.values().begin());
          sum.start();
          world.sum(plain);  // others' sums move on while rank 0 waits here
          comm::wait(sum, {"a deferred sum", -1, -1});
          CHECK(std::equal(plain.begin(), plain.end(), sum.sums().begin()));
        }
        world.barrier();
      });
    }
  }
}

TEST_CASE("weights, states, losses and norms are those of the plain way, whether updates stand or are taken back") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  for (const test::Case& c : cases()) {
    CAPTURE(c.name());
    const Told unclipped = run(with(c, "training.gradient_clip=0"), {});
    std::vector<double> norms = unclipped.norms;
    std::sort(norms.begin(), norms.end());
    const double middle = norms[norms.size() / 2];
    for (const double clip : {0.0, 1e-4, middle, 1e9}) {
      CAPTURE(clip);
      const test::Case plain = with(c, "training.gradient_clip=" + std::to_string(clip));
      const Told expected = run(plain, {});
      const Told told = run(with(plain, kOptimistic), {});
      CHECK(expected.losses.size() == 12);
      CHECK(expected.message.empty());
      CHECK(told == expected);
      CHECK(expected.optimism.updates == 0);
      CHECK(told.optimism.updates > 0);
      if (clip == 0 || clip == 1e9) {
        CHECK(told.optimism.updates == 9);  // all but the settled: 5, 10 and 12
        CHECK(told.optimism.taken_back == 0);
      } else {
        CHECK(told.optimism.taken_back > 0);
      }
      if (clip == 1e-4) CHECK(told.optimism.taken_back == told.optimism.updates);
    }
  }
}

TEST_CASE("it turns itself off while most steps are clipped, and on again") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  test::Case c;
  c.model = "mlp";
  c.micro_batches = 2;
  const Told always = run(with(c, "training.gradient_clip=0.0001;" + kOptimistic), {.steps = 40, .settle_every = 100});
  // Nine clipped steps of the last sixteen are more than half: from then on the plain way.
  CHECK(always.optimism.updates == 9);
  CHECK(always.optimism.taken_back == 9);
  comm::run_in_process(1, [](comm::Communicator& world) {
    runtime::OptimisticStep step(world, 1);
    for (int i = 0; i < 8; ++i) step.remember(true);
    CHECK(step.promising());
    step.remember(true);
    CHECK_FALSE(step.promising());
    for (int i = 0; i < 7; ++i) step.remember(false);
    CHECK_FALSE(step.promising());
    step.remember(false);  // the first of the nine is forgotten
    CHECK(step.promising());
  });
}

TEST_CASE("late messages, sends that wait, and nodes that share nothing change no bit") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  for (const test::Case& c : cases()) {
    if (c.ranks() < 2) continue;
    CAPTURE(c.name());
    const test::Case clipped = with(c, "training.gradient_clip=0.5");
    const Course course{.steps = 6, .settle_every = 4};
    const Told expected = run(clipped, course);
    for (const Network network :
         {Network{comm::SendMode::Rendezvous, 1, 0}, Network{comm::SendMode::Rendezvous, 2, 1}}) {
      const Told told = run(with(clipped, kOptimistic), course, network);
      CHECK(told.losses == expected.losses);
      CHECK(told.norms == expected.norms);
      CHECK(told.held == expected.held);
    }
  }
}

TEST_CASE("a stop ends both ways after the same step") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  for (const test::Case& c : cases()) {
    for (const std::int64_t at : {1, 4, 5}) {
      for (const std::string clip : {"0", "0.0001"}) {
        CAPTURE(c.name());
        CAPTURE(at);
        const test::Case plain = with(c, "training.gradient_clip=" + clip);
        const Course course{.steps = 8, .settle_every = 5, .stop_at = at};
        const Told told = run(with(plain, kOptimistic), course);
        CHECK(told.losses.size() == static_cast<std::size_t>(at));
        CHECK(told == run(plain, course));
      }
    }
  }
}

TEST_CASE("a loss that is not finite stops both ways at the same step, with the same words and no weight changed") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  for (const test::Case& c : cases()) {
    CAPTURE(c.name());
    // Some steps are fine, then the rate has driven the weights beyond what a product can hold.
    const test::Case plain = with(c, "optimizer.learning_rate=1e12;training.gradient_clip=0");
    const Course course{.steps = 60, .settle_every = 100};
    const Told expected = run(plain, course);
    REQUIRE(!expected.message.empty());
    CHECK(!expected.losses.empty());
    const Told told = run(with(plain, kOptimistic), course);
    CHECK(told.message == expected.message);
    CHECK(told == expected);
    CHECK(told.optimism.taken_back == 1);
  }
}

namespace {

// Raises a flag, as a signal would, when rank 0 hears of a step.
class StopAt final : public Observer {
 public:
  StopAt(std::vector<double>& losses, std::int64_t step, std::atomic<bool>& stop)
      : losses_(losses), step_(step), stop_(stop) {}
  void step(const StepReport& report) override {
    CHECK(report.step == static_cast<std::int64_t>(losses_.size()) + 1);
    losses_.push_back(report.loss);
    if (report.step == step_) stop_ = true;
  }

 private:
  std::vector<double>& losses_;
  const std::int64_t step_;
  std::atomic<bool>& stop_;
};

}  // namespace

TEST_CASE("an interrupted run that goes on gives the bits of a plain one that was never interrupted") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  for (const test::Case& c : cases()) {
    CAPTURE(c.name());
    const auto train = [&](const std::string& more, const std::string& directory, std::int64_t stop_at, bool resume,
                           std::vector<double>& losses) {
      const test::Case whole = with(c, "training.gradient_clip=0.7;checkpoint.every_steps=6;checkpoint.keep=9" + more);
      const auto config = config::parse(test::model_json(c.model), "test", test::overrides(whole, directory));
      const runtime::RunPlan plan = runtime::make_plan(config, c.ranks());
      const auto data =
          storage::load_dataset(plan.config.data, runtime::model_input(plan.graph), plan.config.training.seed);
      std::atomic<bool> stop{false};
      std::int64_t last = 0;
      comm::run_in_process(static_cast<int>(c.ranks()), [&](comm::Communicator& world) {
        runtime::TrainOptions options;
        options.overwrite = !resume;
        options.resume = resume;
        options.threads = 1;
        options.spin = false;
        options.stop = &stop;
        options.observers = [&](std::int64_t, std::int64_t) { return std::make_unique<StopAt>(losses, stop_at, stop); };
        const auto result = runtime::train(world, plan, *data, storage::real_file_system(), options);
        if (world.rank() != 0) return;
        last = result.last_step;
        CHECK((result.optimistic_updates > 0) == !more.empty());
      });
      return last;
    };
    const std::string directory =
        (std::filesystem::temp_directory_path() / ("trainer-optimistic-" + std::to_string(getpid()))).string();
    std::vector<double> plain_losses, losses;
    train("", directory + "-plain", 0, false, plain_losses);
    const std::int64_t last = train(";" + kOptimistic, directory, 8, false, losses);
    CHECK(last > 8);  // the next step was asked to stop
    CHECK(last < 12);
    CHECK(losses.size() == static_cast<std::size_t>(last));
    CHECK(train(";" + kOptimistic, directory, 0, true, losses) == 20);
    CHECK(losses == plain_losses);
    std::vector<std::string> passed_over;
    const auto expected = storage::find_checkpoint(storage::real_file_system(), directory + "-plain", passed_over);
    const auto found = storage::find_checkpoint(storage::real_file_system(), directory, passed_over);
    CHECK(passed_over.empty());
    for (const storage::TensorEntry& tensor : expected->tensors()) {
      CAPTURE(tensor.name);
      std::vector<float> a(static_cast<std::size_t>(tensor.shape.elements())), b(a.size());
      expected->read(tensor.name, whole(tensor.shape), a.data());
      found->read(tensor.name, whole(tensor.shape), b.data());
      CHECK(a == b);
    }
    std::filesystem::remove_all(directory);
    std::filesystem::remove_all(directory + "-plain");
  }
}
