// One-step-delayed gradients against a serial simulation of delayed SGD, in layouts, saved and resumed.
#include <doctest/doctest.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <mutex>

#include "support/compression_cases.hpp"
#include "support/equivalence.hpp"
#include "trainer/core/error.hpp"
#include "trainer/optim/optimizer.hpp"
#include "trainer/storage/checkpoint.hpp"

using namespace trainer;
using test::Case;
using test::case_of;

namespace {

const std::string kDelayed = "parallel.delayed_gradients=true";
constexpr std::int64_t kSteps = 9;

struct Told {
  std::vector<double> losses, norms, rates;
  std::vector<std::vector<float>> weights;  // [rank]
  bool operator==(const Told&) const = default;
};

std::vector<float> weights_of(runtime::Worker& worker) {
  float* const begin = worker.parameters().weights();
  return {begin, begin + worker.parameters().layout().weight_elements};
}

struct Made {
  runtime::RunPlan plan;
  std::shared_ptr<const storage::Dataset> data;
  explicit Made(const Case& c) : plan(test::plan_of(c)) {
    data = storage::load_dataset(plan.config.data, runtime::model_input(plan.graph), plan.config.training.seed);
  }
};

void tell(comm::Communicator& world, const runtime::StepOutcome& outcome, Told& told) {
  if (world.rank() > 0) return;
  told.losses.push_back(outcome.loss);
  told.norms.push_back(outcome.grad_norm);
  told.rates.push_back(outcome.learning_rate);
}

Told delayed(const Case& c, bool faulty = false) {
  const Made made(c);
  Told told;
  told.weights.resize(static_cast<std::size_t>(c.ranks()));
  comm::run_in_process(
      static_cast<int>(c.ranks()),
      [&](comm::Communicator& plain) {
        const auto late = faulty ? comm::make_faulty(plain, 3, 300e-6) : nullptr;
        comm::Communicator& world = faulty ? *late : plain;
        ThreadPool pool(1, false);
        runtime::Worker worker(world, made.plan, *made.data, pool, true);
        worker.initialise();
        for (std::int64_t step = 1; step <= kSteps; ++step) tell(world, worker.step(step, false), told);
        worker.finish_exchange();
        told.weights[static_cast<std::size_t>(world.rank())] = weights_of(worker);
      },
      faulty ? comm::SendMode::Rendezvous : comm::SendMode::Eager);
  return told;
}

// w(t) = w(t - 1) - update(t - 1, g(t - 1)), where a plain worker computes g(t) at w(t - 1), and nothing else of it is
// used.
Told simulated(Case c) {
  c.extra += (c.extra.empty() ? "" : ";") + std::string("parallel.all_reduce.algorithm=direct");  // no shared memory
  const Made made(c);
  const config::Config& config = made.plan.config;
  Told told;
  told.weights.resize(static_cast<std::size_t>(c.ranks()));
  comm::run_in_process(static_cast<int>(c.ranks()), [&](comm::Communicator& world) {
    ThreadPool pool(1, false);
    runtime::Worker worker(world, made.plan, *made.data, pool, true);
    worker.initialise();
    const auto optimizer = optim::make_optimizer(config.optimizer);
    const runtime::ParameterLayout& layout = worker.parameters().layout();
    std::vector<std::vector<float>> states(static_cast<std::size_t>(optimizer->state_count()),
                                           std::vector<float>(layout.weight_elements));
    std::vector<float> gradients(layout.gradient_elements);
    double norm = 0;
    for (std::int64_t step = 1; step <= kSteps; ++step) {
      const std::vector<float> weights = weights_of(worker);
      runtime::StepOutcome outcome = worker.step(step, false);
      const double norm_of_step = outcome.grad_norm;
      const double rate = step > 1 ? optim::learning_rate(config.optimizer, step - 1, worker.total_steps()) : 0;
      std::copy(weights.begin(), weights.end(), worker.parameters().weights());
      std::vector<optim::Segment> segments;
      for (const runtime::HeldParameter& held : layout.held) {
        optim::Segment segment;
        segment.weight = worker.parameters().weights() + held.weight;
        segment.gradient = gradients.data() + held.gradients.front();
        for (std::size_t s = 0; s < states.size(); ++s) segment.state[s] = states[s].data() + held.weight;
        segment.count = held.elements;
        segment.decay = held.decay;
        segments.push_back(segment);
      }
      if (step > 1) {
        optimizer->update(pool, segments, step - 1, rate, optim::clip_scale(norm, config.training.gradient_clip));
      }
      outcome.grad_norm = norm;
      outcome.learning_rate = rate;
      tell(world, outcome, told);
      norm = norm_of_step;
      const float* computed = worker.parameters().gradients();
      std::copy_n(computed, gradients.size(), gradients.begin());
    }
    told.weights[static_cast<std::size_t>(world.rank())] = weights_of(worker);
  });
  return told;
}

struct Folder {
  std::string path;
  explicit Folder(const std::string& name)
      : path((std::filesystem::temp_directory_path() / ("trainer-delayed-" + name + std::to_string(getpid())))
                 .string()) {}
  ~Folder() { std::filesystem::remove_all(path); }
};

struct Heard {
  std::vector<double> losses;
  std::vector<std::string> notes, warnings;
};

// Stops when rank 0 hears of step `stop_at` (0: never); returns the last step.
std::int64_t train_in(const Folder& folder, const Case& c, std::int64_t stop_at, bool resume, Heard& heard) {
  const auto config = config::parse(test::model_json(c.model), "test", test::overrides(c, folder.path));
  const runtime::RunPlan plan = runtime::make_plan(config, c.ranks());
  const auto data =
      storage::load_dataset(plan.config.data, runtime::model_input(plan.graph), plan.config.training.seed);
  struct StopAt final : Observer {
    Heard& heard;
    std::atomic<bool>& stop;
    std::int64_t at;
    StopAt(Heard& h, std::atomic<bool>& s, std::int64_t a) : heard(h), stop(s), at(a) {}
    void step(const StepReport& report) override {
      heard.losses.push_back(report.loss);
      if (report.step == at) stop = true;
    }
    void note(std::string_view text) override { heard.notes.emplace_back(text); }
    void warning(std::string_view text) override { heard.warnings.emplace_back(text); }
  };
  std::atomic<bool> stop{false};
  std::int64_t last = 0;
  comm::run_in_process(static_cast<int>(c.ranks()), [&](comm::Communicator& world) {
    runtime::TrainOptions options;
    options.overwrite = !resume;
    options.resume = resume;
    options.spin = false;
    options.stop = &stop;
    options.observers = [&](std::int64_t, std::int64_t) { return std::make_unique<StopAt>(heard, stop, stop_at); };
    const auto result = runtime::train(world, plan, *data, storage::real_file_system(), options);
    if (world.rank() == 0) last = result.last_step;
  });
  return last;
}

std::map<std::string, std::vector<float>> tensors_in(const Folder& folder) {
  std::vector<std::string> passed_over;
  const auto checkpoint = storage::find_checkpoint(storage::real_file_system(), folder.path, passed_over);
  std::map<std::string, std::vector<float>> tensors;
  for (const storage::TensorEntry& tensor : checkpoint->tensors()) {
    auto& values = tensors[tensor.name];
    values.resize(static_cast<std::size_t>(tensor.shape.elements()));
    checkpoint->read(tensor.name, whole(tensor.shape), values.data());
  }
  return tensors;
}

Case with(Case c, const std::string& more) {
  c.extra += (c.extra.empty() ? "" : ";") + more;
  return c;
}

}  // namespace

TEST_CASE("delayed gradients are delayed SGD, as a serial simulation has it, bit for bit") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  for (const auto& [model, data, pipeline, tensor] : {std::tuple{"mlp", 1, 1, 1},
                                                      {"mlp", 3, 1, 1},
                                                      {"gpt tied", 2, 2, 1},
                                                      {"gpt dropout", 1, 2, 1},
                                                      {"sequential", 2, 1, 2}}) {
    const Case plain =
        case_of(model, data, pipeline, tensor, "parallel.all_reduce.bucket_elements=400;training.gradient_clip=0.2");
    CAPTURE(plain.name());
    const Told expected = simulated(plain);
    const Told told = delayed(with(plain, kDelayed));
    CHECK(told == expected);
    CHECK(told.norms[0] == 0);
    CHECK(told.norms[1] > 0.2);  // so that it was clipped
    CHECK(told.losses.back() < told.losses.front());
  }
}

TEST_CASE("delays of messages, buckets, cuts, schedules and threads change no bit of delayed gradients") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  const Case c = case_of("gpt tied", 2, 1, 1, kDelayed);
  const Told one = delayed(c);
  const auto same_course = [&](const Told& other) {
    return one.losses == other.losses && one.norms == other.norms && one.rates == other.rates;
  };
  CHECK(delayed(with(c, "parallel.all_reduce.bucket_elements=100"), true) == one);
  CHECK(delayed(with(c, "parallel.all_reduce.algorithm=ring")) == one);
  Case cut = case_of("gpt tied", 2, 2, 1, kDelayed);
  cut.schedule = "zb-h1";
  CHECK(same_course(delayed(cut, true)));
  CHECK_FALSE(same_course(delayed(case_of("gpt tied", 2, 1, 1, ""))));
}

TEST_CASE("a delayed run that was interrupted and resumed has the bits of one that was not, saves in between too") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  for (const auto& [model, data, pipeline, tensor] :
       {std::tuple{"gpt tied", 2, 2, 1}, {"gpt untied", 2, 1, 2}, {"mlp", 1, 2, 1}}) {
    const Case c = case_of(model, data, pipeline, tensor, kDelayed);
    CAPTURE(c.name());
    const Folder whole("whole"), cut("cut"), saved("saved");
    Heard expected, heard, often;
    CHECK(train_in(whole, c, 0, false, expected) == 20);
    CHECK(train_in(cut, c, 8, false, heard) < 12);
    CHECK(train_in(cut, c, 0, true, heard) == 20);
    CHECK(train_in(saved, with(c, "checkpoint.every_steps=3"), 0, false, often) == 20);
    CHECK(heard.losses == expected.losses);
    CHECK(often.losses == expected.losses);
    const auto tensors = tensors_in(whole);
    CHECK(tensors_in(cut) == tensors);
    CHECK(tensors_in(saved) == tensors);
    std::size_t pending = 0, weights = 0;
    for (const auto& [name, values] : tensors) {
      pending += name.starts_with("optimizer.delayed_gradient.") ? 1 : 0;
      weights += name.starts_with("optimizer.") ? 0 : 1;
    }
    CHECK(pending == weights);
    REQUIRE(!expected.notes.empty());
    CHECK(expected.notes[0].find("staleness 1") != std::string::npos);
  }
}

TEST_CASE(
    "a pending gradient goes on in another layout, and is dropped with a warning where gradients are not delayed") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  const Folder folder("layouts"), one("one");
  Heard first, there, here, last;
  const Case c = case_of("gpt tied", 2, 1, 1, kDelayed);
  CHECK(train_in(one, c, 0, false, there) == 20);
  CHECK(train_in(folder, c, 8, false, first) < 12);
  // The stage cut changes no bit, so the run goes on as if it had not been changed.
  CHECK(train_in(folder, with(case_of("gpt tied", 2, 2, 1, kDelayed), "training.steps=20"), 0, true, first) == 20);
  CHECK(first.losses == there.losses);
  CHECK(tensors_in(folder) == tensors_in(one));
  CHECK(train_in(folder, case_of("gpt tied", 2, 1, 1, "training.steps=22"), 0, true, last) == 22);
  REQUIRE(!last.warnings.empty());
  CHECK(last.warnings[0].find("the gradients of step 20") != std::string::npos);
  CHECK(tensors_in(folder).lower_bound("optimizer.delayed_gradient.")->first.find("delayed") == std::string::npos);
  CHECK(train_in(folder, with(c, "training.steps=24"), 0, true, here) == 24);
}

TEST_CASE("a delayed gradient that is not finite ends the run before it is applied") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  const Made made(case_of("mlp", 2, 1, 1, kDelayed + ";optimizer.learning_rate=1e30;training.gradient_clip=0"));
  std::mutex lock;
  std::vector<std::string> messages;
  comm::run_in_process(2, [&](comm::Communicator& world) {
    ThreadPool pool(1, false);
    runtime::Worker worker(world, made.plan, *made.data, pool, true);
    worker.initialise();
    try {
      for (std::int64_t step = 1; step <= 20; ++step) worker.step(step, false);
      FAIL("nothing diverged");
    } catch (const Error& error) {
      const std::lock_guard guard(lock);
      CHECK(error.code() == ExitCode::Diverged);
      messages.emplace_back(error.what());
    }
    world.barrier();
  });
  REQUIRE(messages.size() == 2);
  CHECK(messages[0] == messages[1]);
}

TEST_CASE("what does not go with delayed gradients is refused") {
  for (const std::string& more :
       {std::string("training.optimistic_step=true"), std::string("parallel.compression.type=top_k")}) {
    CAPTURE(more);
    CHECK_THROWS_AS(test::plan_of(case_of("mlp", 2, 1, 1, kDelayed + ";" + more)), Error);
  }
}
