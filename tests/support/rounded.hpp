// Running error analysis (Higham, Accuracy and Stability of Numerical Algorithms, section 3.3): a naive reference in
// double that carries a bound on how far a float32 evaluation of the same operations can be from it.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

namespace trainer::support {

/// `value` in double; a float32 evaluation in this order of operations, each rounded once, lies within `error` of it.
struct Rounded {
  double value = 0;
  double error = 0;

  static constexpr double kUnit = 0x1p-24;   // half a unit in the last place, relative
  static constexpr double kTiny = 0x1p-150;  // half the smallest denormal

  /// A number that float32 holds exactly.
  static Rounded exact(double value) { return {value, 0}; }
  /// A number rounded to float32 once.
  static Rounded constant(double value) { return rounded(value, 0); }

  /// The result of an operation whose operands' errors already move it by `error`.
  static Rounded rounded(double value, double error) {
    return {value, error + kUnit * (std::abs(value) + error) + kTiny};
  }
};

inline Rounded operator+(Rounded a, Rounded b) { return Rounded::rounded(a.value + b.value, a.error + b.error); }
inline Rounded operator-(Rounded a, Rounded b) { return Rounded::rounded(a.value - b.value, a.error + b.error); }
inline Rounded operator*(Rounded a, Rounded b) {
  return Rounded::rounded(a.value * b.value,
                          std::abs(a.value) * b.error + std::abs(b.value) * a.error + a.error * b.error);
}
inline Rounded operator/(Rounded a, Rounded b) {
  const double quotient = a.value / b.value;
  const double smallest = std::abs(b.value) - b.error;
  if (smallest <= 0) return {quotient, std::numeric_limits<double>::infinity()};
  return Rounded::rounded(quotient, (a.error + std::abs(quotient) * b.error) / smallest);
}
/// |√(v + e) − √v| ≤ |e| / √v, and never more than √|e|.
inline Rounded sqrt(Rounded a) {
  const double root = std::sqrt(a.value);
  const double moved = root > 0 ? std::min(a.error / root, std::sqrt(a.error)) : std::sqrt(a.error);
  return Rounded::rounded(root, moved);
}

}  // namespace trainer::support
