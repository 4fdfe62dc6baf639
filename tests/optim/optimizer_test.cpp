// Optimizers against PyTorch, against a naive double reference with a derived bound, and the promises on bits.
#include <doctest/doctest.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <new>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "optim/dispatch.hpp"
#include "support/rounded.hpp"
#include "trainer/core/error.hpp"
#include "trainer/core/random.hpp"
#include "trainer/optim/optimizer.hpp"

namespace {

std::atomic<std::int64_t> allocations{0};

void* count_and_allocate(std::size_t bytes) {
  ++allocations;
  if (void* memory = std::malloc(bytes == 0 ? 1 : bytes)) return memory;
  throw std::bad_alloc();
}

}  // namespace

void* operator new(std::size_t bytes) { return count_and_allocate(bytes); }
void* operator new[](std::size_t bytes) { return count_and_allocate(bytes); }
// What std::stable_sort takes; a sanitizer's own would not go with the operator delete of here.
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return std::malloc(bytes); }
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept { return std::malloc(bytes); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }

namespace trainer::optim {
namespace {

using support::Rounded;
using Values = std::vector<float>;

config::Optimizer sgd_config(double momentum, bool nesterov, double weight_decay) {
  config::Optimizer c;
  c.type = config::OptimizerType::Sgd;
  c.momentum = momentum;
  c.nesterov = nesterov;
  c.weight_decay = weight_decay;
  return c;
}

config::Optimizer adamw_config(double weight_decay) {
  config::Optimizer c;
  c.type = config::OptimizerType::AdamW;
  c.weight_decay = weight_decay;
  return c;
}

const std::vector<config::Optimizer>& all_configs() {
  static const std::vector<config::Optimizer> configs = {sgd_config(0, false, 0),
                                                         sgd_config(0, false, 0.01),
                                                         sgd_config(0.9, false, 0.01),
                                                         sgd_config(0.9, true, 0.01),
                                                         sgd_config(0.9, true, 0.00),
                                                         adamw_config(0),
                                                         adamw_config(0.1)};
  return configs;
}

/// One element, as written in the PyTorch documentation of SGD and AdamW, in the kernels' order of operations.
struct Reference {
  Rounded weight;
  Rounded state[kMaxState] = {};

  void step(const config::Optimizer& c, double gradient, bool decay, std::int64_t t, double rate, float scale) {
    const Rounded g = Rounded::exact(scale) * Rounded::exact(gradient);
    if (c.type == config::OptimizerType::Sgd) {
      const Rounded decayed = decay ? g + Rounded::constant(c.weight_decay) * weight : g;
      const Rounded lr = Rounded::constant(rate);
      const Rounded mu = Rounded::constant(c.momentum);
      if (c.momentum == 0) {
        weight = weight - lr * decayed;
        return;
      }
      state[0] = mu * state[0] + decayed;
      weight = weight - lr * (c.nesterov ? decayed + mu * state[0] : state[0]);
      return;
    }
    const double n = static_cast<double>(t);
    state[0] = state[0] + Rounded::constant(1 - c.beta1) * (g - state[0]);
    state[1] = Rounded::constant(c.beta2) * state[1] + Rounded::constant(1 - c.beta2) * (g * g);
    const Rounded correction = Rounded::constant(std::sqrt(1 - std::pow(c.beta2, n)));
    const Rounded denominator = sqrt(state[1]) / correction + Rounded::constant(c.eps);
    const Rounded keep = decay ? Rounded::constant(1 - rate * c.weight_decay) : Rounded::exact(1);
    weight = keep * weight - Rounded::constant(rate / (1 - std::pow(c.beta1, n))) * (state[0] / denominator);
  }
};

Values random_values(std::size_t count, std::string_view name, float scale = 1) {
  const RandomStream stream(7, name);
  Values values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = stream.normal(i) * scale;
  return values;
}

/// Weights and state of one run, with the pieces that an optimizer is handed.
struct Problem {
  Values weight;
  Values state[kMaxState];

  explicit Problem(Values initial) : weight(std::move(initial)) {
    for (Values& s : state) s.assign(weight.size(), 0.0f);
  }
  Segment segment(std::size_t begin, std::size_t count, const Values& gradient, bool decay = true) {
    return {.weight = weight.data() + begin,
            .gradient = gradient.data() + begin,
            .state = {state[0].data() + begin, state[1].data() + begin},
            .count = static_cast<std::int64_t>(count),
            .decay = decay};
  }
};

/// Kept copies of the segments that are given them, for updates that may be taken back.
std::vector<Values> keep_before(std::vector<Segment>& segments, int states) {
  std::vector<Values> kept;
  for (Segment& segment : segments) {
    kept.emplace_back(static_cast<std::size_t>(segment.count * (1 + states)), -1.0f);
    segment.before = kept.back().data();
  }
  return kept;
}

config::Optimizer config_of(const nlohmann::json& the_case) {
  const nlohmann::json& options = the_case.at("options");
  config::Optimizer c;
  c.type = the_case.at("type") == "sgd" ? config::OptimizerType::Sgd : config::OptimizerType::AdamW;
  c.learning_rate = options.at("lr");
  c.weight_decay = options.value("weight_decay", 0.0);
  c.momentum = options.value("momentum", 0.0);
  c.nesterov = options.value("nesterov", false);
  if (options.contains("betas")) {
    c.beta1 = options["betas"][0];
    c.beta2 = options["betas"][1];
    c.eps = options["eps"];
  }
  return c;
}

// The reference is double and so is PyTorch's run: they differ by some hundred roundings of 2^-53 on values below 10.
constexpr double kDoubleSlack = 1e-12;

void compare(const nlohmann::json& torch, const Values& ours, const std::vector<Rounded>& reference) {
  REQUIRE(torch.size() == ours.size());
  for (std::size_t i = 0; i < ours.size(); ++i) {
    CAPTURE(i);
    const double expected = torch[i].get<double>();
    REQUIRE(std::abs(reference[i].value - expected) <= kDoubleSlack);
    REQUIRE(reference[i].error < 1e-4);  // a bound that says nothing would pass anything
    REQUIRE(std::abs(static_cast<double>(ours[i]) - expected) <= reference[i].error + kDoubleSlack);
  }
}

TEST_CASE("ten steps agree with PyTorch") {
  const nlohmann::json oracle = nlohmann::json::parse(std::ifstream(TRAINER_ORACLE_DIRECTORY "/optim.json"));
  const auto initial = oracle.at("initial").get<Values>();
  ThreadPool pool(1);
  for (const auto& item : oracle.at("cases").items()) {
    const std::string& name = item.key();
    const nlohmann::json& the_case = item.value();
    CAPTURE(name);
    const config::Optimizer c = config_of(the_case);
    const auto optimizer = make_optimizer(c);
    Problem problem(initial);
    std::vector<Reference> reference(initial.size());
    for (std::size_t i = 0; i < initial.size(); ++i) reference[i].weight = Rounded::exact(initial[i]);
    std::int64_t t = 0;
    for (const auto& row : oracle.at("gradients")) {
      const auto gradient = row.get<Values>();
      const Segment segment = problem.segment(0, initial.size(), gradient);
      optimizer->update(pool, {&segment, 1}, ++t, c.learning_rate, 1.0f);
      std::vector<Rounded> weights;
      for (std::size_t i = 0; i < initial.size(); ++i) {
        reference[i].step(c, gradient[i], true, t, c.learning_rate, 1.0f);
        weights.push_back(reference[i].weight);
      }
      if (the_case.at("weights").contains(std::to_string(t))) {
        compare(the_case.at("weights").at(std::to_string(t)), problem.weight, weights);
      }
    }
    REQUIRE(static_cast<int>(the_case.at("state").size()) == optimizer->state_count());
    for (int s = 0; s < optimizer->state_count(); ++s) {
      std::vector<Rounded> states;
      for (const Reference& r : reference) states.push_back(r.state[s]);
      compare(the_case.at("state").at(std::string(optimizer->state_name(s))), problem.state[s], states);
    }
  }
}

TEST_CASE("every instruction set stays within the bound of the double reference") {
  const std::size_t count = 1000;  // no multiple of a vector, so that tails run
  const Values initial = random_values(count, "weights", 0.1f);
  ThreadPool pool(1);
  for (const Kernels* kernels : runnable_kernels()) {
    CAPTURE(kernels->name);
    for (const config::Optimizer& c : all_configs()) {
      const auto optimizer = make_optimizer(c, *kernels);
      for (const bool decay : {true, false}) {
        Problem problem(initial);
        std::vector<Reference> reference(count);
        for (std::size_t i = 0; i < count; ++i) reference[i].weight = Rounded::exact(initial[i]);
        for (std::int64_t t = 1; t <= 5; ++t) {
          const Values gradient = random_values(count, "gradient" + std::to_string(t), 1e-3f);
          const double rate = 0.01 / static_cast<double>(t);
          const float scale = 0.37f;
          const Segment segment = problem.segment(0, count, gradient, decay);
          optimizer->update(pool, {&segment, 1}, t, rate, scale);
          for (std::size_t i = 0; i < count; ++i) reference[i].step(c, gradient[i], decay, t, rate, scale);
        }
        for (std::size_t i = 0; i < count; ++i) {
          CAPTURE(i);
          const Reference& r = reference[i];
          REQUIRE(r.weight.error < 1e-5);
          REQUIRE(std::abs(static_cast<double>(problem.weight[i]) - r.weight.value) <= r.weight.error);
          for (int s = 0; s < optimizer->state_count(); ++s) {
            REQUIRE(std::abs(static_cast<double>(problem.state[s][i]) - r.state[s].value) <= r.state[s].error);
          }
        }
      }
    }
  }
}

/// Five steps of 70,001 elements (several chunks), cut at `cuts`, with decay on the first half only.
Problem train(const config::Optimizer& c, const Kernels& kernels, int threads, const std::vector<std::size_t>& cuts) {
  const std::size_t count = 70001;
  static const Values initial = random_values(count, "initial");
  static const Values gradients[2] = {random_values(count, "g1"), random_values(count, "g2", 1e-4f)};
  Problem problem(initial);
  ThreadPool pool(threads, false);
  const auto optimizer = make_optimizer(c, kernels);
  for (std::int64_t t = 1; t <= 5; ++t) {
    const Values& gradient = gradients[t % 2];
    std::vector<Segment> segments;
    std::size_t begin = 0;
    std::vector<std::size_t> ends = cuts;
    ends.push_back(count);
    for (const std::size_t end : ends) {
      segments.push_back(problem.segment(begin, end - begin, gradient, begin < count / 2));
      begin = end;
    }
    optimizer->update(pool, segments, t, 0.003, 0.9f);
  }
  return problem;
}

TEST_CASE("bits depend neither on threads, nor on segments, nor on the instruction set") {
  const std::size_t half = 70001 / 2;
  std::vector<std::size_t> many;  // odd lengths, an empty segment, and pieces that straddle the chunks
  for (std::size_t at = 1; at < half; at += 977) many.push_back(at);
  many.push_back(half);
  many.push_back(half);
  for (std::size_t at = half + 20001; at < 70001; at += 20001) many.push_back(at);
  many.push_back(70001);
  for (const config::Optimizer& c : all_configs()) {
    const Problem expected = train(c, *runnable_kernels().back(), 1, {half});
    for (const Kernels* kernels : runnable_kernels()) {
      CAPTURE(kernels->name);
      for (int threads = 1; threads <= 3; ++threads) {
        CAPTURE(threads);
        for (const auto& cuts : {std::vector<std::size_t>{half}, many}) {
          const Problem got = train(c, *kernels, threads, cuts);
          REQUIRE((got.weight == expected.weight));
          REQUIRE((got.state[0] == expected.state[0]));
          REQUIRE((got.state[1] == expected.state[1]));
        }
      }
    }
  }
}

TEST_CASE("the first momentum is the gradient, bit for bit") {
  const auto optimizer = make_optimizer(sgd_config(0.9, false, 0));
  const Values gradient = random_values(100, "first");
  Problem problem(random_values(100, "w"));
  ThreadPool pool(1);
  const Segment segment = problem.segment(0, 100, gradient);
  optimizer->update(pool, {&segment, 1}, 1, 0.1, 1.0f);
  CHECK((problem.state[0] == gradient));
}

TEST_CASE("decay touches only segments that ask for it") {
  ThreadPool pool(1);
  const Values zero(8, 0.0f);
  for (const config::Optimizer& c : {sgd_config(0, false, 0.5), sgd_config(0.9, true, 0.5), adamw_config(0.5)}) {
    const auto optimizer = make_optimizer(c);
    Problem problem(Values(16, 2.0f));
    const Values gradient(16, 0.0f);
    const Segment segments[2] = {problem.segment(0, 8, gradient, true), problem.segment(8, 8, gradient, false)};
    optimizer->update(pool, segments, 1, 0.25, 1.0f);
    for (std::size_t i = 0; i < 8; ++i) {
      CHECK(problem.weight[i] < 2.0f);
      CHECK(problem.weight[8 + i] == 2.0f);
    }
  }
  // AdamW: exactly 1 - rate · decay of the weight, all numbers being powers of two.
  Problem problem(Values(8, 2.0f));
  const Segment segment = problem.segment(0, 8, zero);
  make_optimizer(adamw_config(0.5))->update(pool, {&segment, 1}, 1, 0.25, 1.0f);
  CHECK((problem.weight == Values(8, 2.0f * 0.875f)));
}

TEST_CASE("states are named as checkpoints name them") {
  CHECK(make_optimizer(sgd_config(0, false, 0))->state_count() == 0);
  CHECK(make_optimizer(sgd_config(0.5, false, 0))->state_count() == 1);
  CHECK(make_optimizer(sgd_config(0.5, false, 0))->state_name(0) == "momentum");
  const auto adamw = make_optimizer(adamw_config(0));
  CHECK(adamw->state_count() == 2);
  CHECK(adamw->state_name(0) == "exp_avg");
  CHECK(adamw->state_name(1) == "exp_avg_sq");
}

TEST_CASE("nesterov without momentum is refused") { CHECK_THROWS_AS(make_optimizer(sgd_config(0, true, 0)), Error); }

TEST_CASE("nothing to do, and a gradient that is not finite") {
  ThreadPool pool(2, false);
  const auto optimizer = make_optimizer(adamw_config(0.1));
  optimizer->update(pool, {}, 1, 0.1, 1.0f);
  Values gradient(40, 1.0f);
  gradient[37] = std::nanf("");
  Problem problem(Values(40, 1.0f));
  const Segment segments[2] = {{}, problem.segment(0, 40, gradient)};
  optimizer->update(pool, segments, 1, 0.1, 1.0f);
  for (std::size_t i = 0; i < 40; ++i) CHECK(std::isnan(problem.weight[i]) == (i == 37));
}

TEST_CASE("an update allocates nothing") {
  ThreadPool pool(2, false);
  const Values gradient(50000, 0.5f);
  Problem problem(Values(50000, 1.0f));
  const Segment segments[2] = {problem.segment(0, 20000, gradient), problem.segment(20000, 30000, gradient)};
  std::vector<double> scratch(static_cast<std::size_t>(norm_scratch(50000)));
  for (const config::Optimizer& c : all_configs()) {
    const auto optimizer = make_optimizer(c);
    const std::int64_t before = allocations;
    optimizer->update(pool, segments, 1, 0.1, 1.0f);
    sum_of_squares(pool, gradient, scratch.data());
    CHECK(allocations == before);
  }
}

}  // namespace

TEST_CASE("an update that keeps what was before gives the same bits, and can be taken back") {
  for (const config::Optimizer& c : all_configs()) {
    CAPTURE(static_cast<int>(c.type));
    const auto optimizer = make_optimizer(c);
    for (const int threads : {1, 3}) {
      ThreadPool pool(threads, false);
      constexpr std::size_t kCounts[] = {1, 70001, 13};  // more than a chunk
      const Values gradient = random_values(70015, "gradient");
      Problem plain(random_values(70015, "weight"));
      Problem kept = plain;
      const auto segments_of = [&](Problem& problem) {
        std::vector<Segment> segments;
        std::size_t begin = 0;
        for (const std::size_t count : kCounts) {
          segments.push_back(problem.segment(begin, count, gradient, begin != 0));
          begin += count;
        }
        return segments;
      };
      const std::vector<Segment> plainly = segments_of(plain);
      std::vector<Segment> keeping = segments_of(kept);
      const std::vector<Values> memory = keep_before(keeping, optimizer->state_count());
      for (std::int64_t step = 1; step <= 3; ++step) {
        const Problem before = kept;
        optimizer->update(pool, keeping, step, 0.01, 1.0f, true);
        CHECK(kept.weight != before.weight);
        optimizer->take_back(pool, keeping);
        CHECK(kept.weight == before.weight);
        for (int i = 0; i < kMaxState; ++i) CHECK(kept.state[i] == before.state[i]);
        optimizer->update(pool, keeping, step, 0.01, 0.5f, true);
        optimizer->update(pool, plainly, step, 0.01, 0.5f);
        CHECK(kept.weight == plain.weight);
        for (int i = 0; i < kMaxState; ++i) CHECK(kept.state[i] == plain.state[i]);
      }
    }
  }
}

}  // namespace trainer::optim
