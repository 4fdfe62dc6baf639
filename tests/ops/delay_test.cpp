// The layer that takes time and computes nothing. (Its values and gradients: operators_test.cpp.)
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <functional>

#include "reference.hpp"

using namespace trainer;
using namespace trainer::test;

namespace {

using Clock = std::chrono::steady_clock;

struct Spread {
  double least = 0, most = 0;  // milliseconds
};

Spread time_of(const std::function<void()>& call) {
  Spread spread{1e9, 0};
  for (int i = 0; i < 30; ++i) {
    const Clock::time_point begin = Clock::now();
    call();
    const double ms = std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
    spread = {std::min(spread.least, ms), std::max(spread.most, ms)};
  }
  return spread;
}

}  // namespace

// Never early, by the clock that it goes by. Late: by what the kernel and other processes take, to which there is no
// bound, but not every time; the punctual one of thirty is late by less than Linux adds to timers that nobody made
// punctual (50 µs), or the layer does not do what it is for.
TEST_CASE("each half of a delay takes its own time, wanted or not") {
  constexpr double kLate = 0.05;
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
  CHECK(f.least >= 2);
  CHECK(f.least < 2 + kLate);
  CHECK(same_bits(y, x));

  ops::BackwardInputCall input{.pool = pool, .batch = batch};
  input.dy = {x.data(), 2, 21};
  CHECK(op->needs(2, 1).always_backward_input);
  const Spread unwanted = time_of([&] { op->backward_input(input); });
  CHECK(unwanted.least >= 3);
  CHECK(unwanted.least < 3 + kLate);
  input.dx[0] = {dx.data(), 2, 21};
  const Spread i = time_of([&] { op->backward_input(input); });
  CHECK(i.least >= 3);
  CHECK(i.least < 3 + kLate);
  CHECK(same_bits(dx, x));

  CHECK(op->needs(2, 1).has_weight);
  const ops::BackwardWeightCall weight{.pool = pool, .batch = batch};
  const Spread w = time_of([&] { op->backward_weight(weight); });
  CHECK(w.least >= 1);
  CHECK(w.least < 1 + kLate);
}

TEST_CASE("a delay of nothing does not sleep") {
  const Case c = make_case("delay", model::Delay{21, 0, 0, 0}, 1, 21, 21, {}, 0);
  const auto op = ops::make_operator(c.node, 1);
  ThreadPool pool(1);
  const ops::BackwardWeightCall weight{.pool = pool, .batch = {.samples = 1}};
  CHECK(time_of([&] { op->backward_weight(weight); }).least < 0.01);  // any sleep takes longer to come back from
}
