// Counters in memory that several ranks address, at the beginning of a part. Private to comm.
#pragma once

#include <cstddef>

#include "alarm.hpp"
#include "trainer/core/tensor.hpp"

namespace trainer::comm {

static_assert(sizeof(Counter) == Buffer::kAlignment);

inline std::size_t counter_bytes(int channels) { return static_cast<std::size_t>(channels) * sizeof(Counter); }

inline Counter& counter_of(std::byte* part, int channel) { return reinterpret_cast<Counter*>(part)[channel]; }

}  // namespace trainer::comm
