// Jacobians by central differences in double, and the error bounds that follow from them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <vector>

namespace trainer::test {

/// Half the distance between neighbouring floats at 1: the relative error of one rounding.
inline constexpr double kUnitRoundoff = 0x1p-24;

using Values = std::vector<double>;
using VectorFunction = std::function<Values(const Values&)>;

/// J[i][j] = ∂f_j / ∂x_i. With step 1e-5 the truncation error is h²/6·f''' ≈ 2e-11·f''' and the rounding error
/// 2^-53·|f| / h ≈ 1e-11·|f|: both far below the float errors that are looked for.
inline std::vector<Values> central_differences(const VectorFunction& f, Values x, double step = 1e-5) {
  std::vector<Values> jacobian;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double at = x[i];
    x[i] = at + step;
    Values above = f(x);
    x[i] = at - step;
    const Values below = f(x);
    x[i] = at;
    for (std::size_t j = 0; j < above.size(); ++j) above[j] = (above[j] - below[j]) / (2 * step);
    jacobian.push_back(std::move(above));
  }
  return jacobian;
}

/// What a function computed in float may miss, to first order, if k roundings lie on the longest way from an operand to
/// a result: k·u·(|y_j| + Σ_i |x_i·J_ij|), since each rounding is a relative change of u in an operand or the result.
inline Values forward_bounds(const std::vector<Values>& jacobian, const Values& x, const Values& y, double k) {
  Values bounds(y.size());
  for (std::size_t j = 0; j < y.size(); ++j) {
    double sum = std::abs(y[j]);
    for (std::size_t i = 0; i < x.size(); ++i) sum += std::abs(x[i] * jacobian[i][j]);
    bounds[j] = k * kUnitRoundoff * sum;
  }
  return bounds;
}

struct Gradient {
  Values value;  // Σ_j J_ij·dy_j
  Values bounds;  // k·u·(Σ_j |J_ij·dy_j| + the largest such sum, which covers cancellation inside of J), and 1e-9 for J
};

inline Gradient gradient_of(const std::vector<Values>& jacobian, const std::vector<float>& dy, double k) {
  Gradient gradient;
  double largest = 0;
  for (const Values& row : jacobian) {
    double value = 0;
    double sum = 0;
    for (std::size_t j = 0; j < row.size(); ++j) {
      value += row[j] * static_cast<double>(dy[j]);
      sum += std::abs(row[j] * static_cast<double>(dy[j]));
    }
    gradient.value.push_back(value);
    gradient.bounds.push_back(sum);
    largest = std::max(largest, sum);
  }
  for (double& bound : gradient.bounds) bound = k * kUnitRoundoff * (bound + largest) + 1e-9 * (1 + largest);
  return gradient;
}

}  // namespace trainer::test
