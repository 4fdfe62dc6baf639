// The outer step against the formula written out in long double, and its special cases by ==.
#include <doctest/doctest.h>

#include <cfloat>
#include <cmath>
#include <vector>

#include "trainer/core/random.hpp"
#include "trainer/optim/outer_step.hpp"

namespace trainer::optim {
namespace {

using Values = std::vector<float>;

Values random_values(std::size_t count, const char* name, double scale) {
  const RandomStream random(7, name);
  Values values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<float>(scale) * random.normal(i);
  return values;
}

// The sum of `replicas` models near theta, in their order, as an all-reduce gives it.
Values sum_near(const Values& theta, int replicas, std::vector<Values>* terms = nullptr) {
  Values sum;
  for (int r = 0; r < replicas; ++r) {
    Values weights = random_values(theta.size(), ("replica " + std::to_string(r)).c_str(), 0.01);
    for (std::size_t i = 0; i < theta.size(); ++i) weights[i] += theta[i];
    if (sum.empty()) {
      sum = weights;
    } else {
      for (std::size_t i = 0; i < theta.size(); ++i) sum[i] += weights[i];
    }
    if (terms != nullptr) terms->push_back(weights);
  }
  return sum;
}

}  // namespace

TEST_CASE("an outer step is its formula, rounded once") {
  ThreadPool pool(2, false);
  for (const bool nesterov : {true, false}) {
    for (const double momentum : {0.9, 0.0}) {
      const OuterStep step{.learning_rate = 0.7, .momentum = momentum, .nesterov = nesterov};
      Values theta = random_values(40000, "theta", 0.3);
      Values u = momentum == 0 ? Values{} : random_values(theta.size(), "u", 0.02);
      const Values theta_before = theta, u_before = u, sum = sum_near(theta, 3);
      Values weights = sum;
      outer_step(pool, step, 3, weights, theta, u);
      CHECK(weights == theta);
      std::size_t wrong = 0;
      for (std::size_t i = 0; i < theta.size(); ++i) {
        const long double mean = static_cast<long double>(sum[i]) / 3;
        const long double delta = theta_before[i] - mean;
        long double moved = theta_before[i] - 0.7L * delta;
        if (momentum != 0) {
          const long double exact = static_cast<long double>(momentum) * u_before[i] + delta;
          // One rounding to float; those of the double before it are 2^-29 of that.
          if (std::abs(exact - u[i]) > 0.51L * FLT_EPSILON * std::abs(exact) + 1e-14L) ++wrong;
          // With nesterov it is the kept, rounded u that pushes.
          moved = nesterov ? theta_before[i] - 0.7L * (delta + static_cast<long double>(momentum) * u[i])
                           : theta_before[i] - 0.7L * exact;
        }
        if (std::abs(moved - theta[i]) > 0.51L * FLT_EPSILON * std::abs(moved) + 1e-14L) ++wrong;
      }
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("without momentum, at rate 1, it is the mean; of one replica, that replica") {
  ThreadPool pool(3, false);
  const OuterStep average{.learning_rate = 1, .momentum = 0, .nesterov = true};
  for (const int replicas : {1, 2, 3, 5}) {
    Values theta = random_values(20011, "theta", 100.0);
    std::vector<Values> terms;
    const Values sum = sum_near(theta, replicas, &terms);
    Values weights = sum;
    outer_step(pool, average, replicas, weights, theta, {});
    for (std::size_t i = 0; i < sum.size(); ++i) {
      CHECK_MESSAGE(theta[i] == static_cast<float>(static_cast<double>(sum[i]) / replicas), i);
    }
    if (replicas == 1) CHECK(theta == terms.front());
  }
}

TEST_CASE("threads and values that are not finite") {
  const OuterStep step;
  Values expected;
  for (const int threads : {1, 2, 4}) {
    ThreadPool pool(threads, false);
    Values theta = random_values(50001, "theta", 1), u = random_values(theta.size(), "u", 1);
    Values weights = sum_near(theta, 2);
    weights[5] = NAN;
    outer_step(pool, step, 2, weights, theta, u);
    CHECK(std::isnan(theta[5]));
    theta[5] = weights[5] = 0;
    if (expected.empty()) expected = theta;
    CHECK(theta == expected);
  }
}

}  // namespace trainer::optim
