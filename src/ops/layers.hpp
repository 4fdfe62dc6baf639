// The makers of the operators, one a kind of layer, and what they share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>

#include "kernels.hpp"
#include "trainer/core/thread_pool.hpp"
#include "trainer/ops/operator.hpp"

namespace trainer::ops {

/// What a maker is told besides the layer itself.
struct Site {
  std::string name;            // of the node: keys random masks
  std::int64_t positions = 1;  // rows a sample, at most
  const Kernels& kernels;      // outlive the operator
  MatmulPrecision precision = MatmulPrecision::Float32;
};

std::unique_ptr<Operator> make_embedding(const model::Embedding& layer, const Site& site);
std::unique_ptr<Operator> make_position_embedding(const model::PositionEmbedding& layer, const Site& site);
std::unique_ptr<Operator> make_linear(const model::Linear& layer, const Site& site);
std::unique_ptr<Operator> make_layer_norm(const model::LayerNorm& layer, const Site& site);
std::unique_ptr<Operator> make_attention(const model::Attention& layer, const Site& site);
std::unique_ptr<Operator> make_unary(const model::Unary& layer, const Site& site);
std::unique_ptr<Operator> make_dropout(const model::Dropout& layer, const Site& site);
std::unique_ptr<Operator> make_delay(const model::Delay& layer, const Site& site);
std::unique_ptr<Operator> make_add(const model::Add& layer, const Site& site);
std::unique_ptr<Operator> make_flatten(const model::Flatten& layer, const Site& site);

/// make_operator with the given kernels in place of the best ones.
std::unique_ptr<Operator> make_operator_with(const model::Node& node, std::int64_t positions, const Kernels& kernels,
                                             MatmulPrecision precision = MatmulPrecision::Float32);

/// Elements that one turn of a thread handles: small enough to share out, large enough to be worth handing out.
inline constexpr std::int64_t kChunkElements = 16384;

/// Calls body(begin, end) over [0, n) cut into chunks; in parallel.
template <class Body>
void for_chunks(ThreadPool& pool, std::int64_t n, std::int64_t chunk, Body&& body) {
  pool.for_each((n + chunk - 1) / chunk,
                [&](std::int64_t index, int) { body(index * chunk, std::min(n, (index + 1) * chunk)); });
}

/// Rows of `features` elements that make a chunk.
inline std::int64_t chunk_rows(std::int64_t features) {
  return std::max<std::int64_t>(1, kChunkElements / std::max<std::int64_t>(1, features));
}

/// to = from or to += from, over all of the pool's threads.
void copy_or_add(ThreadPool& pool, const Kernels& kernels, const float* from, float* to, std::int64_t n,
                 bool accumulate);

/// sums[c] (+)= Σ rows of x, as Kernels::column_sums, over all of the pool's threads.
void column_sums(ThreadPool& pool, const Kernels& kernels, ConstMatrix x, float* sums, bool accumulate);

/// Columns of a matrix that one turn of a thread sums.
inline constexpr std::int64_t kColumnChunk = 64;

}  // namespace trainer::ops
