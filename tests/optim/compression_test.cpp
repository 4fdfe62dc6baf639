// Compressors against their definitions, written out, with ==; bounds of those that round; and that nothing which is
// not finite disappears.
#include "trainer/optim/compression.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "trainer/core/random.hpp"

namespace trainer::optim {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
using Indices = std::vector<std::uint32_t>;

std::vector<float> random_values(std::size_t count, std::string_view name, int spread = 8) {
  const RandomStream stream(11, name);
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) {
    values[i] = stream.normal(i) * std::ldexp(1.0f, static_cast<int>(stream.bits(i, 7) % 32) * spread / 16 - spread);
  }
  return values;
}

/// Few different magnitudes, so that there are ties everywhere.
std::vector<float> tied_values(std::size_t count) {
  const RandomStream stream(5, "ties");
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i)
    values[i] = 0.25f * static_cast<float>(static_cast<int>(stream.bits(i) % 9) - 4);
  return values;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// By sorting: larger |x| first, of equal ones the lower index; then ascending indices.
Indices top_by_sorting(const std::vector<float>& values, std::size_t k) {
  Indices order(values.size());
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(),
                   [&](auto a, auto b) { return std::abs(values[a]) > std::abs(values[b]); });
  order.resize(k);
  std::sort(order.begin(), order.end());
  return order;
}

Indices top(const std::vector<float>& values, std::size_t k) {
  Indices indices(k, 99999u);
  top_k(values, indices);
  return indices;
}

}  // namespace

TEST_CASE("how many elements a ratio keeps") {
  CHECK(kept_elements(0.01, 1000) == 10);
  CHECK(kept_elements(0.01, 1001) == 11);
  CHECK(kept_elements(1e-9, 1000) == 1);
  CHECK(kept_elements(1.0, 1000) == 1000);
  CHECK(kept_elements(0.5, 0) == 0);
}

TEST_CASE("top-k takes what sorting takes, the lower index of equal magnitudes") {
  for (const std::size_t count : {1, 2, 31, 1000, 5003}) {
    for (const auto& values : {random_values(count, "values"), random_values(count, "wide", 120), tied_values(count),
                               std::vector<float>(count, 0.0f), std::vector<float>(count, -1.0f)}) {
      for (const std::size_t k : {std::size_t{0}, std::size_t{1}, count / 10, count / 2, count - 1, count}) {
        CAPTURE(count);
        CAPTURE(k);
        CHECK(top(values, k) == top_by_sorting(values, k));
      }
    }
  }
  std::vector<float> values{1.0f, -3.0f, kInfinity, kNaN, -kInfinity, 1e-42f, -kNaN, 0.0f};
  CHECK(top(values, 1).size() == 1);
  CHECK(std::isnan(values[top(values, 1)[0]]));
  CHECK(top(values, 4) == Indices{2, 3, 4, 6});
  CHECK(top(values, 7) == Indices{0, 1, 2, 3, 4, 5, 6});
}

TEST_CASE("error feedback loses nothing: S + e == a, and what was sent plus what is left is what there was") {
  constexpr std::size_t kCount = 3001;
  for (const double ratio : {0.001, 0.03, 0.5, 1.0}) {
    CAPTURE(ratio);
    Indices indices(static_cast<std::size_t>(kept_elements(ratio, kCount)));
    std::vector<float> error(kCount, 0.0f), kept(indices.size());
    std::vector<double> sent(kCount, 0.0), given(kCount, 0.0);
    for (std::uint64_t step = 0; step < 20; ++step) {
      // Multiples of 2^-10 below 2^6, so that all sums are exact and the identity is one of numbers, not of roundings.
      std::vector<float> a(kCount);
      const RandomStream stream(step, "exact");
      for (std::size_t i = 0; i < kCount; ++i) {
        a[i] = static_cast<float>(static_cast<int>(stream.bits(i) % 4096) - 2048) * 0x1p-10f;
        given[i] += static_cast<double>(a[i]);
      }
      add_error(a, error);
      if (step % 2 == 0) {
        top_k(a, indices);
      } else {
        random_k(3, "name", static_cast<std::int64_t>(step), kCount, indices);
      }
      gather(a, indices, 1.0f, kept);
      keep_rest(a, indices, error);
      std::vector<float> sum(kCount, 0.0f);
      scatter(indices, kept, false, sum);
      for (std::size_t i = 0; i < kCount; ++i) {
        sent[i] += static_cast<double>(sum[i]);
        sum[i] += error[i];
      }
      CHECK(sum == a);
      if (ratio == 1.0) CHECK(error == std::vector<float>(kCount, 0.0f));
    }
    std::vector<double> together(kCount);
    for (std::size_t i = 0; i < kCount; ++i) together[i] = sent[i] + static_cast<double>(error[i]);
    CHECK(together == given);
  }
}

TEST_CASE("random-k: distinct, of its step, everybody's turn comes") {
  constexpr std::int64_t kCount = 97;
  std::vector<int> taken(kCount, 0);
  Indices before;
  for (std::int64_t step = 1; step <= 400; ++step) {
    Indices indices(10);
    random_k(1, "h.0.weight", step, kCount, indices);
    CHECK(std::set<std::uint32_t>(indices.begin(), indices.end()).size() == indices.size());
    CHECK(indices != before);
    for (const std::uint32_t i : indices) ++taken[i];
    Indices again(10);
    random_k(1, "h.0.weight", step, kCount, again);
    CHECK(again == indices);
    random_k(1, "h.1.weight", step, kCount, again);
    CHECK(again != indices);
    before = indices;
  }
  // 41 expected each; the chance of fewer than 15 or more than 75 anywhere is below 1e-4.
  CHECK(*std::min_element(taken.begin(), taken.end()) >= 15);
  CHECK(*std::max_element(taken.begin(), taken.end()) <= 75);
  Indices all(kCount);
  random_k(1, "h.0.weight", 1, kCount, all);
  std::sort(all.begin(), all.end());
  for (std::uint32_t i = 0; i < kCount; ++i) CHECK(all[i] == i);
}

TEST_CASE("a value that is not finite is in what is sent, wherever it is") {
  for (const float bad : {kNaN, kInfinity, -kInfinity}) {
    std::vector<float> values = random_values(1000, "bad");
    values[777] = bad;
    std::vector<float> kept(1), out(1000);
    gather(values, Indices{5}, 2.0f, kept);
    CHECK(kept[0] == 2 * values[5]);
    spread_non_finite(values, kept);
    CHECK(std::isnan(kept[0]));
    std::vector<std::byte> wire(sign_bytes(1000));
    encode_signs(values, wire);
    const std::byte* const wires[] = {wire.data()};
    majority(wires, out);
    CHECK(std::none_of(out.begin(), out.end(), [](float x) { return std::isfinite(x); }));
    wire.resize(int8_bytes(1000));
    encode_int8(values, wire);
    decode_int8(wire, false, out);
    for (std::size_t i = 0; i < 1000; ++i) CHECK(std::isnan(out[i]) == (i / 256 == 777 / 256));
    const PowerShape shape{25, 40, 3};
    std::vector<float> p(75), q(120);
    first_factor(1, "q", shape, q);
    project(shape, values, q, p);
    orthonormalise(shape, p);
    project_back(shape, values, p, q);
    restore(shape, p, q, out);
    CHECK(std::isnan(out[777]));
  }
}

TEST_CASE("majority vote is the sign of the sum of signs, times the sum of mean magnitudes") {
  for (const std::size_t count : {1, 7, 8, 9, 1000}) {
    for (int replicas = 1; replicas <= 6; ++replicas) {
      std::vector<std::vector<float>> gradients;
      std::vector<std::vector<std::byte>> wires;
      std::vector<const std::byte*> pointers;
      float scale = 0;
      for (int r = 0; r < replicas; ++r) {
        gradients.push_back(random_values(count, "replica " + std::to_string(r)));
        gradients.back()[0] = r % 2 == 0 ? 0.0f : -0.0f;
        double sum = 0;
        for (const float g : gradients.back()) sum += std::abs(static_cast<double>(g));
        scale += static_cast<float>(sum / static_cast<double>(count));
        wires.emplace_back(sign_bytes(static_cast<std::int64_t>(count)));
        encode_signs(gradients.back(), wires.back());
      }
      for (const auto& wire : wires) pointers.push_back(wire.data());
      std::vector<float> result(count, kNaN), expected(count);
      majority(pointers, result);
      for (std::size_t i = 0; i < count; ++i) {
        int votes = 0;
        for (const auto& g : gradients) votes += std::signbit(g[i]) ? -1 : 1;
        expected[i] = scale * static_cast<float>(votes > 0 ? 1 : votes < 0 ? -1 : 0);
      }
      CHECK(result == expected);
    }
  }
  CHECK(sign_bytes(1) == 5);
  CHECK(sign_bytes(17) == 7);
}

TEST_CASE("8 bits: the error is at most half a step of the block's scale, and every level comes back") {
  for (const std::size_t count : {1, 255, 256, 257, 5000}) {
    for (const int spread : {1, 60}) {
      const std::vector<float> values = random_values(count, "int8", spread);
      std::vector<std::byte> wire(int8_bytes(static_cast<std::int64_t>(count)));
      encode_int8(values, wire);
      std::vector<float> decoded(count, kNaN);
      decode_int8(wire, false, decoded);
      for (std::size_t i = 0; i < count; ++i) {
        const std::size_t begin = i / 256 * 256, end = std::min(count, begin + 256);
        float largest = 0;
        for (std::size_t j = begin; j < end; ++j) largest = std::max(largest, std::abs(values[j]));
        const double scale = static_cast<double>(largest) / 127;
        const double difference = std::abs(static_cast<double>(values[i]) - static_cast<double>(decoded[i]));
        CHECK(difference <= (0.5 + 0x1p-15) * scale);
      }
      std::vector<float> twice = decoded;
      decode_int8(wire, true, twice);
      for (std::size_t i = 0; i < count; ++i) CHECK(twice[i] == 2 * decoded[i]);
    }
  }
  std::vector<float> levels(255);
  for (int level = -127; level <= 127; ++level)
    levels[static_cast<std::size_t>(level + 127)] = 0.375f * static_cast<float>(level);
  std::vector<std::byte> wire(int8_bytes(255));
  encode_int8(levels, wire);
  std::vector<float> decoded(255);
  decode_int8(wire, false, decoded);
  CHECK(decoded == levels);
  // Halves go to the even level; what no normal scale can say is 0.
  std::vector<float> halves{127.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f};
  encode_int8(halves, wire);
  decoded.resize(6);
  decode_int8(wire, false, decoded);
  CHECK(decoded == std::vector<float>{127, 0, 2, 2, 0, -2});
  encode_int8(std::vector<float>{1e-37f, -1e-40f}, wire);
  decoded.assign(2, kNaN);
  decode_int8(wire, false, decoded);
  CHECK(decoded == std::vector<float>{0, 0});
}

TEST_CASE("PowerSGD: orthonormal factors, full rank recovers the sum, a low-rank sum is found in one step") {
  for (const auto& sides : {std::pair<std::int64_t, std::int64_t>{5, 9}, {40, 23}, {64, 64}, {1, 17}, {33, 1}}) {
    const std::int64_t rows = sides.first, columns = sides.second;
    const std::int64_t full = std::min(rows, columns);
    for (const std::int64_t rank : {std::int64_t{1}, (full + 1) / 2, full}) {
      CAPTURE(rows);
      CAPTURE(columns);
      CAPTURE(rank);
      const PowerShape shape{rows, columns, rank};
      const auto elements = static_cast<std::size_t>(rows * columns);
      const std::vector<float> m = random_values(elements, "m", 1);
      std::vector<float> p(static_cast<std::size_t>(shape.p_elements())),
          q(static_cast<std::size_t>(shape.q_elements()));
      first_factor(7, "name", shape, q);
      project(shape, m, q, p);
      orthonormalise(shape, p);
      for (std::int64_t a = 0; a < rank; ++a) {
        for (std::int64_t b = 0; b <= a; ++b) {
          double sum = 0;
          for (std::int64_t i = 0; i < rows; ++i) {
            sum += static_cast<double>(p[static_cast<std::size_t>(a * rows + i)]) *
                   static_cast<double>(p[static_cast<std::size_t>(b * rows + i)]);
          }
          CHECK(std::abs(sum - (a == b ? 1.0 : 0.0)) < 1e-6);
        }
      }
      project_back(shape, m, p, q);
      std::vector<float> result(elements, kNaN);
      restore(shape, p, q, result);
      float largest = 0, worst = 0;
      for (std::size_t i = 0; i < elements; ++i) {
        largest = std::max(largest, std::abs(m[i]));
        worst = std::max(worst, std::abs(m[i] - result[i]));
      }
      if (rank == full) CHECK(worst <= 1e-5f * largest);
      if (rank < full) CHECK(worst > 1e-3f * largest);
      // What is left is no longer in P: Pᵀ (M − P Qᵀ) = 0, so a second look at the rest of M finds nothing along P.
      std::vector<float> rest(elements), along(q.size());
      keep_difference(m, result, 1.0f, rest);
      project_back(shape, rest, p, along);
      for (const float x : along) CHECK(std::abs(x) <= 1e-5f * largest * static_cast<float>(rows));
    }
  }
}

TEST_CASE("PowerSGD: columns that depend on others are replaced, tiny ones are not lost") {
  const PowerShape shape{6, 4, 4};
  const auto orthonormal = [&](const std::vector<float>& p) {
    double worst = 0;
    for (std::size_t a = 0; a < 4; ++a) {
      for (std::size_t b = 0; b < 4; ++b) {
        double sum = 0;
        for (std::size_t i = 0; i < 6; ++i)
          sum += static_cast<double>(p[a * 6 + i]) * static_cast<double>(p[b * 6 + i]);
        worst = std::max(worst, std::abs(sum - (a == b ? 1.0 : 0.0)));
      }
    }
    return worst < 1e-6;
  };
  std::vector<float> zeros(24, 0.0f);
  orthonormalise(shape, zeros);
  CHECK(orthonormal(zeros));
  std::vector<float> equal = random_values(24, "equal", 1);
  std::copy_n(equal.begin(), 6, equal.begin() + 6);
  for (std::size_t i = 0; i < 6; ++i) equal[18 + i] = equal[i] + equal[12 + i];
  orthonormalise(shape, equal);
  CHECK(orthonormal(equal));
  std::vector<float> tiny = random_values(24, "tiny", 1);
  std::vector<float> usual = tiny;
  for (float& x : tiny) x *= 0x1p-100f;
  orthonormalise(shape, tiny);
  orthonormalise(shape, usual);
  CHECK(orthonormal(tiny));
  CHECK(same_bits(tiny, usual));
}

TEST_CASE("scatter refuses an index that is outside") {
  std::vector<float> to(3);
  CHECK_THROWS(scatter(Indices{3}, std::vector<float>{1.0f}, true, to));
}

}  // namespace trainer::optim
