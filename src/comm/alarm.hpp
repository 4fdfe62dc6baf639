// How a rank that raises a counter wakes the ranks of its node that sleep for it. Private to comm.
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>

namespace trainer::comm {

/// A counter that ranks of one node share and may sleep on: zero at the start, alone in its cache line. Linux sleeps on
/// words of 32 bits (futex), which are the counter's lower half.
struct alignas(64) Counter {
  std::uint64_t value;
  std::uint32_t sleepers;

  std::uint32_t* word() {
    return reinterpret_cast<std::uint32_t*>(&value) + (std::endian::native == std::endian::little ? 0 : 1);
  }
};
static_assert(sizeof(Counter) == 64);
static_assert(std::atomic_ref<std::uint64_t>::is_always_lock_free, "counters are shared between processes");

/// Sets the counter and wakes who sleeps on it. Whatever was written before is visible to who finds it there.
void raise(Counter& counter, std::uint64_t value);

/// Whether the counter is at `value`. When it is not, this thread's next sleep in a wait (comm::wait_until) ends as
/// soon as the counter changes. The last counter that was missed counts.
bool is_at(Counter& counter, std::uint64_t value);

/// Whether this thread has missed a counter since it last forgot.
bool alarm_is_set();
void forget_alarm();

/// Sleeps for `seconds`, or until the counter that was missed since forget_alarm() has changed. Allocates nothing.
void sleep_until_alarm(double seconds);

}  // namespace trainer::comm
