#include "alarm.hpp"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <climits>

namespace trainer::comm {

namespace {

struct Alarm {
  Counter* counter = nullptr;
  std::uint32_t seen = 0;  // of its lower half
};
thread_local Alarm the_alarm;

}  // namespace

// The waker writes the counter and then looks for sleepers; a sleeper says that it is one and then (in the kernel)
// looks at the counter. In one order of all four, which is what seq_cst is for, one of them sees the other.
void raise(Counter& counter, std::uint64_t value) {
  std::atomic_ref<std::uint64_t>(counter.value).store(value, std::memory_order_seq_cst);
  if (std::atomic_ref<std::uint32_t>(counter.sleepers).load(std::memory_order_seq_cst) == 0) return;
  syscall(SYS_futex, counter.word(), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

bool is_at(Counter& counter, std::uint64_t value) {
  const std::uint64_t now = std::atomic_ref<std::uint64_t>(counter.value).load(std::memory_order_acquire);
  if (now >= value) return true;
  the_alarm = {&counter, static_cast<std::uint32_t>(now)};
  return false;
}

bool alarm_is_set() { return the_alarm.counter != nullptr; }

void forget_alarm() { the_alarm = {}; }

void sleep_until_alarm(double seconds) {
  const timespec length{0, static_cast<long>(seconds * 1e9)};
  if (the_alarm.counter == nullptr) {
    nanosleep(&length, nullptr);
    return;
  }
  Counter& counter = *the_alarm.counter;
  const std::atomic_ref<std::uint32_t> sleepers(counter.sleepers);
  sleepers.fetch_add(1, std::memory_order_seq_cst);
  syscall(SYS_futex, counter.word(), FUTEX_WAIT, the_alarm.seen, &length, nullptr, 0);
  sleepers.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace trainer::comm
