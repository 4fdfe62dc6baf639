#include "trainer/core/random.hpp"

#include <cmath>
#include <numbers>

namespace trainer {

namespace {

// FNV-1a of the name, finished by the mixer of SplitMix64, with the seed in between.
std::uint64_t hash_key(std::uint64_t seed, std::string_view name) {
  std::uint64_t h = 0xcbf29ce484222325ull;
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  h += seed * 0x9e3779b97f4a7c15ull;
  h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9ull;
  h = (h ^ (h >> 27)) * 0x94d049bb133111ebull;
  return h ^ (h >> 31);
}

std::uint32_t low(std::uint64_t v) { return static_cast<std::uint32_t>(v); }
std::uint32_t high(std::uint64_t v) { return static_cast<std::uint32_t>(v >> 32); }

}  // namespace

std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * counter[0];
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * counter[2];
    counter = {high(p1) ^ counter[1] ^ key[0], low(p1), high(p0) ^ counter[3] ^ key[1], low(p0)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

RandomStream::RandomStream(std::uint64_t seed, std::string_view name) {
  const std::uint64_t h = hash_key(seed, name);
  key_ = {low(h), high(h)};
}

std::uint64_t RandomStream::bits(std::uint64_t index, std::uint32_t plane) const {
  const auto r = philox({low(index), high(index), plane, 0}, key_);
  return (std::uint64_t{r[1]} << 32) | r[0];
}

float RandomStream::uniform(std::uint64_t index, std::uint32_t plane) const {
  return static_cast<float>(bits(index, plane) >> 40) * 0x1p-24f;
}

float RandomStream::normal(std::uint64_t index) const {
  const auto r = philox({low(index), high(index), 0, 1}, key_);
  const double u = (static_cast<double>(r[0]) + 1.0) * 0x1p-32;  // (0, 1]
  const double v = static_cast<double>(r[1]) * 0x1p-32;
  return static_cast<float>(std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v));
}

RandomPermutation::RandomPermutation(std::uint64_t seed, std::string_view name, std::uint64_t n)
    : stream_(seed, name), n_(n), half_bits_(1) {
  while (half_bits_ < 31 && (std::uint64_t{1} << (2 * half_bits_)) < n) ++half_bits_;
}

std::uint64_t RandomPermutation::operator()(std::uint64_t i) const {
  const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
  std::uint64_t x = i;
  do {
    std::uint64_t left = x >> half_bits_;
    std::uint64_t right = x & mask;
    for (std::uint32_t round = 0; round < 6; ++round) {
      const std::uint64_t next = left ^ (stream_.bits(right, 1 + round) & mask);
      left = right;
      right = next;
    }
    x = (left << half_bits_) | right;
  } while (x >= n_);
  return x;
}

}  // namespace trainer
