// What every operator promises, case by case: values, gradients, and bits.
#include <doctest/doctest.h>

#include "reference.hpp"

using namespace trainer;
using namespace trainer::test;

namespace {

ops::MicroBatch batch_of(const Case& c, std::int64_t samples, std::uint64_t first_sample = 40) {
  return {.samples = samples, .positions = c.positions, .first_sample = first_sample, .seed = 9, .training = true};
}

/// Rows [begin, begin + rows) of the operands.
Operands slice(const Case& c, const Operands& whole, std::int64_t begin, std::int64_t rows) {
  Operands part = whole;
  const auto cut = [&](Floats& values, std::int64_t features) {
    if (values.empty()) return;
    values = Floats(values.begin() + begin * features, values.begin() + (begin + rows) * features);
  };
  for (Floats& x : part.x) cut(x, c.in);
  cut(part.dy, c.out);
  if (!part.tokens.empty()) {
    part.tokens = {whole.tokens.begin() + begin, whole.tokens.begin() + begin + rows};
  }
  return part;
}

}  // namespace

TEST_CASE("forward and both backwards agree with central differences of a naive forward in double") {
  for (const Case& c : all_cases()) {
    CAPTURE(c.node.name);
    const ops::MicroBatch batch = batch_of(c, 2);
    const Operands operands = random_operands(c, batch.rows());
    const Reference reference{c, operands.tokens, batch};
    const Values at = flatten(c, operands);
    const auto jacobian = central_differences(reference, at);
    const Results results = run(c, operands, batch);

    const Values y = reference(at);
    Values bounds = forward_bounds(jacobian, at, y, c.roundings);
    for (double& bound : bounds) bound += 1e-12;  // where y is exactly 0
    CHECK(worst_error(results.y, y, bounds) <= 1);

    const Gradient gradient = gradient_of(jacobian, operands.dy, c.roundings);
    const auto part = [](const Values& all, std::int64_t begin, std::size_t n) {
      return Values(all.begin() + begin, all.begin() + begin + static_cast<std::ptrdiff_t>(n));
    };
    const Flat flat{c, batch.rows()};
    for (int i = 0; i < c.inputs; ++i) {
      const std::size_t n = results.dx[i].size();
      CHECK(n == static_cast<std::size_t>(batch.rows() * c.in));
      CHECK(worst_error(results.dx[i], part(gradient.value, flat.input(i), n),
                        part(gradient.bounds, flat.input(i), n)) <= 1);
    }
    CHECK(results.gradients.size() == c.parameters.size());
    for (std::size_t p = 0; p < results.gradients.size(); ++p) {
      CAPTURE(p);
      const std::size_t n = results.gradients[p].size();
      Values value = part(gradient.value, flat.parameter(p), n);
      Values bound = part(gradient.bounds, flat.parameter(p), n);
      if (c.node.name == "linear, bias elsewhere" && p == 1) {  // a gradient for a bias that another rank adds
        std::fill(value.begin(), value.end(), 0.0);
        for (std::size_t i = 0; i < operands.dy.size(); ++i) value[i % n] += static_cast<double>(operands.dy[i]);
        std::fill(bound.begin(), bound.end(), 20 * kUnitRoundoff * static_cast<double>(batch.rows()) * 4);
      }
      CHECK(worst_error(results.gradients[p], value, bound) <= 1);
    }
  }
}

TEST_CASE("bits depend neither on the run nor on threads nor on the instruction set") {
  for (const Case& c : all_cases()) {
    CAPTURE(c.node.name);
    for (const std::int64_t samples : {3, 700}) {  // 700: many chunks, several blocks of rows
      if (samples > 100 && c.in * c.out > 400) continue;
      const ops::MicroBatch batch = batch_of(c, samples);
      const Operands operands = random_operands(c, batch.rows());
      const Results once = run(c, operands, batch);
      CHECK(same_bits(run(c, operands, batch), once));
      CHECK(same_bits(run(c, operands, batch, 2), once));
      CHECK(same_bits(run(c, operands, batch, 3), once));
      for (const auto set : {ops::InstructionSet::Portable, ops::InstructionSet::Avx2}) {
        const ops::Kernels* kernels = ops::kernels_of(set);
        if (kernels != nullptr) CHECK(same_bits(run(c, operands, batch, 1, *kernels), once));
      }
    }
  }
}

TEST_CASE("rows come out the same bits in any cut into micro-batches") {
  for (const Case& c : all_cases()) {
    CAPTURE(c.node.name);
    const ops::MicroBatch batch = batch_of(c, 5);
    const Operands operands = random_operands(c, batch.rows());
    const Results whole = run(c, operands, batch);
    std::int64_t sample = 0;
    for (const std::int64_t samples : {2, 3}) {
      const ops::MicroBatch piece = batch_of(c, samples, batch.first_sample + static_cast<std::uint64_t>(sample));
      const std::int64_t begin = sample * c.positions;
      const Operands sliced = slice(c, operands, begin, piece.rows());
      const Results part = run(c, sliced, piece);
      const auto rows_of = [&](const Floats& values, std::int64_t features) {
        return Floats(values.begin() + begin * features, values.begin() + (begin + piece.rows()) * features);
      };
      CHECK(same_bits(part.y, rows_of(whole.y, c.out)));
      for (int i = 0; i < c.inputs && c.in > 0; ++i) CHECK(same_bits(part.dx[i], rows_of(whole.dx[i], c.in)));
      sample += samples;
    }
  }
}

TEST_CASE("accumulating a second micro-batch adds its gradients to the first's") {
  for (const Case& c : all_cases()) {
    CAPTURE(c.node.name);
    const ops::MicroBatch batch = batch_of(c, 2);
    const Operands first = random_operands(c, batch.rows(), 1);
    const Operands second = random_operands(c, batch.rows(), 2);
    const Results one = run(c, first, batch);
    const Results two = run(c, second, batch);
    const Results both = run(c, second, batch, 1, ops::best_kernels(), &one);
    // Embedding continues its chain and attention adds tile by tile; the others add a finished sum: one rounding.
    const bool exact = !std::holds_alternative<model::Embedding>(c.node.op);
    const auto adds_up = [&](const Floats& sum, const Floats& a, const Floats& b) {
      REQUIRE(sum.size() == a.size());
      for (std::size_t i = 0; i < sum.size(); ++i) {
        // A chain of at most 6 additions of normals, each |·| < 6.
        const float bound = exact ? 0.0f : 6 * 36 * static_cast<float>(kUnitRoundoff);
        if (!(std::abs(sum[i] - (a[i] + b[i])) <= bound)) return false;
      }
      return true;
    };
    for (int i = 0; i < 2; ++i) CHECK(adds_up(both.dx[i], one.dx[i], two.dx[i]));
    for (std::size_t p = 0; p < both.gradients.size(); ++p) {
      CHECK(adds_up(both.gradients[p], one.gradients[p], two.gradients[p]));
    }
  }
}

TEST_CASE("an operator with two inputs or none wanted leaves the unwanted alone") {
  const Case c = make_case("add", model::Add{9}, 1, 9, 9, {}, 4);
  const auto op = ops::make_operator(c.node, 1);
  ThreadPool pool(1);
  Floats dy = normals(1, "dy", 9);
  Floats dx(9, 0.0f);
  ops::BackwardInputCall call{.pool = pool, .batch = batch_of(c, 1)};
  call.dy = {dy.data(), 1, 9};
  call.dx[1] = {dx.data(), 1, 9};
  op->backward_input(call);
  CHECK(same_bits(dx, dy));
}
