// Attention at sizes around the tile, against a naive backward in double; shards of heads.
#include <doctest/doctest.h>

#include <cmath>

#include "reference.hpp"

using namespace trainer;
using namespace trainer::test;

namespace {

/// The gradient of naive attention, head by head, in double, with the sums of magnitudes that bound its float errors.
struct NaiveBackward {
  Values dx;
  Values magnitude;
};

NaiveBackward naive_backward(const Case& c, const model::Attention& l, const Operands& operands,
                             const ops::MicroBatch& batch) {
  const std::int64_t width = l.heads * l.head_size;
  const std::int64_t s = c.positions;
  const double scale = 1 / std::sqrt(static_cast<double>(l.head_size));
  NaiveBackward result{Values(operands.x[0].size()), Values(operands.x[0].size())};
  for (std::int64_t item = 0; item < batch.samples * l.heads; ++item) {
    const std::int64_t base = item / l.heads * s * 3 * width + item % l.heads * l.head_size;
    const std::int64_t out = item / l.heads * s * width + item % l.heads * l.head_size;
    const auto x = [&](std::int64_t row, std::int64_t part, std::int64_t d) {
      return static_cast<double>(operands.x[0][static_cast<std::size_t>(base + row * 3 * width + part * width + d)]);
    };
    const auto add = [&](std::int64_t row, std::int64_t part, std::int64_t d, double value, double magnitude) {
      const auto at = static_cast<std::size_t>(base + row * 3 * width + part * width + d);
      result.dx[at] += value;
      result.magnitude[at] += magnitude;
    };
    for (std::int64_t q = 0; q < s; ++q) {
      Values p(static_cast<std::size_t>(q + 1));
      Values dp(p.size());
      Values dp_magnitude(p.size());
      double most = -1e300;
      double sum = 0;
      for (std::int64_t k = 0; k <= q; ++k) {
        const auto i = static_cast<std::size_t>(k);
        for (std::int64_t d = 0; d < l.head_size; ++d) {
          const double g = operands.dy[static_cast<std::size_t>(out + q * width + d)];
          p[i] += x(q, 0, d) * x(k, 1, d) * scale;
          dp[i] += g * x(k, 2, d);
          dp_magnitude[i] += std::abs(g * x(k, 2, d));
        }
        most = std::max(most, p[i]);
      }
      for (double& e : p) sum += e = std::exp(e - most);
      double mean = 0;
      double mean_magnitude = 0;
      for (std::size_t i = 0; i < p.size(); ++i) {
        p[i] /= sum;
        mean += p[i] * dp[i];
        mean_magnitude += p[i] * dp_magnitude[i];
      }
      for (std::int64_t k = 0; k <= q; ++k) {
        const auto i = static_cast<std::size_t>(k);
        const double ds = p[i] * (dp[i] - mean) * scale;
        const double ds_magnitude = p[i] * (dp_magnitude[i] + mean_magnitude) * scale;
        for (std::int64_t d = 0; d < l.head_size; ++d) {
          const double g = operands.dy[static_cast<std::size_t>(out + q * width + d)];
          add(q, 0, d, ds * x(k, 1, d), ds_magnitude * std::abs(x(k, 1, d)));
          add(k, 1, d, ds * x(q, 0, d), ds_magnitude * std::abs(x(q, 0, d)));
          add(k, 2, d, p[i] * g, p[i] * std::abs(g));
        }
      }
    }
  }
  return result;
}

}  // namespace

TEST_CASE("attention agrees with the naive one around the size of a tile") {
  for (const std::int64_t positions : {1, 2, 63, 64, 65, 130}) {
    for (const std::int64_t head_size : {8, 64, 20}) {
      CAPTURE(positions);
      CAPTURE(head_size);
      const model::Attention layer{2, 0, 2, head_size, 0};
      const std::int64_t width = 2 * head_size;
      const Case c = make_case("attention", layer, positions, 3 * width, width, {}, 0);
      const ops::MicroBatch batch{.samples = 2, .positions = positions, .first_sample = 0, .seed = 1};
      const Operands operands = random_operands(c, batch.rows());
      const Results results = run(c, operands, batch, 2);

      // A score of d normals has |s| ≤ 6·√d·scale·√d at worst and an error of d·u times the sum of magnitudes (≈
      // d·0.64) times the scale; in an exponent that is a relative error of P. Sums over keys and values add their
      // lengths.
      const double score_error = static_cast<double>(head_size) * std::sqrt(static_cast<double>(head_size));
      const double k = 2 * score_error + 2 * static_cast<double>(positions + head_size) + 40;
      const Reference reference{c, operands.tokens, batch};
      const Values y = reference(flatten(c, operands));
      Values bounds(y.size());
      for (std::size_t i = 0; i < y.size(); ++i) bounds[i] = k * kUnitRoundoff * 4;  // |v| ≤ 4 for almost every weight
      CHECK(worst_error(results.y, y, bounds) <= 1);

      const NaiveBackward naive = naive_backward(c, layer, operands, batch);
      for (std::size_t i = 0; i < naive.dx.size(); ++i) {
        // 1e-10 where a single key leaves no gradient: dP - D is then rounding only, of a magnitude of d.
        const double rest = static_cast<double>(head_size) * kUnitRoundoff * 10;
        if (i == 0) bounds.clear();
        bounds.push_back(k * kUnitRoundoff * naive.magnitude[i] + (positions == 1 ? rest : 0) + 1e-10);
      }
      CHECK(worst_error(results.dx[0], naive.dx, bounds) <= 1);

      CHECK(same_bits(run(c, operands, batch, 1), results));
      CHECK(same_bits(run(c, operands, batch, 3), results));
    }
  }
}

TEST_CASE("attention in bfloat16 agrees with the naive one within its rounding") {
  constexpr double kUnit = 0x1p-9;  // of an operand rounded to 8 bits
  for (const std::int64_t positions : {1, 2, 63, 64, 65, 130, 800}) {
    for (const std::int64_t head_size : {8, 64, 5}) {
      CAPTURE(positions);
      CAPTURE(head_size);
      const model::Attention layer{2, 0, 2, head_size, 0};
      const std::int64_t width = 2 * head_size;
      const Case c = make_case("attention", layer, positions, 3 * width, width, {}, 0);
      const ops::MicroBatch batch{
          .samples = positions > 500 ? 1 : 2, .positions = positions, .first_sample = 0, .seed = 1};
      const Operands operands = random_operands(c, batch.rows());
      const Results results = run_bfloat16(c, operands, batch, 2);

      // Both operands of a score round: an error of 2u · Σ|q·k| · scale in the exponent, where Σ|q·k| ≤ 3/2 d for
      // normals. It counts twice, in P's numerator and its sum; then P and V round once more.
      const double probability = 6 * std::sqrt(static_cast<double>(head_size));
      const Reference reference{c, operands.tokens, batch};
      const Values y = reference(flatten(c, operands));
      Values bounds(y.size(), (probability + 2) * kUnit * 4);  // |v| ≤ 4 for almost every weight
      CHECK(worst_error(results.y, y, bounds) <= 1);

      // Of dS = P·(dP - D): P's error, two roundings of dP, and D's, which is the output's; then two more of dS·K.
      const NaiveBackward naive = naive_backward(c, layer, operands, batch);
      bounds.clear();
      for (const double magnitude : naive.magnitude) {
        bounds.push_back((2 * probability + 8) * kUnit * magnitude +
                         (positions == 1 ? 10 * static_cast<double>(head_size) * kUnit : 0) + 1e-10);
      }
      CHECK(worst_error(results.dx[0], naive.dx, bounds) <= 1);
      CHECK(worst_error(run(c, operands, batch).dx[0], naive.dx, bounds) <
            worst_error(results.dx[0], naive.dx, bounds));
    }
  }
}

TEST_CASE("a position sees no later one, and a shorter sample gives the same first rows") {
  const model::Attention layer{1, 0, 1, 8, 0};
  const Case c = make_case("attention", layer, 130, 24, 8, {}, 0);
  const ops::MicroBatch batch{.samples = 1, .positions = 130};
  Operands operands = random_operands(c, 130);
  const Results whole = run(c, operands, batch);

  Operands changed = operands;
  for (std::size_t i = 100 * 24; i < changed.x[0].size(); ++i) changed.x[0][i] += 3.0f;
  const Results other = run(c, changed, batch);
  CHECK(same_bits(Floats(other.y.begin(), other.y.begin() + 100 * 8),
                  Floats(whole.y.begin(), whole.y.begin() + 100 * 8)));

  Case shorter = c;
  shorter.positions = 70;
  shorter.table_positions = 130;
  operands.x[0].resize(70 * 24);
  operands.dy.resize(70 * 8);
  const Results part = run(shorter, operands, {.samples = 1, .positions = 70});
  CHECK(same_bits(part.y, Floats(whole.y.begin(), whole.y.begin() + 70 * 8)));
}

TEST_CASE("a shard of the heads gives its columns of the whole, with dropout too") {
  for (const double probability : {0.0, 0.25}) {
    const std::int64_t d = 20;
    const std::int64_t heads = 5;
    const Case whole =
        make_case("h.0.attn", model::Attention{heads, 0, heads, d, probability}, 70, 3 * heads * d, heads * d, {}, 0);
    const ops::MicroBatch batch{.samples = 2, .positions = 70, .first_sample = 8, .seed = 3};
    const Operands operands = random_operands(whole, batch.rows());
    const Results all = run(whole, operands, batch);
    for (const auto& part_of : {std::pair<std::int64_t, std::int64_t>{0, 2}, {2, 3}, {4, 1}}) {
      const std::int64_t begin = part_of.first;
      const std::int64_t count = part_of.second;
      const Case shard = make_case("h.0.attn", model::Attention{count, begin, heads, d, probability}, 70, 3 * count * d,
                                   count * d, {}, 0);
      Operands mine;
      Results expected;
      for (std::int64_t r = 0; r < batch.rows(); ++r) {
        const auto take = [&](Floats& to, const Floats& from, std::int64_t at) {
          to.insert(to.end(), from.begin() + at + begin * d, from.begin() + at + (begin + count) * d);
        };
        for (std::int64_t part = 0; part < 3; ++part) {
          take(mine.x[0], operands.x[0], (3 * r + part) * heads * d);
          take(expected.dx[0], all.dx[0], (3 * r + part) * heads * d);
        }
        take(mine.dy, operands.dy, r * heads * d);
        take(expected.y, all.y, r * heads * d);
      }
      CHECK(same_bits(run(shard, mine, batch), expected));
    }
  }
}

TEST_CASE("scores far from zero neither overflow nor lose the sum of one") {
  const Case c = make_case("attention", model::Attention{1, 0, 1, 4, 0}, 6, 12, 4, {}, 0);
  const ops::MicroBatch batch{.samples = 1, .positions = 6};
  Operands operands = random_operands(c, 6);
  for (std::int64_t r = 0; r < 6; ++r) {
    for (std::int64_t i = 0; i < 8; ++i) operands.x[0][static_cast<std::size_t>(r * 12 + i)] *= 1e9f;
    for (std::int64_t i = 8; i < 12; ++i) operands.x[0][static_cast<std::size_t>(r * 12 + i)] = 2.0f;
  }
  const Results results = run(c, operands, batch);
  for (const float y : results.y) CHECK(y == 2.0f);  // of equal values, any weights that sum to one give the value
}

TEST_CASE("without training attention has no dropout") {
  const Case with = make_case("a", model::Attention{1, 0, 1, 4, 0.5}, 6, 12, 4, {}, 0);
  const Case without = make_case("a", model::Attention{1, 0, 1, 4, 0}, 6, 12, 4, {}, 0);
  const Operands operands = random_operands(with, 6);
  const ops::MicroBatch evaluation{.samples = 1, .positions = 6, .training = false};
  CHECK(same_bits(run(with, operands, evaluation), run(without, operands, evaluation)));
  CHECK_FALSE(same_bits(run(with, operands, {.samples = 1, .positions = 6}).y, run(without, operands, evaluation).y));
}
