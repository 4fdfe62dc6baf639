// Causal multi-head attention without a stored score matrix: tiles of 64 query rows against all keys up to the tile's
// end, scores in scratch only. The backward makes the probabilities again from q, k and two numbers a row, and takes
// the rest from dP = dO·Vᵀ and D = rowsum(dO∘O) (Dao, Fu, Ermon, Rudra, Ré: FlashAttention, 2022, appendix B).
#include <cmath>
#include <cstring>

#include "layers.hpp"
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
  float* scores;     // [kTileRows, pitch]
  float* gradients;  // [kTileRows, pitch]
  std::byte* matmul;
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
      const Item item =
          item_of(index, positions, call.batch, call.x[0], reinterpret_cast<SoftmaxStatistics*>(call.saved),
                  call.workspace + static_cast<std::size_t>(thread) * thread_bytes());
      float* out = call.y.row(index / layer_.heads * positions) + index % layer_.heads * layer_.head_size;
      const bool drop = drops(call.batch);
      for (std::int64_t begin = 0; begin < positions; begin += kTileRows) forward_tile(item, begin, out, drop);
    });
  }

  void backward_input(const BackwardInputCall& call) const override {
    if (!call.dx[0]) return;
    const std::int64_t positions = positions_of(call.batch, call.dy.rows);
    call.pool.for_each(call.batch.samples * layer_.heads, [&](std::int64_t index, int thread) {
      // The backward reads the statistics only.
      auto* saved = reinterpret_cast<SoftmaxStatistics*>(const_cast<std::byte*>(call.saved));
      const Item item = item_of(index, positions, call.batch, call.x[0], saved,
                                call.workspace + static_cast<std::size_t>(thread) * thread_bytes());
      const std::int64_t row = index / layer_.heads * positions;
      const std::int64_t column = index % layer_.heads * layer_.head_size;
      float* dq = call.dx[0].row(row) + column;
      if (!call.accumulate[0]) clear_keys(dq, positions);
      const bool drop = drops(call.batch);
      for (std::int64_t begin = 0; begin < positions; begin += kTileRows) {
        backward_tile(item, begin, call.y.row(row) + column, call.dy.row(row) + column, dq, call.accumulate[0], drop);
      }
    });
  }

 private:
  std::int64_t stride() const { return 3 * width_; }
  /// Row stride of a tile of scores: whole cache lines, an odd number of them so that columns do not share a cache set.
  std::int64_t pitch() const { return ((positions_ + 15) / 16 | 1) * 16; }

  std::size_t tile_bytes() const { return static_cast<std::size_t>(kTileRows * pitch()) * sizeof(float); }
  std::size_t thread_bytes() const {
    std::size_t bytes = 0;
    const std::int64_t d = layer_.head_size;
    const std::int64_t tile = std::min(kTileRows, positions_);
    for (const MatmulShape& shape :
         {MatmulShape{Layout::NT, tile, positions_, d, stride(), stride(), pitch(), precision_},
          MatmulShape{Layout::NN, tile, d, positions_, pitch(), stride(), stride(), precision_},
          MatmulShape{Layout::TN, positions_, d, tile, pitch(), stride(), stride(), precision_}}) {
      bytes = std::max(bytes, matmul_block_workspace_bytes(shape));
    }
    return 2 * tile_bytes() + align_up(bytes);
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
    item.scores = reinterpret_cast<float*>(scratch);
    item.gradients = reinterpret_cast<float*>(scratch + tile_bytes());
    item.matmul = scratch + 2 * tile_bytes();
    return item;
  }

  static DropoutMask row_mask(const Item& item, std::int64_t query) {
    DropoutMask mask = item.mask;
    mask.row |= static_cast<std::uint32_t>(query);
    return mask;
  }

  /// Keys behind a query have no weight: zeros from `valid` to the tile's end.
  static void clear_masked(float* row, std::int64_t valid, std::int64_t keys) {
    std::memset(row + valid, 0, static_cast<std::size_t>(keys - valid) * sizeof(float));
  }

  void forward_tile(const Item& item, std::int64_t begin, float* out, bool drop) const {
    const std::int64_t rows = std::min(kTileRows, item.positions - begin);
    const std::int64_t keys = begin + rows;
    matmul_block({Layout::NT, rows, keys, layer_.head_size, stride(), stride(), pitch(), precision_},
                 item.q + begin * stride(), item.k, item.scores, false, item.matmul);
    for (std::int64_t r = 0; r < rows; ++r) {
      float* row = item.scores + r * pitch();
      const std::int64_t valid = begin + r + 1;
      const float maximum = kernels_.maximum(row, valid) * scale_;
      const float sum = kernels_.exponentials(row, scale_, maximum, row, valid);
      item.statistics[begin + r] = {maximum, 1.0f / sum};
      if (drop) kernels_.dropout(row_mask(item, begin + r), row, row, valid, false);
      clear_masked(row, valid, keys);
    }
    matmul_block({Layout::NN, rows, layer_.head_size, keys, pitch(), stride(), width_, precision_}, item.scores, item.v,
                 out + begin * width_, false, item.matmul);
    for (std::int64_t r = begin; r < keys; ++r) {
      kernels_.scale(out + r * width_, item.statistics[r].inverse, out + r * width_, layer_.head_size);
    }
  }

  /// dk and dv collect from tile after tile, so they begin at zero.
  void clear_keys(float* dq, std::int64_t positions) const {
    for (std::int64_t r = 0; r < positions; ++r) {
      for (float* d : {dq + width_, dq + 2 * width_}) {
        std::memset(d + r * stride(), 0, static_cast<std::size_t>(layer_.head_size) * sizeof(float));
      }
    }
  }

  void backward_tile(const Item& item, std::int64_t begin, const float* out, const float* dout, float* dq,
                     bool accumulate, bool drop) const {
    const std::int64_t rows = std::min(kTileRows, item.positions - begin);
    const std::int64_t keys = begin + rows;
    const std::int64_t d = layer_.head_size;
    matmul_block({Layout::NT, rows, keys, d, stride(), stride(), pitch(), precision_}, item.q + begin * stride(),
                 item.k, item.scores, false, item.matmul);
    matmul_block({Layout::NT, rows, keys, d, width_, stride(), pitch(), precision_}, dout + begin * width_, item.v,
                 item.gradients, false, item.matmul);
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t query = begin + r;
      const std::int64_t valid = query + 1;
      float* s = item.scores + r * pitch();
      float* dp = item.gradients + r * pitch();
      const float mean = kernels_.dot(dout + query * width_, out + query * width_, d);
      const SoftmaxStatistics& row = item.statistics[query];
      const DropoutMask mask = row_mask(item, query);
      kernels_.softmax_backward(s, dp, scale_, row.maximum, row.inverse, mean, valid, drop ? &mask : nullptr);
      clear_masked(s, valid, keys);
      clear_masked(dp, valid, keys);
    }
    float* dk = dq + width_;
    float* dv = dk + width_;
    matmul_block({Layout::NN, rows, d, keys, pitch(), stride(), stride(), precision_}, item.gradients, item.k,
                 dq + begin * stride(), accumulate, item.matmul);
    matmul_block({Layout::TN, keys, d, rows, pitch(), stride(), stride(), precision_}, item.gradients,
                 item.q + begin * stride(), dk, true, item.matmul);
    matmul_block({Layout::TN, keys, d, rows, pitch(), width_, stride(), precision_}, item.scores, dout + begin * width_,
                 dv, true, item.matmul);
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
