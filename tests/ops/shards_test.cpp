// What sharding and tables promise beyond the cases of operators_test.cpp: masks by global feature, tables by token.
#include <doctest/doctest.h>

#include <utility>

#include "reference.hpp"

using namespace trainer;
using namespace trainer::test;

TEST_CASE("features of a sharded dropout get the mask of the whole") {
  const std::int64_t features = 150;
  const Case whole = make_case("h.1.drop", model::Dropout{features, 0, features, 0.3}, 4, features, features, {}, 0);
  const ops::MicroBatch batch{.samples = 3, .positions = 4, .first_sample = 1000, .seed = 2};
  const Operands operands = random_operands(whole, batch.rows());
  const Results all = run(whole, operands, batch);
  for (const auto& range : {std::pair<std::int64_t, std::int64_t>{0, 75}, {75, 75}, {1, 3}, {60, 90}}) {
    const auto begin = range.first;
    const auto count = range.second;
    const Case shard = make_case("h.1.drop", model::Dropout{count, begin, features, 0.3}, 4, count, count, {}, 0);
    Operands mine;
    Results expected;
    for (std::int64_t r = 0; r < batch.rows(); ++r) {
      const auto take = [&](Floats& to, const Floats& from) {
        to.insert(to.end(), from.begin() + r * features + begin, from.begin() + r * features + begin + count);
      };
      take(mine.x[0], operands.x[0]);
      take(mine.dy, operands.dy);
      take(expected.y, all.y);
      take(expected.dx[0], all.dx[0]);
    }
    CHECK(same_bits(run(shard, mine, batch), expected));
  }
}

TEST_CASE("dropout masks differ by node, seed, sample and position, and forward's is backward's") {
  const std::int64_t features = 200;
  const auto masks = [&](const std::string& name, std::uint64_t seed, std::uint64_t first_sample) {
    const Case c = make_case(name, model::Dropout{features, 0, features, 0.5}, 2, features, features, {}, 0);
    Operands operands;
    operands.x[0] = Floats(4 * features, 1.0f);
    operands.dy = operands.x[0];
    const Results results =
        run(c, operands, {.samples = 2, .positions = 2, .first_sample = first_sample, .seed = seed});
    CHECK(same_bits(results.y, results.dx[0]));
    return results.y;
  };
  const Floats base = masks("a", 1, 0);
  CHECK_FALSE(same_bits(masks("b", 1, 0), base));
  CHECK_FALSE(same_bits(masks("a", 2, 0), base));
  CHECK_FALSE(same_bits(masks("a", 1, 7), base));
  const auto row = [&](std::int64_t r) {
    return Floats(base.begin() + r * features, base.begin() + (r + 1) * features);
  };
  CHECK_FALSE(same_bits(row(0), row(1)));  // position
  CHECK_FALSE(same_bits(row(0), row(2)));  // sample
}

TEST_CASE("without training dropout is the identity") {
  const Case c = make_case("d", model::Dropout{7, 0, 7, 0.5}, 1, 7, 7, {}, 0);
  const Operands operands = random_operands(c, 3);
  const Results results = run(c, operands, {.samples = 3, .training = false});
  CHECK(same_bits(results.y, operands.x[0]));
  CHECK(same_bits(results.dx[0], operands.dy));
}

TEST_CASE("shards of a table sum to the whole, and tokens of nobody give zero rows and no gradient") {
  const std::int64_t features = 70;
  const std::int64_t rows = 40;
  const Case whole = make_case("wte", model::Embedding{11, 0, features}, 1, 0, features, {11 * features}, 0);
  Operands operands = random_operands(whole, rows);
  operands.tokens[3] = -1;
  operands.tokens[4] = 11;
  operands.tokens[5] = -2147483647;
  operands.tokens[6] = 2147483647;
  const ops::MicroBatch batch{.samples = rows};
  const Results all = run(whole, operands, batch);
  for (std::size_t r = 3; r <= 6; ++r) {
    for (std::size_t f = 0; f < features; ++f) CHECK(all.y[r * features + f] == 0.0f);
  }
  Floats sum(all.y.size(), 0.0f);
  Floats gradient;
  for (const auto& range : {std::pair<std::int64_t, std::int64_t>{0, 5}, {5, 6}}) {
    const auto begin = range.first;
    const auto count = range.second;
    const Case shard =
        make_case("wte", model::Embedding{count, begin, features}, 1, 0, features, {count * features}, 0);
    Operands mine = operands;
    mine.parameters[0] = Floats(operands.parameters[0].begin() + begin * features,
                                operands.parameters[0].begin() + (begin + count) * features);
    const Results part = run(shard, mine, batch, 2);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += part.y[i];
    gradient.insert(gradient.end(), part.gradients[0].begin(), part.gradients[0].end());
  }
  CHECK(sum == all.y);
  CHECK(same_bits(gradient, all.gradients[0]));
}

TEST_CASE("a table's gradient is one chain over ascending rows") {
  const std::int64_t features = 3;
  const Case c = make_case("wte", model::Embedding{2, 0, features}, 1, 0, features, {2 * features}, 0);
  Operands operands = random_operands(c, 900);
  for (std::size_t r = 0; r < 900; ++r) operands.tokens[r] = static_cast<std::int32_t>(r % 3 == 0);
  const Results results = run(c, operands, {.samples = 900}, 3);
  Floats expected(2 * features, 0.0f);
  for (std::size_t r = 0; r < 900; ++r) {
    for (std::size_t f = 0; f < features; ++f) {
      expected[static_cast<std::size_t>(operands.tokens[r]) * features + f] += operands.dy[r * features + f];
    }
  }
  CHECK(same_bits(results.gradients[0], expected));
}

TEST_CASE("positions beyond a short sample get a zero gradient, or keep what they had") {
  Case c = make_case("wpe", model::PositionEmbedding{5, 4}, 3, 4, 4, {5 * 4}, 0);
  c.table_positions = 5;
  const Operands operands = random_operands(c, 6);
  const ops::MicroBatch batch{.samples = 2, .positions = 3};
  const Results fresh = run(c, operands, batch);
  for (std::size_t i = 3 * 4; i < 5 * 4; ++i) CHECK(fresh.gradients[0][i] == 0.0f);
  Results before = fresh;
  before.gradients[0].assign(20, 0.5f);
  const Results more = run(c, operands, batch, 1, ops::best_kernels(), &before);
  for (std::size_t i = 3 * 4; i < 5 * 4; ++i) CHECK(more.gradients[0][i] == 0.5f);
}

TEST_CASE("a linear layer with long sums keeps its bits over threads, and its bias gradient is in blocks of rows") {
  const model::Linear layer{400, 130, true, true};
  const Case c = make_case("l", layer, 1, 400, 130, {130 * 400, 130}, 0);
  const Operands operands = random_operands(c, 900);
  const ops::MicroBatch batch{.samples = 900};
  const Results results = run(c, operands, batch);
  CHECK(same_bits(run(c, operands, batch, 2), results));
  CHECK(same_bits(run(c, operands, batch, 3), results));
  for (const auto& range : {std::pair<std::size_t, std::size_t>{0, 0}, {899, 129}, {450, 64}}) {
    const auto r = range.first;
    const auto o = range.second;
    double y = operands.parameters[1][o];
    double magnitude = std::abs(y);
    for (std::size_t i = 0; i < 400; ++i) {
      const double term = static_cast<double>(operands.x[0][r * 400 + i]) * operands.parameters[0][o * 400 + i];
      y += term;
      magnitude += std::abs(term);
    }
    CHECK(std::abs(results.y[r * 130 + o] - y) <= 403 * kUnitRoundoff * magnitude);
  }
  double bias = 0;
  for (std::size_t r = 0; r < 900; ++r) bias += static_cast<double>(operands.dy[r * 130 + 7]);
  CHECK(std::abs(results.gradients[1][7] - bias) <= 387 * kUnitRoundoff * 900 * 6);
}
