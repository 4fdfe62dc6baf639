// Losses against a naive double, their gradients against central differences, and classes cut over ranks.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "reference.hpp"
#include "trainer/ops/loss.hpp"

using namespace trainer;
using namespace trainer::test;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Losses {
  Floats losses;
  Floats gradient;  // [rows, classes]
};

/// Cross-entropy with the classes cut at `cuts` over that many ranks, summed by hand as the runtime does.
Losses cross_entropy(ThreadPool& pool, const Floats& logits, const std::vector<std::int32_t>& targets,
                     std::vector<std::int64_t> cuts, float scale, bool keep = true) {
  const auto rows = static_cast<std::int64_t>(targets.size());
  const std::int64_t classes = static_cast<std::int64_t>(logits.size()) / rows;
  cuts.insert(cuts.begin(), 0);
  cuts.push_back(classes);
  std::vector<Floats> shards;
  Floats maximum(targets.size(), -kInfinity);
  for (std::size_t s = 0; s + 1 < cuts.size(); ++s) {
    Floats& shard = shards.emplace_back();
    for (std::int64_t r = 0; r < rows; ++r) {
      shard.insert(shard.end(), logits.begin() + r * classes + cuts[s], logits.begin() + r * classes + cuts[s + 1]);
    }
    Floats mine(targets.size(), kNan);
    ops::cross_entropy_max(pool, {shard.data(), rows, cuts[s + 1] - cuts[s]}, mine.data());
    for (std::size_t r = 0; r < mine.size(); ++r) {
      maximum[r] = std::isnan(mine[r]) || mine[r] > maximum[r] ? mine[r] : maximum[r];
    }
  }
  Floats sums(2 * targets.size());
  for (std::size_t s = 0; s < shards.size(); ++s) {
    Floats mine(sums.size(), kNan);
    ops::cross_entropy_sums(pool, {shards[s].data(), rows, cuts[s + 1] - cuts[s]}, maximum.data(), targets.data(),
                            cuts[s], keep, mine.data());
    for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += mine[i];
  }
  Losses result{Floats(targets.size(), kNan), Floats(logits.size())};
  for (std::size_t s = 0; s < shards.size(); ++s) {
    const std::int64_t width = cuts[s + 1] - cuts[s];
    ops::cross_entropy_finish(pool, {shards[s].data(), rows, width}, sums.data(), targets.data(), cuts[s], scale,
                              result.losses.data());
    for (std::int64_t r = 0; r < rows; ++r) {
      std::copy_n(shards[s].begin() + r * width, width, result.gradient.begin() + r * classes + cuts[s]);
    }
  }
  return result;
}

double naive_cross_entropy(const Values& logits, std::int32_t target) {
  if (target < 0) return 0;
  const double most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const double logit : logits) sum += std::exp(logit - most);
  return std::log(sum) + most - logits[static_cast<std::size_t>(target)];
}

Values row_of(const Floats& values, std::size_t row, std::size_t classes) {
  return {values.begin() + static_cast<std::ptrdiff_t>(row * classes),
          values.begin() + static_cast<std::ptrdiff_t>((row + 1) * classes)};
}

}  // namespace

TEST_CASE("cross-entropy and its gradient agree with double and with central differences") {
  ThreadPool pool(2, false);
  const std::size_t classes = 45;
  const std::vector<std::int32_t> targets{0, 44, -1, 17};
  const Floats logits = normals(1, "logits", static_cast<std::int64_t>(classes * targets.size()));
  const float scale = 0.125f;
  const Losses result = cross_entropy(pool, logits, targets, {}, scale);
  for (std::size_t r = 0; r < targets.size(); ++r) {
    CAPTURE(r);
    const auto loss = [&](const Values& v) { return Values{naive_cross_entropy(v, targets[r])}; };
    const Values row = row_of(logits, r, classes);
    // The difference from the maximum is rounded (|·| < 10), an exponential is good to 2 ulp, a lane adds 2 terms, the
    // tree 5; then logarithm and subtraction of numbers below 10.
    CHECK(std::abs(result.losses[r] - loss(row)[0]) <= (10 + 4 + 7 + 20) * kUnitRoundoff);
    const auto jacobian = central_differences(loss, row);
    for (std::size_t i = 0; i < classes; ++i) {
      // Relative 10 + 4 + 7 + 3 of the probability (at most 1), and the subtraction at the target.
      CHECK(std::abs(result.gradient[r * classes + i] - scale * jacobian[i][0]) <= scale * (25 * kUnitRoundoff + 1e-9));
    }
  }
  for (std::size_t i = 0; i < classes; ++i) CHECK(result.gradient[2 * classes + i] == 0.0f);
}

TEST_CASE("classes cut unevenly over two or three ranks give the whole loss") {
  ThreadPool pool(1);
  const std::int64_t classes = 103;
  const std::vector<std::int32_t> targets{0, 102, 50, -1, 49, 7};
  const auto rows = static_cast<std::int64_t>(targets.size());
  const Floats logits = normals(2, "logits", classes * rows);
  const Losses whole = cross_entropy(pool, logits, targets, {}, 0.5f);
  for (const auto& cuts : std::vector<std::vector<std::int64_t>>{{50}, {1}, {7, 90}, {34, 68}}) {
    const Losses cut = cross_entropy(pool, logits, targets, cuts, 0.5f);
    for (std::size_t r = 0; r < targets.size(); ++r) {
      // Only the sum of exponentials is added in another order: (103 / 32 + 6) roundings and two more a side.
      CHECK(std::abs(cut.losses[r] - whole.losses[r]) <= 2 * (12 + 10) * kUnitRoundoff);
    }
    for (std::size_t i = 0; i < logits.size(); ++i) {
      CHECK(std::abs(cut.gradient[i] - whole.gradient[i]) <= 0.5 * 2 * 16 * kUnitRoundoff);
    }
  }
}

TEST_CASE("cross-entropy of extreme logits is what it is in exact arithmetic") {
  ThreadPool pool(1);
  const auto loss_of = [&](const Floats& logits, std::int32_t target) {
    return cross_entropy(pool, logits, {target}, {}, 1.0f);
  };
  CHECK(loss_of({1e30f, -1e30f, 0.0f}, 0).losses[0] == 0.0f);
  CHECK(loss_of({1e30f, -1e30f, 0.0f}, 1).losses[0] == 2e30f);
  CHECK(loss_of({1e30f, -1e30f, 0.0f}, 1).gradient == Floats{1.0f, -1.0f, 0.0f});
  CHECK(loss_of({-1e30f, -1e30f}, 0).losses[0] == static_cast<float>(std::log(2.0)));
  for (const float value : {0.0f, 1e30f, -1e30f, 3.0f}) {
    CHECK(loss_of(Floats(64, value), 5).losses[0] == static_cast<float>(std::log(64.0)));
  }
  for (std::size_t at = 0; at < 3; ++at) {
    Floats logits{1.0f, 2.0f, 3.0f};
    logits[at] = kNan;
    CHECK(std::isnan(loss_of(logits, 0).losses[0]));
    CHECK(std::isnan(cross_entropy(pool, logits, {0}, {1}, 0.0f).losses[0]));  // also from another rank's classes
  }
}

TEST_CASE("losses have the same bits on any threads, and alone as with gradients") {
  ThreadPool one(1);
  const std::int64_t classes = 301;
  std::vector<std::int32_t> targets;
  for (std::int32_t r = 0; r < 200; ++r) targets.push_back((r * 37) % 302 - 1);
  const Floats logits = normals(3, "logits", classes * 200);
  const Losses expected = cross_entropy(one, logits, targets, {100}, 0.01f);
  for (const int threads : {2, 3}) {
    ThreadPool pool(threads, false);
    const Losses result = cross_entropy(pool, logits, targets, {100}, 0.01f);
    CHECK(same_bits(result.losses, expected.losses));
    CHECK(same_bits(result.gradient, expected.gradient));
    CHECK(same_bits(cross_entropy(pool, logits, targets, {100}, 0.0f, false).losses, expected.losses));
  }
  // Without keeping exponentials and with scale 0 the logits stay.
  CHECK(same_bits(cross_entropy(one, logits, targets, {}, 0.0f, false).gradient, logits));
}

TEST_CASE("squared error and its gradient agree with double; rows that do not count are zero") {
  const std::int64_t features = 37;
  const std::vector<std::uint8_t> valid{1, 0, 1};
  const Floats p = normals(4, "p", 3 * features);
  const Floats t = normals(4, "t", 3 * features);
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads, false);
    for (const std::uint8_t* mask : {valid.data(), static_cast<const std::uint8_t*>(nullptr)}) {
      Floats gradient = p;
      Floats losses(3, kNan);
      ops::squared_error(pool, {gradient.data(), 3, features}, {t.data(), 3, features}, mask, 0.1f, losses.data());
      for (std::size_t r = 0; r < 3; ++r) {
        const bool counts = mask == nullptr || mask[r] != 0;
        const auto loss = [&](const Values& v) {
          double sum = 0;
          for (std::size_t i = 0; i < v.size(); ++i) {
            const double d = v[i] - static_cast<double>(t[r * v.size() + i]);
            sum += counts ? d * d : 0.0;
          }
          return Values{sum};
        };
        const Values row = row_of(p, r, static_cast<std::size_t>(features));
        // Two roundings of the difference squared, one of the product, two in the lane, five in the tree.
        CHECK(std::abs(losses[r] - loss(row)[0]) <= 10 * kUnitRoundoff * loss(row)[0]);
        const auto jacobian = central_differences(loss, row);
        for (std::size_t i = 0; i < row.size(); ++i) {
          const double exact = static_cast<double>(0.1f) * jacobian[i][0];
          CHECK(std::abs(gradient[r * row.size() + i] - exact) <= 3 * kUnitRoundoff * std::abs(exact) + 1e-8);
        }
      }
    }
  }
  ThreadPool pool(1);
  Floats kept = p;
  Floats losses(3);
  ops::squared_error(pool, {kept.data(), 3, features}, {t.data(), 3, features}, nullptr, 0.0f, losses.data());
  CHECK(same_bits(kept, p));
  kept[40] = kNan;
  ops::squared_error(pool, {kept.data(), 3, features}, {t.data(), 3, features}, nullptr, 0.1f, losses.data());
  CHECK(std::isnan(losses[1]));
}

TEST_CASE("the largest logit's first index wins") {
  ThreadPool pool(2, false);
  Floats logits(3 * 50, 0.0f);
  logits[20] = 2.0f;
  logits[33] = 2.0f;
  logits[50 + 49] = -0.5f;
  logits[100 + 7] = kNan;
  Floats best(3);
  std::vector<std::int32_t> best_class(3);
  ops::row_argmax(pool, {logits.data(), 3, 50}, 1000, best.data(), best_class.data());
  CHECK(best[0] == 2.0f);
  CHECK(best_class[0] == 1020);
  CHECK(best[1] == 0.0f);
  CHECK(best_class[1] == 1000);
  CHECK(std::isnan(best[2]));
  CHECK(best_class[2] >= 1000);
  CHECK(best_class[2] < 1050);
}

TEST_CASE("an ordered sum is one chain in double") {
  const Floats values = normals(5, "v", 1000);
  double expected = 0;
  for (const float v : values) expected += static_cast<double>(v);
  CHECK(ops::ordered_sum(values.data(), 1000) == expected);
  CHECK(ops::ordered_sum(values.data(), 0) == 0.0);
}
