// Work without arithmetic: values and gradients pass unchanged, and each half of the work takes its stated time asleep.
// Many ranks can so run on few cores as if each had its own, and a schedule's step can be held against its formula.
#include <sys/prctl.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>

#include "layers.hpp"
#include "trainer/core/error.hpp"
#include "trainer/ops/sleep.hpp"

namespace trainer::ops {

namespace {

using Clock = std::chrono::steady_clock;

// Before the deadline comes a nap of its own, and after it a look at the clock for the rest. A core that has been idle
// for milliseconds takes 100 µs and more to come back (a virtual one is given away by its host), one that has been idle
// for a fifth of one only about 30. Measured, 8 processes on 2 such cores, 10 ms: 120 µs late in one sleep, 40 with the
// nap, 5 with both. Ranks that outnumber cores must not spin: 30 µs of 10 ms are 0.3% of a core.
constexpr auto kNap = std::chrono::microseconds(200);
constexpr auto kWatch = std::chrono::microseconds(30);

void sleep_until(Clock::time_point when) {
  const auto since = std::chrono::duration_cast<std::chrono::nanoseconds>(when.time_since_epoch()).count();
  const timespec at{static_cast<time_t>(since / 1'000'000'000), static_cast<long>(since % 1'000'000'000)};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, nullptr) == EINTR) {
  }
}

// Linux lets the timers of a thread ring late, by up to 50 µs unless told otherwise, so that several ring at once.
class PunctualTimers {
 public:
  PunctualTimers() { prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0); }
  ~PunctualTimers() {
    if (before_ > 0) prctl(PR_SET_TIMERSLACK, static_cast<unsigned long>(before_), 0, 0, 0);
  }
  PunctualTimers(const PunctualTimers&) = delete;
  PunctualTimers& operator=(const PunctualTimers&) = delete;

 private:
  int before_ = prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);
};

// What a thread's last delay was late by, and when it came back. Arithmetic is not late as sleep is: a delay that
// follows at once, which no wait lies before, makes up for it.
struct Last {
  Clock::time_point back;
  Clock::duration late{0};
};
thread_local Last the_last;
constexpr auto kAtOnce = std::chrono::microseconds(100);
constexpr auto kMostMadeUp = std::chrono::microseconds(300);  // what a wake-up takes; more is a core that was away

// So many milliseconds from its making on, however much of them goes into copying.
class Deadline {
 public:
  explicit Deadline(double milliseconds) {
    const Clock::time_point now = Clock::now();
    const auto made_up = now - the_last.back < kAtOnce ? the_last.late : Clock::duration{0};
    at_ = now - made_up + std::chrono::nanoseconds(std::llround(milliseconds * 1e6));
  }

  void sleep() const {
    if (Clock::now() < at_) {
      const PunctualTimers punctual;
      for (const auto early : {kNap, kWatch}) {
        if (at_ - Clock::now() > early) sleep_until(at_ - early);
      }
    }
    Clock::time_point now = Clock::now();
    while (now < at_) now = Clock::now();
    the_last = {now, std::min<Clock::duration>(now - at_, kMostMadeUp)};
  }

 private:
  Clock::time_point at_;
};

class DelayOperator final : public Operator {
 public:
  DelayOperator(const model::Delay& layer, const Site& site) : layer_(layer), kernels_(site.kernels) {
    for (const double time : {layer.forward_ms, layer.backward_input_ms, layer.backward_weight_ms}) {
      if (!(time >= 0 && time <= 1e9)) internal_error("'" + site.name + "' has a delay outside [0, 1e9] ms");
    }
  }

  Needs needs(std::int64_t, int) const override { return {.has_weight = true, .always_backward_input = true}; }

  void forward(const ForwardCall& call) const override {
    const Deadline deadline(layer_.forward_ms);
    copy_or_add(call.pool, kernels_, call.x[0].data, call.y.data, call.y.elements(), false);
    deadline.sleep();
  }

  void backward_input(const BackwardInputCall& call) const override {
    const Deadline deadline(layer_.backward_input_ms);
    if (call.dx[0]) {
      copy_or_add(call.pool, kernels_, call.dy.data, call.dx[0].data, call.dy.elements(), call.accumulate[0]);
    }
    deadline.sleep();
  }

  void backward_weight(const BackwardWeightCall&) const override { Deadline(layer_.backward_weight_ms).sleep(); }

 private:
  model::Delay layer_;
  const Kernels& kernels_;
};

}  // namespace

void sleep_precisely(double milliseconds) { Deadline(milliseconds).sleep(); }

std::unique_ptr<Operator> make_delay(const model::Delay& layer, const Site& site) {
  return std::make_unique<DelayOperator>(layer, site);
}

}  // namespace trainer::ops
