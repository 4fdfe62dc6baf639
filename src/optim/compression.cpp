// Sparse, sign and 8-bit forms of a gradient.
#include "trainer/optim/compression.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "trainer/core/error.hpp"
#include "trainer/core/random.hpp"

namespace trainer::optim {

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr std::uint32_t kInfinityBits = 0x7f800000u;

// |x| as an integer: the order of magnitudes, with infinity above all numbers and NaN above infinity.
std::uint32_t magnitude(float x) { return std::bit_cast<std::uint32_t>(x) & 0x7fffffffu; }

// The largest magnitude of all. Signed, as it has no sign bit and machines without newer instructions compare these.
std::uint32_t largest_magnitude(std::span<const float> values) {
  std::int32_t largest = 0;
  for (const float value : values) largest = std::max(largest, static_cast<std::int32_t>(magnitude(value)));
  return static_cast<std::uint32_t>(largest);
}

// The digit of the magnitude that `wanted` values reach, in a histogram of one digit: `wanted` becomes how many of
// those with exactly this digit are still needed.
std::uint32_t digit_of(const auto& histogram, std::int64_t& wanted) {
  for (std::size_t d = histogram.size(); d-- > 0;) {
    if (histogram[d] >= wanted) return static_cast<std::uint32_t>(d);
    wanted -= histogram[d];
  }
  internal_error("more elements are to be kept than there are");
}

}  // namespace

void add_error(std::span<float> values, std::span<const float> error) {
  for (std::size_t i = 0; i < values.size(); ++i) values[i] += error[i];
}

void keep_rest(std::span<const float> values, std::span<const std::uint32_t> sent, std::span<float> error) {
  std::copy(values.begin(), values.end(), error.begin());
  for (const std::uint32_t i : sent) error[i] = 0;
}

std::int64_t kept_elements(double ratio, std::int64_t count) {
  const auto kept = static_cast<std::int64_t>(std::ceil(ratio * static_cast<double>(count)));
  return std::min(count, std::max<std::int64_t>(1, kept));
}

void top_k(std::span<const float> values, std::span<std::uint32_t> indices) {
  if (indices.empty()) return;
  // 31 bits of magnitude as digits of 11, 11 and 9 bits, the highest first.
  std::array<std::int64_t, 2048> histogram;
  auto equal = static_cast<std::int64_t>(indices.size());  // wanted of those with `threshold` so far
  std::uint32_t threshold = 0, known = 0;
  for (const auto& [shift, bits] : {std::pair{20u, 11u}, {9u, 11u}, {0u, 9u}}) {
    histogram.fill(0);
    const std::uint32_t mask = (1u << bits) - 1;
    for (const float value : values) {
      const std::uint32_t m = magnitude(value);
      if ((m & known) == threshold) ++histogram[(m >> shift) & mask];
    }
    threshold |= digit_of(histogram, equal) << shift;
    known |= mask << shift;
  }
  std::size_t taken = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint32_t m = magnitude(values[i]);
    if (m < threshold || (m == threshold && equal-- <= 0)) continue;
    indices[taken++] = static_cast<std::uint32_t>(i);
  }
}

void random_k(std::uint64_t seed, std::string_view name, std::int64_t step, std::int64_t count,
              std::span<std::uint32_t> indices) {
  const std::uint64_t of_step = RandomStream(seed, name).bits(static_cast<std::uint64_t>(step));
  const RandomPermutation permutation(of_step, name, static_cast<std::uint64_t>(count));
  for (std::size_t j = 0; j < indices.size(); ++j) indices[j] = static_cast<std::uint32_t>(permutation(j));
}

void gather(std::span<const float> values, std::span<const std::uint32_t> indices, float scale, std::span<float> to) {
  for (std::size_t j = 0; j < indices.size(); ++j) to[j] = scale * values[indices[j]];
}

void spread_non_finite(std::span<const float> values, std::span<float> to) {
  if (largest_magnitude(values) >= kInfinityBits) std::fill(to.begin(), to.end(), kNaN);
}

void scatter(std::span<const std::uint32_t> indices, std::span<const float> values, bool accumulate,
             std::span<float> to) {
  for (std::size_t j = 0; j < indices.size(); ++j) {
    const std::uint32_t i = indices[j];
    if (i >= to.size()) internal_error("a sparse gradient names an element that is not there");
    to[i] = accumulate ? to[i] + values[j] : values[j];
  }
}

// ---- signs -------------------------------------------------------------------------------------------------------

std::size_t sign_bytes(std::int64_t count) { return sizeof(float) + static_cast<std::size_t>((count + 7) / 8); }

void encode_signs(std::span<const float> values, std::span<std::byte> wire) {
  double sum = 0;
  for (const float value : values) sum += std::abs(static_cast<double>(value));
  const auto mean = values.empty() ? 0.0f : static_cast<float>(sum / static_cast<double>(values.size()));
  std::memcpy(wire.data(), &mean, sizeof(float));
  std::byte* const bits = wire.data() + sizeof(float);
  for (std::size_t begin = 0; begin < values.size(); begin += 8) {
    const std::size_t end = std::min(values.size(), begin + 8);
    std::uint32_t byte = 0;
    for (std::size_t i = begin; i < end; ++i) byte |= (std::bit_cast<std::uint32_t>(values[i]) >> 31) << (i - begin);
    bits[begin / 8] = static_cast<std::byte>(byte);
  }
}

void majority(std::span<const std::byte* const> wires, std::span<float> to) {
  float scale = 0;
  for (const std::byte* wire : wires) {
    float mean = 0;
    std::memcpy(&mean, wire, sizeof(float));
    scale += mean;
  }
  const auto voters = static_cast<int>(wires.size());
  for (std::size_t begin = 0; begin < to.size(); begin += 8) {
    int negative[8] = {};
    for (const std::byte* wire : wires) {
      const auto byte = static_cast<std::uint32_t>(wire[sizeof(float) + begin / 8]);
      for (std::uint32_t b = 0; b < 8; ++b) negative[b] += static_cast<int>(byte >> b & 1u);
    }
    const std::size_t end = std::min(to.size(), begin + 8);
    for (std::size_t i = begin; i < end; ++i) {
      const int balance = voters - 2 * negative[i - begin];
      // 0 · scale keeps a scale that is not finite in sight.
      to[i] = scale * static_cast<float>((balance > 0) - (balance < 0));
    }
  }
}

// ---- 8-bit integers ----------------------------------------------------------------------------------------------

namespace {

// Added and taken away again, it leaves the nearest integer, of two the even one (below 2²²).
constexpr float kToEven = 0x1.8p23f;

void encode_block(std::span<const float> values, std::byte* wire) {
  const std::uint32_t largest = largest_magnitude(values);
  float scale = std::bit_cast<float>(largest) / 127.0f;
  if (largest >= kInfinityBits) {
    scale = kNaN;
  } else if (scale < std::numeric_limits<float>::min()) {
    scale = 0;
  }
  std::memcpy(wire, &scale, sizeof(float));
  // No quotient rounds beyond ±127, as the scale is a normal number.
  std::int8_t levels[kInt8Block] = {};
  for (std::size_t i = 0; i < values.size() && scale > 0; ++i) {
    levels[i] = static_cast<std::int8_t>(static_cast<int>((values[i] / scale + kToEven) - kToEven));
  }
  std::memcpy(wire + sizeof(float), levels, sizeof(levels));
}

}  // namespace

void encode_int8(std::span<const float> values, std::span<std::byte> wire) {
  constexpr auto kBlock = static_cast<std::size_t>(kInt8Block);
  std::byte* to = wire.data();
  for (std::size_t begin = 0; begin < values.size(); begin += kBlock, to += kInt8BlockBytes) {
    encode_block(values.subspan(begin, std::min(kBlock, values.size() - begin)), to);
  }
}

void decode_int8(std::span<const std::byte> wire, bool accumulate, std::span<float> to) {
  constexpr auto kBlock = static_cast<std::size_t>(kInt8Block);
  const std::byte* from = wire.data();
  for (std::size_t begin = 0; begin < to.size(); begin += kBlock, from += kInt8BlockBytes) {
    float scale = 0;
    std::memcpy(&scale, from, sizeof(float));
    const std::byte* const levels = from + sizeof(float);
    const std::size_t count = std::min(kBlock, to.size() - begin);
    for (std::size_t i = 0; i < count; ++i) {
      const float value = scale * static_cast<float>(static_cast<std::int8_t>(levels[i]));
      to[begin + i] = accumulate ? to[begin + i] + value : value;
    }
  }
}

}  // namespace trainer::optim
