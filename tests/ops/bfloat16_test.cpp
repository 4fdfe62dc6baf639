// Operators whose products are bfloat16: which they are, how far from float32, and the same bits from every kernel.
#include <doctest/doctest.h>

#include <cmath>

#include "matmul_bf16.hpp"
#include "reference.hpp"

using namespace trainer;
using namespace trainer::test;

namespace {

bool multiplies(const Case& c) {
  return std::holds_alternative<model::Linear>(c.node.op) || std::holds_alternative<model::Attention>(c.node.op);
}

ops::MicroBatch some_samples(const Case& c, std::int64_t samples) {
  return {.samples = samples, .positions = c.positions, .first_sample = 5, .seed = 9};
}

Floats magnitudes(Floats values) {
  for (float& value : values) value = std::abs(value);
  return values;
}

/// |computed - float32| over what rounding both operands of every product to 8 bits permits, where `magnitude` is the
/// same sum of products of magnitudes; u = 2⁻⁹, and float32's own roundings are nothing beside it.
double worst_over_bound(const Floats& computed, const Floats& float32, const Floats& magnitude) {
  constexpr double kUnit = 0x1p-9;
  REQUIRE(computed.size() == float32.size());
  double worst = 0;
  for (std::size_t i = 0; i < computed.size(); ++i) {
    const double error = std::abs(static_cast<double>(computed[i]) - static_cast<double>(float32[i]));
    worst = std::max(worst, error / (2.01 * kUnit * static_cast<double>(magnitude[i]) + 1e-30));
  }
  return worst;
}

}  // namespace

TEST_CASE("linears and attention multiply in bfloat16, nothing else does") {
  for (const Case& c : all_cases()) {
    CAPTURE(c.node.name);
    const ops::MicroBatch batch = some_samples(c, 4);
    const Operands operands = random_operands(c, batch.rows());
    CHECK(same_bits(run_bfloat16(c, operands, batch), run(c, operands, batch)) == !multiplies(c));
  }
}

TEST_CASE("a linear's three products are float32's within the rounding of their operands; biases are float32's bits") {
  const Case c = make_case("linear", model::Linear{70, 45, true, true}, 3, 70, 45, {45 * 70, 45}, 0);
  const ops::MicroBatch batch = some_samples(c, 40);
  const Operands operands = random_operands(c, batch.rows());
  const Results float32 = run(c, operands, batch), bfloat16 = run_bfloat16(c, operands, batch);
  Operands positive = operands;
  positive.x[0] = magnitudes(operands.x[0]);
  positive.dy = magnitudes(operands.dy);
  for (Floats& parameter : positive.parameters) parameter = magnitudes(parameter);
  const Results bound = run(c, positive, batch);
  for (const auto& [computed, exact, magnitude] :
       {std::tuple{&bfloat16.y, &float32.y, &bound.y},
        {&bfloat16.dx[0], &float32.dx[0], &bound.dx[0]},
        {&bfloat16.gradients[0], &float32.gradients[0], &bound.gradients[0]}}) {
    const double worst = worst_over_bound(*computed, *exact, *magnitude);
    CHECK(worst <= 1);
    CHECK(worst > 1e-2);
  }
  CHECK(same_bits(bfloat16.gradients[1], float32.gradients[1]));
}

TEST_CASE("bfloat16: bits depend neither on the run nor on threads nor on what multiplies") {
  ops::flush_denormals();
  const ops::Isa widest = ops::isa_available(ops::Isa::Avx512) ? ops::Isa::Avx512
                          : ops::isa_available(ops::Isa::Avx2) ? ops::Isa::Avx2
                                                               : ops::Isa::Portable;
  std::vector<Case> cases = all_cases();
  cases.push_back(make_case("attention, long", model::Attention{2, 0, 2, 20, 0.1}, 130, 120, 40, {}, 0));
  for (const Case& c : cases) {
    if (!multiplies(c)) continue;
    CAPTURE(c.node.name);
    const ops::MicroBatch batch = some_samples(c, c.positions > 100 ? 2 : 60);
    const Operands operands = random_operands(c, batch.rows());
    const Results before = run(c, random_operands(c, batch.rows(), 2), batch);
    const Results once = run_bfloat16(c, operands, batch), twice = run_bfloat16(c, operands, batch, 1, &before);
    for (ops::Isa isa : {ops::Isa::Portable, ops::Isa::Avx2, ops::Isa::Avx512}) {
      if (!ops::isa_available(isa)) continue;
      for (bool instruction : {false, true}) {
        ops::set_bf16_kernel(isa, instruction);
        CAPTURE(ops::describe_matmul(ops::MatmulPrecision::BFloat16));
        for (int threads : {1, 2, 3}) {
          CHECK(same_bits(run_bfloat16(c, operands, batch, threads), once));
          CHECK(same_bits(run_bfloat16(c, operands, batch, threads, &before), twice));
        }
      }
    }
    ops::set_bf16_kernel(widest, true);
  }
}
