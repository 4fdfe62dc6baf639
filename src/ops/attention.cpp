// Causal multi-head attention without a stored score matrix: a row of register tiles of queries at a time forward,
// tiles of 64 queries × kBlockK keys backward, scores in scratch only, K and V of a head packed once. The backward
// makes the probabilities again from q, k and two numbers a row, and takes the rest from dP = dO·Vᵀ and D =
// rowsum(dO∘O) (Dao, Fu, Ermon, Rudra, Ré: FlashAttention, 2022, appendix B). Chains: over all features for a score;
// over keys for an output and dQ, restarted every kBlockK; over the queries of a tile for dK and dV, the tiles added in
// order.
#include <cmath>
#include <cstring>

#include "layers.hpp"
#include "matmul_native.hpp"
#include "packed_operand.hpp"
#include "trainer/core/error.hpp"
#include "trainer/core/random.hpp"
#include "trainer/ops/matmul.hpp"

namespace trainer::ops {

namespace {

constexpr std::int64_t kTileRows = 64;

// The counter of a probability's mask holds (head, query) in one word.
constexpr std::int64_t kQueryBits = 20;
constexpr std::int64_t kMaxPositions = std::int64_t{1} << kQueryBits;
constexpr std::int64_t kMaxHeads = std::int64_t{1} << (32 - kQueryBits);

/// Of one query row of one head: probabilities are exp(score·scale - maximum)·inverse.
struct SoftmaxStatistics {
  float maximum = 0;
  float inverse = 0;
};

/// One (sample, head): where its rows begin, what it saves, and the scratch of the thread that does it.
struct Item {
  const float* q;
  const float* k;
  const float* v;
  SoftmaxStatistics* statistics;  // [positions]
  DropoutMask mask;               // its row is completed by `row_mask`
  std::int64_t positions;
  std::byte* scratch;
};

/// What the backward of an item reads and writes besides it.
struct Gradients {
  const float* out;   // [positions, width]
  const float* dout;  // [positions, width]
  float* dq;          // dk and dv follow it as k and v follow q
  bool accumulate;
  bool drop;
};

class AttentionOperator final : public Operator {
 public:
  AttentionOperator(const model::Attention& layer, const Site& site)
      : layer_(layer),
        name_(site.name),
        positions_(site.positions),
        width_(layer.heads * layer.head_size),
        scale_(static_cast<float>(1.0 / std::sqrt(static_cast<double>(layer.head_size)))),
        kernels_(site.kernels),
        precision_(site.precision) {
    if (positions_ > kMaxPositions || layer.head_begin + layer.heads > kMaxHeads) {
      internal_error("'" + name_ + "' has more positions than 2^20 or more heads than 2^12");
    }
    if (!(layer.dropout >= 0 && layer.dropout < 1)) {
      internal_error("'" + name_ + "' has a dropout probability outside [0, 1)");
    }
    set_probability(mask_, layer.dropout);
  }

  Needs needs(std::int64_t rows, int threads) const override {
    Needs needs;
    needs.input_in_backward_input = true;
    needs.output_in_backward_input = true;
    needs.saved_bytes = static_cast<std::size_t>(rows * layer_.heads) * sizeof(SoftmaxStatistics);
    needs.workspace_bytes = static_cast<std::size_t>(threads) * thread_bytes();
    return needs;
  }

  void forward(const ForwardCall& call) const override {
    const std::int64_t positions = positions_of(call.batch, call.y.rows);
    call.pool.for_each(call.batch.samples * layer_.heads, [&](std::int64_t index, int thread) {
      const Item item = item_of(index, positions, call.batch, call.x[0],
                                reinterpret_cast<SoftmaxStatistics*>(call.saved), scratch_of(call.workspace, thread));
      float* out = call.y.row(index / layer_.heads * positions) + index % layer_.heads * layer_.head_size;
      forward_item(item, out, drops(call.batch));
    });
  }

  void backward_input(const BackwardInputCall& call) const override {
    if (!call.dx[0]) return;
    const std::int64_t positions = positions_of(call.batch, call.dy.rows);
    call.pool.for_each(call.batch.samples * layer_.heads, [&](std::int64_t index, int thread) {
      // The backward reads the statistics only.
      auto* saved = reinterpret_cast<SoftmaxStatistics*>(const_cast<std::byte*>(call.saved));
      const Item item = item_of(index, positions, call.batch, call.x[0], saved, scratch_of(call.workspace, thread));
      const std::int64_t row = index / layer_.heads * positions;
      const std::int64_t column = index % layer_.heads * layer_.head_size;
      backward_item(item, {call.y.row(row) + column, call.dy.row(row) + column, call.dx[0].row(row) + column,
                           call.accumulate[0], drops(call.batch)});
    });
  }

 private:
  std::int64_t stride() const { return 3 * width_; }
  /// Row stride of scores against `keys` keys: whole cache lines, an odd number of them so that columns do not share a
  /// cache set.
  static std::int64_t pitch(std::int64_t keys) { return ((keys + 15) / 16 | 1) * 16; }
  static std::size_t score_bytes(std::int64_t rows, std::int64_t keys) {
    return align_up(static_cast<std::size_t>(rows * pitch(keys)) * sizeof(float));
  }
  std::int64_t block_keys() const { return std::min(kBlockK, positions_); }

  std::size_t thread_bytes() const {
    const std::int64_t d = layer_.head_size;
    const std::size_t forward =
        PackedOperand::bytes(positions_, d) + PackedOperand::bytes(d, positions_) + score_bytes(kMaxRows, positions_);
    const std::size_t backward = 2 * PackedOperand::bytes(positions_, d) + PackedOperand::bytes(d, positions_) +
                                 2 * PackedOperand::bytes(d, kTileRows) + 2 * score_bytes(kTileRows, block_keys());
    return TileMultiplier::bytes(precision_) + std::max(forward, backward);
  }
  std::byte* scratch_of(std::byte* workspace, int thread) const {
    return workspace + static_cast<std::size_t>(thread) * thread_bytes();
  }

  std::int64_t positions_of(const MicroBatch& batch, std::int64_t rows) const {
    const std::int64_t positions = rows / batch.samples;
    if (positions > positions_) internal_error("'" + name_ + "' was given longer samples than it was made for");
    return positions;
  }

  bool drops(const MicroBatch& batch) const { return layer_.dropout > 0 && batch.training; }

  Item item_of(std::int64_t index, std::int64_t positions, const MicroBatch& batch, ConstMatrix x,
               SoftmaxStatistics* saved, std::byte* scratch) const {
    const std::int64_t sample = index / layer_.heads;
    const std::int64_t head = index % layer_.heads;
    Item item;
    item.q = x.row(sample * positions) + head * layer_.head_size;
    item.k = item.q + width_;
    item.v = item.k + width_;
    item.statistics = saved + index * positions;
    item.mask = mask_;
    const auto key = RandomStream(batch.seed, name_).key();
    item.mask.key[0] = key[0];
    item.mask.key[1] = key[1];
    item.mask.sample = batch.first_sample + static_cast<std::uint64_t>(sample);
    item.mask.row = static_cast<std::uint32_t>((layer_.head_begin + head) << kQueryBits);
    item.positions = positions;
    item.scratch = scratch;
    return item;
  }

  static DropoutMask row_mask(const Item& item, std::int64_t query) {
    DropoutMask mask = item.mask;
    mask.row |= static_cast<std::uint32_t>(query);
    return mask;
  }

  /// Keys behind a query have no weight: zeros from `valid` on.
  static void clear_masked(float* row, std::int64_t valid, std::int64_t keys) {
    std::memset(row + valid, 0, static_cast<std::size_t>(keys - valid) * sizeof(float));
  }

  /// A packed operand on the next memory of an item's scratch.
  static PackedOperand packed(const TileMultiplier& multiplier, std::byte*& memory, std::int64_t columns,
                              std::int64_t depth, const kernel::Operand& from) {
    const PackedOperand operand(multiplier, memory, columns, depth);
    operand.pack(from);
    memory += PackedOperand::bytes(columns, depth);
    return operand;
  }

  void forward_item(const Item& item, float* out, bool drop) const {
    const TileMultiplier multiplier(precision_, item.scratch);
    const std::int64_t d = layer_.head_size;
    std::byte* memory = item.scratch + TileMultiplier::bytes(precision_);
    const PackedOperand keys = packed(multiplier, memory, item.positions, d, {item.k, stride(), 1});
    const PackedOperand values = packed(multiplier, memory, d, item.positions, {item.v, 1, stride()});
    auto* scores = reinterpret_cast<float*>(memory);
    for (std::int64_t begin = 0; begin < item.positions; begin += multiplier.rows()) {
      const std::int64_t rows = std::min(multiplier.rows(), item.positions - begin);
      const std::int64_t end = begin + rows;
      const std::int64_t ld = pitch(item.positions);
      keys.multiply({.rows = rows, .columns = end, .k_end = d}, {item.q + begin * stride(), stride(), 1}, scores, ld);
      for (std::int64_t query = begin; query < end; ++query) {
        float* row = scores + (query - begin) * ld;
        const std::int64_t valid = query + 1;
        const float maximum = kernels_.maximum(row, valid) * scale_;
        const float sum = kernels_.exponentials(row, scale_, maximum, row, valid);
        item.statistics[query] = {maximum, 1.0f / sum};
        if (drop) kernels_.dropout(row_mask(item, query), row, row, valid, false);
        clear_masked(row, valid, end);
      }
      values.multiply({.rows = rows, .columns = d, .k_end = end}, {scores, ld, 1}, out + begin * width_, width_);
      for (std::int64_t query = begin; query < end; ++query) {
        float* row = out + query * width_;
        kernels_.scale(row, item.statistics[query].inverse, row, d);
      }
    }
  }

  /// A tile of queries [begin, begin + rows) against keys [first, first + width) of one k-block.
  struct Tile {
    std::int64_t begin, rows, height;  // height: rows of a register tile
    std::int64_t first, width;
    float* scores;     // [kTileRows, pitch(block_keys())]: the probabilities, masked where they were dropped
    float* gradients;  // the same: of the scores
    std::int64_t columns_of(std::int64_t row_end) const { return std::min(width, begin + row_end - first); }
  };

  void backward_item(const Item& item, const Gradients& to) const {
    const TileMultiplier multiplier(precision_, item.scratch);
    const std::int64_t d = layer_.head_size;
    std::byte* memory = item.scratch + TileMultiplier::bytes(precision_);
    const PackedOperand keys = packed(multiplier, memory, item.positions, d, {item.k, stride(), 1});
    const PackedOperand values = packed(multiplier, memory, item.positions, d, {item.v, stride(), 1});
    const PackedOperand key_rows = packed(multiplier, memory, d, item.positions, {item.k, 1, stride()});
    std::byte* const tile_memory = memory;
    for (std::int64_t begin = 0; begin < item.positions; begin += kTileRows) {
      memory = tile_memory;
      const std::int64_t rows = std::min(kTileRows, item.positions - begin);
      const PackedOperand queries = packed(multiplier, memory, d, rows, {item.q + begin * stride(), 1, stride()});
      const PackedOperand douts = packed(multiplier, memory, d, rows, {to.dout + begin * width_, 1, width_});
      auto* scores = reinterpret_cast<float*>(memory);
      auto* gradients = reinterpret_cast<float*>(memory + score_bytes(kTileRows, block_keys()));
      float means[kTileRows];
      for (std::int64_t r = 0; r < rows; ++r) {
        means[r] = kernels_.dot(to.dout + (begin + r) * width_, to.out + (begin + r) * width_, d);
      }
      const std::int64_t height = multiplier.even_rows(rows);
      for (std::int64_t first = 0; first < begin + rows; first += kBlockK) {
        const Tile tile{begin, rows, height, first, std::min(kBlockK, begin + rows - first), scores, gradients};
        for (std::int64_t r = 0; r < rows; r += height) {
          probabilities(item, to, tile, r, keys, values, means);
          query_gradients(to, tile, r, key_rows);
        }
        key_gradients(to, tile, queries, douts);
      }
    }
  }

  /// Rows [r, r + height) of a tile: P and dS.
  void probabilities(const Item& item, const Gradients& to, const Tile& tile, std::int64_t r, const PackedOperand& keys,
                     const PackedOperand& values, const float* means) const {
    const std::int64_t rows = std::min(tile.height, tile.rows - r);
    const std::int64_t columns = tile.columns_of(r + rows);
    const std::int64_t ld = pitch(block_keys());
    const std::int64_t d = layer_.head_size;
    float* scores = tile.scores + r * ld;
    float* gradients = tile.gradients + r * ld;
    const PackedOperand::Part part{.rows = rows, .columns = columns, .first_column = tile.first, .k_end = d};
    keys.multiply(part, {item.q + (tile.begin + r) * stride(), stride(), 1}, scores, ld);
    values.multiply(part, {to.dout + (tile.begin + r) * width_, width_, 1}, gradients, ld);
    for (std::int64_t i = 0; i < rows; ++i, scores += ld, gradients += ld) {
      const std::int64_t query = tile.begin + r + i;
      const std::int64_t valid = std::min(columns, query + 1 - tile.first);
      const SoftmaxStatistics& row = item.statistics[query];
      DropoutMask mask = row_mask(item, query);
      mask.first = tile.first;
      kernels_.softmax_backward(scores, gradients, scale_, row.maximum, row.inverse, means[r + i], valid,
                                to.drop ? &mask : nullptr);
      clear_masked(scores, valid, columns);
      clear_masked(gradients, valid, columns);
    }
  }

  /// dQ (+)= dS·K for the same rows.
  void query_gradients(const Gradients& to, const Tile& tile, std::int64_t r, const PackedOperand& key_rows) const {
    const std::int64_t rows = std::min(tile.height, tile.rows - r);
    const std::int64_t ld = pitch(block_keys());
    key_rows.multiply({.rows = rows,
                       .columns = layer_.head_size,
                       .k_begin = tile.first,
                       .k_end = tile.first + tile.columns_of(r + rows),
                       .add = to.accumulate || tile.first > 0},
                      {tile.gradients + r * ld, ld, 1}, to.dq + (tile.begin + r) * stride(), stride());
  }

  /// dK (+)= dSᵀ·Q and dV (+)= Pᵀ·dO for the tile's keys, tile after tile of queries. The first tile that a key meets
  /// is its own; there the queries before the first key of a row of register tiles are left out: their weights are 0.
  void key_gradients(const Gradients& to, const Tile& tile, const PackedOperand& queries,
                     const PackedOperand& douts) const {
    const std::int64_t ld = pitch(block_keys());
    float* dk = to.dq + width_;
    float* dv = dk + width_;
    for (std::int64_t group = tile.first; group < tile.first + tile.width; group += kTileRows) {
      const bool own = group == tile.begin;
      const std::int64_t keys = std::min(kTileRows, tile.first + tile.width - group);
      for (std::int64_t j = 0; j < keys; j += tile.height) {
        const std::int64_t skipped = own ? j : 0;
        const PackedOperand::Part part{.rows = std::min(tile.height, keys - j),
                                       .columns = layer_.head_size,
                                       .k_begin = skipped,
                                       .k_end = tile.rows,
                                       .add = to.accumulate || !own};
        const std::int64_t from = skipped * ld + group - tile.first + j;
        const std::int64_t at = (group + j) * stride();
        queries.multiply(part, {tile.gradients + from, 1, ld}, dk + at, stride());
        douts.multiply(part, {tile.scores + from, 1, ld}, dv + at, stride());
      }
    }
  }

  model::Attention layer_;
  std::string name_;
  std::int64_t positions_;
  std::int64_t width_;  // heads · head_size
  float scale_;
  DropoutMask mask_;
  const Kernels& kernels_;
  MatmulPrecision precision_;
};

}  // namespace

std::unique_ptr<Operator> make_attention(const model::Attention& layer, const Site& site) {
  return std::make_unique<AttentionOperator>(layer, site);
}

}  // namespace trainer::ops
