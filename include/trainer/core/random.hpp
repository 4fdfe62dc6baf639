// Counter-based random numbers: a value is a function of (key, counter), never of who asks or when,
// so that no layout changes an initial weight, a dropout mask or the order of the data.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace trainer {

/// Philox 4×32 with 10 rounds (Salmon, Moraes, Dror, Shaw: Parallel random numbers, as easy as 1, 2, 3; SC11).
std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key);

/// A stream of values addressed by a 64-bit index, keyed by a seed and a name.
class RandomStream {
 public:
  /// The same (seed, name) is the same stream on every machine.
  RandomStream(std::uint64_t seed, std::string_view name);

  std::uint64_t bits(std::uint64_t index, std::uint32_t plane = 0) const;
  /// Uniform in [0, 1), 24 bits.
  float uniform(std::uint64_t index, std::uint32_t plane = 0) const;
  /// Standard normal by Box–Muller in double, rounded to float.
  float normal(std::uint64_t index) const;

  std::array<std::uint32_t, 2> key() const { return key_; }

 private:
  std::array<std::uint32_t, 2> key_;
};

/// A pseudo-random permutation of [0, n) evaluated one element at a time: a Feistel network over the next
/// even power of two, walked until it lands inside (Black, Rogaway: Ciphers with arbitrary finite domains).
class RandomPermutation {
 public:
  RandomPermutation(std::uint64_t seed, std::string_view name, std::uint64_t n);
  std::uint64_t operator()(std::uint64_t i) const;

 private:
  RandomStream stream_;
  std::uint64_t n_;
  std::uint32_t half_bits_;
};

}  // namespace trainer
