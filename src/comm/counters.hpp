// Counters in memory that several ranks address, a cache line each, at the beginning of a part. Private to comm.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "trainer/core/tensor.hpp"

namespace trainer::comm {

static_assert(std::atomic_ref<std::uint64_t>::is_always_lock_free, "counters are shared between processes");

inline std::size_t counter_bytes(int channels) { return static_cast<std::size_t>(channels) * Buffer::kAlignment; }

inline std::uint64_t* counter_of(std::byte* part, int channel) {
  return reinterpret_cast<std::uint64_t*>(part + counter_bytes(channel));
}

inline void raise(std::uint64_t* counter, std::uint64_t value) {
  std::atomic_ref<std::uint64_t>(*counter).store(value, std::memory_order_release);
}

inline bool is_at(std::uint64_t* counter, std::uint64_t value) {
  return std::atomic_ref<std::uint64_t>(*counter).load(std::memory_order_acquire) >= value;
}

}  // namespace trainer::comm
