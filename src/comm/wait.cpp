// The one blocking wait of the program, and how politely it waits.
#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "alarm.hpp"
#include "trainer/comm/communicator.hpp"
#include "trainer/core/error.hpp"

namespace trainer::comm {

namespace {

using Clock = std::chrono::steady_clock;

constexpr double kSpinSeconds = 50e-6;
// A wait sleeps between polls. A yielding wait soon: sched_yield chooses among the tasks of one scheduling
// group only, and under Linux's autogroups each session is a group; mpiexec of MPICH gives every rank a session of its
// own, so that a yielding rank keeps its core for a whole time slice (3.8 ms a hop between two ranks on one core,
// against 0.07 ms by sleeping). A spinning wait sleeps only when it is surely idle (rank 0 saves, evaluates or starts
// up).
constexpr double kSleepAfterSpinning = 0.1;
// Sleeps are a share of the time waited so far, so that they add no more than that to any wait. A yielding wait begins
// to sleep `after` so many seconds.
struct Sleep {
  double after, share, shortest, longest;
};
constexpr Sleep kBetweenPolls{30e-6, 1.0 / 16, 20e-6, 1e-3};
// What is awaited in shared memory ends them at once (alarm.hpp); they end by themselves only for other traffic's sake.
constexpr Sleep kWithAlarm{5e-6, 1.0 / 4, 100e-6, 1e-3};

WaitPolicy& policy() {
  static WaitPolicy the_policy;
  return the_policy;
}

// In-process ranks are threads.
std::function<void()>& progress_of_thread() {
  thread_local std::function<void()> progress;
  return progress;
}

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

void give_core_away(double waited, bool yielding) {
  const Sleep sleep = alarm_is_set() ? kWithAlarm : kBetweenPolls;
  if (waited < (yielding ? sleep.after : kSleepAfterSpinning)) {
    sched_yield();
    return;
  }
  sleep_until_alarm(std::clamp(waited * sleep.share, sleep.shortest, sleep.longest));
}

[[noreturn]] void throw_hang(const WaitTag& tag, double waited) {
  std::string what = tag.what;
  if (tag.detail >= 0) what += fmt::format(" {}", tag.detail);
  if (tag.peer >= 0) what += fmt::format(" (with rank {})", tag.peer);
  throw Error(ExitCode::Hang,
              fmt::format("waited {:.1f} seconds for {} and gave up: the ranks wait for each other, or one of them has "
                          "died or is much slower than the limit for waits allows.",
                          waited, what));
}

}  // namespace

void set_wait_policy(WaitPolicy new_policy) { policy() = std::move(new_policy); }

const WaitPolicy& wait_policy() { return policy(); }

WaitProgress::WaitProgress(std::function<void()> progress) { progress_of_thread() = std::move(progress); }

WaitProgress::~WaitProgress() { progress_of_thread() = nullptr; }

double wait_until(const std::function<bool()>& done, const WaitTag& tag) {
  if (done()) return 0;
  const Clock::time_point begin = Clock::now();
  const WaitPolicy& how = policy();
  const std::function<void()>& progress = progress_of_thread();
  while (true) {
    forget_alarm();
    if (progress) progress();
    if (done()) return seconds_since(begin);
    const double waited = seconds_since(begin);
    if (how.hang_seconds > 0 && waited > how.hang_seconds) throw_hang(tag, waited);
    if (!how.yield && waited < kSpinSeconds) continue;
    if (how.progress) how.progress();
    give_core_away(waited, how.yield);
  }
}

}  // namespace trainer::comm
