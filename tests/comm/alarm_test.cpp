// Sleeping on a counter that another rank raises.
#include "alarm.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <thread>

using namespace trainer;

namespace {

// Longer than any wake-up takes, so that a sleep of this length is one that nobody ended.
constexpr double kLong = 0.9;

double seconds_of(const std::function<void()>& call) {
  const auto begin = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

TEST_CASE("who raises a counter wakes who sleeps on it, and nobody else does") {
  comm::Counter counter{}, other{};
  CHECK_FALSE(comm::is_at(counter, 1));
  CHECK(comm::alarm_is_set());
  CHECK(seconds_of([] { comm::sleep_until_alarm(0.02); }) >= 0.02);
  std::thread waker([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    comm::raise(other, 5);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    comm::raise(counter, 1);
  });
  const double slept = seconds_of([] { comm::sleep_until_alarm(kLong); });
  waker.join();
  CHECK(slept >= 0.03);  // the other counter did not wake it
  CHECK(slept < kLong);
  CHECK(counter.sleepers == 0);
  CHECK(comm::is_at(counter, 1));
}

TEST_CASE("a counter raised before the sleep ends it at once; without an alarm the sleep is whole") {
  comm::Counter counter{};
  CHECK_FALSE(comm::is_at(counter, 2));
  comm::raise(counter, 1);  // not what is awaited, but a reason to look again
  CHECK(seconds_of([] { comm::sleep_until_alarm(kLong); }) < kLong / 2);
  comm::forget_alarm();
  CHECK_FALSE(comm::alarm_is_set());
  CHECK(seconds_of([] { comm::sleep_until_alarm(0.05); }) >= 0.05);
}

TEST_CASE("two that wait for each other in turn lose no wake-up") {
  comm::Counter ping{}, pong{};
  double longest = 0;
  const auto await = [&longest](comm::Counter& counter, std::uint64_t value) {
    while (!comm::is_at(counter, value)) {
      longest = std::max(longest, seconds_of([] { comm::sleep_until_alarm(kLong); }));
    }
  };
  constexpr std::uint64_t kTurns = 5000;
  std::thread other([&] {
    for (std::uint64_t turn = 1; turn <= kTurns; ++turn) {
      while (!comm::is_at(ping, turn)) comm::sleep_until_alarm(kLong);
      comm::raise(pong, turn);
    }
  });
  for (std::uint64_t turn = 1; turn <= kTurns; ++turn) {
    comm::raise(ping, turn);
    await(pong, turn);
  }
  other.join();
  CHECK(longest < kLong);
}
