// The layer that takes time and computes nothing. (Its values and gradients: operators_test.cpp.)
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <thread>

#include "reference.hpp"

using namespace trainer;
using namespace trainer::test;

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kCalls = 30;

struct Spread {
  double least = 1e9, sum = 0;  // milliseconds
};

Spread time_of(const std::function<void()>& call) {
  Spread spread;
  for (int i = 0; i < kCalls; ++i) {
    const Clock::time_point begin = Clock::now();
    call();
    const double ms = std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
    spread.least = std::min(spread.least, ms);
    spread.sum += ms;
  }
  return spread;
}

// Calls in a row take their time together, by the clock that they go by: each makes up for what the one before was
// late, by 0.3 ms at most. Late: by what the kernel and other processes take, to which there is no bound, but not every
// time; the punctual one of thirty is late by less than Linux adds to timers that nobody made punctual (50 µs), or the
// layer does not do what it is for.
void check(const Spread& spread, double ms) {
  constexpr double kLate = 0.05;
  constexpr double kMadeUp = 0.3;
  CHECK(spread.sum >= kCalls * ms - kMadeUp);  // what the call before these was late by
  CHECK(spread.least >= ms - kMadeUp);
  CHECK(spread.least < ms + kLate);
}

}  // namespace

TEST_CASE("each half of a delay takes its own time, wanted or not") {
  const Case c = make_case("delay", model::Delay{21, 2, 3, 1}, 1, 21, 21, {}, 0);
  const auto op = ops::make_operator(c.node, 1);
  ThreadPool pool(1);
  const ops::MicroBatch batch{.samples = 2, .positions = 1};
  const Floats x = normals(1, "x", 42);
  Floats y(42, 0.0f), dx(42, 0.0f);

  ops::ForwardCall forward{.pool = pool, .batch = batch};
  forward.x[0] = {x.data(), 2, 21};
  forward.y = {y.data(), 2, 21};
  const Spread f = time_of([&] { op->forward(forward); });
  check(f, 2);
  CHECK(same_bits(y, x));

  ops::BackwardInputCall input{.pool = pool, .batch = batch};
  input.dy = {x.data(), 2, 21};
  CHECK(op->needs(2, 1).always_backward_input);
  const Spread unwanted = time_of([&] { op->backward_input(input); });
  check(unwanted, 3);
  input.dx[0] = {dx.data(), 2, 21};
  const Spread i = time_of([&] { op->backward_input(input); });
  check(i, 3);
  CHECK(same_bits(dx, x));

  CHECK(op->needs(2, 1).has_weight);
  const ops::BackwardWeightCall weight{.pool = pool, .batch = batch};
  const Spread w = time_of([&] { op->backward_weight(weight); });
  check(w, 1);
}

TEST_CASE("a delay behind a wait makes up for nothing") {
  const Case c = make_case("delay", model::Delay{21, 0, 0, 1}, 1, 21, 21, {}, 0);
  const auto op = ops::make_operator(c.node, 1);
  ThreadPool pool(1);
  const ops::BackwardWeightCall weight{.pool = pool, .batch = {.samples = 1}};
  for (int i = 0; i < 5; ++i) {
    op->backward_weight(weight);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const Clock::time_point begin = Clock::now();
    op->backward_weight(weight);
    CHECK(Clock::now() - begin >= std::chrono::milliseconds(1));
  }
}

TEST_CASE("a delay of nothing does not sleep") {
  const Case c = make_case("delay", model::Delay{21, 0, 0, 0}, 1, 21, 21, {}, 0);
  const auto op = ops::make_operator(c.node, 1);
  ThreadPool pool(1);
  const ops::BackwardWeightCall weight{.pool = pool, .batch = {.samples = 1}};
  CHECK(time_of([&] { op->backward_weight(weight); }).least < 0.01);  // any sleep takes longer to come back from
}
