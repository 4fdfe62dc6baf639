// Gradient compression on spans: what a replica sends of its gradient, and what is made of what all have sent. Pure
// arithmetic, no ranks. All loops are single-threaded and in ascending order, so bits depend on the values alone.
// Nothing here allocates; every size is a function of the count. NaN and infinity stay visible in every result.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace trainer::optim {

// ---- error feedback ----------------------------------------------------------------------------------------------
// Seide et al. 2014; Karimireddy et al. 2019. a = g + e; what is sent of a is S; e = a − S stays for the next step, so
// that Σ sent + e = Σ g. The state is one float an element.

/// values += error, element by element.
void add_error(std::span<float> values, std::span<const float> error);

/// error = values, with 0 at the elements that were sent: the rest, exactly. `sent` are indices in any order.
void keep_rest(std::span<const float> values, std::span<const std::uint32_t> sent, std::span<float> error);

// ---- sparse: top-k and random-k ----------------------------------------------------------------------------------

/// ⌈ratio · count⌉, at least 1 and at most count (0 of 0). Indices are 32 bits: count < 2³².
std::int64_t kept_elements(double ratio, std::int64_t count);

/// The indices of the largest |values|, as many as `indices` has, ascending. Of equal ones the lower index is taken;
/// NaN is larger than infinity, so neither is ever left out for a number. By radix selection: four passes, no sorting.
void top_k(std::span<const float> values, std::span<std::uint32_t> indices);

/// Distinct indices below `count`, as many as `indices` has: a function of (seed, name, step, count) alone, so that all
/// replicas take the same and need not send them. In no order.
void random_k(std::uint64_t seed, std::string_view name, std::int64_t step, std::int64_t count,
              std::span<std::uint32_t> indices);

/// to[j] = scale · values[indices[j]].
void gather(std::span<const float> values, std::span<const std::uint32_t> indices, float scale, std::span<float> to);

/// All of `to` become NaN where any of `values` is not finite: for random-k, which may not have taken it.
void spread_non_finite(std::span<const float> values, std::span<float> to);

/// to[indices[j]] = values[j], or += ; other elements stay. Throws Error(Internal) where an index is outside.
void scatter(std::span<const std::uint32_t> indices, std::span<const float> values, bool accumulate,
             std::span<float> to);

// ---- sign with majority vote -------------------------------------------------------------------------------------
// Bernstein et al. 2018 (signSGD with majority vote), with the size of the step from the gradients: each replica sends
// a bit an element and the mean of its |values|; the result is the sum of these means times the sign that most have
// sent, 0 where as many are negative as not. So learning rates, clipping and tensors that are not compressed keep their
// meaning. Wire: a float, then a bit an element, lowest first; set: the sign bit of the float is.

std::size_t sign_bytes(std::int64_t count);
void encode_signs(std::span<const float> values, std::span<std::byte> wire);
/// `wires`: one a replica; means are added in their order.
void majority(std::span<const std::byte* const> wires, std::span<float> to);

// ---- 8-bit integers ----------------------------------------------------------------------------------------------
// Blocks of kInt8Block elements, each a float scale = max |x| / 127 and a byte an element: round(x / scale), to even.
// |x − decoded| ≤ scale / 2 (with rounding of the division: (½ + 2⁻¹⁵) scale), and blocks whose scale is no normal
// float become 0. A block with a value that is not finite decodes to NaN as a whole.

inline constexpr std::int64_t kInt8Block = 256;
inline constexpr std::size_t kInt8BlockBytes = sizeof(float) + kInt8Block;
constexpr std::int64_t int8_blocks(std::int64_t count) { return (count + kInt8Block - 1) / kInt8Block; }
/// Whole blocks always: the elements that the last one lacks are 0.
constexpr std::size_t int8_bytes(std::int64_t count) {
  return static_cast<std::size_t>(int8_blocks(count)) * kInt8BlockBytes;
}
void encode_int8(std::span<const float> values, std::span<std::byte> wire);
/// to = decoded, or to += decoded.
void decode_int8(std::span<const std::byte> wire, bool accumulate, std::span<float> to);

// ---- PowerSGD ----------------------------------------------------------------------------------------------------
// Vogels, Karimireddy, Jaggi 2019. One step of subspace iteration from the factor of the step before:
//   P = orth(Σ M Q);  Q = Σ Mᵀ P;  the result is P Qᵀ
// with sums over replicas, whose gradients are scaled so that their sum is the mean. Factors lie transposed:
// P as [rank][rows], Q as [rank][columns]. Dot products have 16 fixed lanes.

struct PowerShape {
  std::int64_t rows = 0, columns = 0;
  std::int64_t rank = 0;  // at most min(rows, columns)
  std::int64_t p_elements() const { return rank * rows; }
  std::int64_t q_elements() const { return rank * columns; }
};

/// Q of the first step: normal numbers, a function of (seed, name, shape).
void first_factor(std::uint64_t seed, std::string_view name, const PowerShape& shape, std::span<float> q);
/// P = M Q and Q = Mᵀ P, of this replica. M is row-major.
void project(const PowerShape& shape, std::span<const float> m, std::span<const float> q, std::span<float> p);
void project_back(const PowerShape& shape, std::span<const float> m, std::span<const float> p, std::span<float> q);
/// Gram–Schmidt in order of columns, twice, dot products in double: PᵀP = I. A column that depends on those before it
/// is replaced by the part of the first unit vector that does not: the subspace stays of full rank.
void orthonormalise(const PowerShape& shape, std::span<float> p);
/// M = P Qᵀ.
void restore(const PowerShape& shape, std::span<const float> p, std::span<const float> q, std::span<float> m);
/// error = values − scale · result, element by element: what the replicas' result lacks of this one's share.
void keep_difference(std::span<const float> values, std::span<const float> result, float scale, std::span<float> error);

}  // namespace trainer::optim
