// Tables that rows are looked up in: by token, and by position.
#include <cstring>

#include "layers.hpp"

namespace trainer::ops {

namespace {

class EmbeddingOperator final : public Operator {
 public:
  EmbeddingOperator(const model::Embedding& layer, const Kernels& kernels) : layer_(layer), kernels_(kernels) {}

  Needs needs(std::int64_t, int) const override {
    Needs needs;
    needs.input_in_backward_weight = true;  // the tokens
    needs.output_gradient_in_backward_weight = true;
    needs.has_weight = true;
    return needs;
  }

  void forward(const ForwardCall& call) const override {
    const std::int64_t features = layer_.features;
    for_chunks(call.pool, call.y.rows, chunk_rows(features), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        const std::int64_t entry = entry_of(call.tokens.data[row]);
        if (entry < 0) {
          std::memset(call.y.row(row), 0, static_cast<std::size_t>(features) * sizeof(float));
        } else {
          std::memcpy(call.y.row(row), call.parameters[0] + entry * features,
                      static_cast<std::size_t>(features) * sizeof(float));
        }
      }
    });
  }

  void backward_input(const BackwardInputCall&) const override {}

  // Every element of the table is one chain over ascending rows, continued from micro-batch to micro-batch; threads
  // take columns.
  void backward_weight(const BackwardWeightCall& call) const override {
    const std::int64_t features = layer_.features;
    float* table = call.gradients[0];
    if (!call.accumulate) {
      for_chunks(call.pool, layer_.vocab, chunk_rows(features), [&](std::int64_t begin, std::int64_t end) {
        std::memset(table + begin * features, 0, static_cast<std::size_t>((end - begin) * features) * sizeof(float));
      });
    }
    for_chunks(call.pool, features, kColumnChunk, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = 0; row < call.dy.rows; ++row) {
        const std::int64_t entry = entry_of(call.tokens.data[row]);
        if (entry < 0) continue;
        float* to = table + entry * features + begin;
        kernels_.add(to, call.dy.row(row) + begin, to, end - begin);
      }
    });
  }

 private:
  /// The row of the local table, or -1: an invalid token, or one of another rank's.
  std::int64_t entry_of(std::int32_t token) const {
    const std::int64_t entry = token - layer_.vocab_begin;
    return token >= 0 && entry >= 0 && entry < layer_.vocab ? entry : -1;
  }

  model::Embedding layer_;
  const Kernels& kernels_;
};

class PositionEmbeddingOperator final : public Operator {
 public:
  PositionEmbeddingOperator(const model::PositionEmbedding& layer, const Kernels& kernels)
      : layer_(layer), kernels_(kernels) {}

  Needs needs(std::int64_t, int) const override {
    Needs needs;
    needs.output_gradient_in_backward_weight = true;
    needs.has_weight = true;
    return needs;
  }

  void forward(const ForwardCall& call) const override {
    const std::int64_t positions = call.y.rows / call.batch.samples;
    for_chunks(call.pool, call.y.rows, chunk_rows(layer_.features), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        kernels_.add(call.x[0].row(row), call.parameters[0] + row % positions * layer_.features, call.y.row(row),
                     layer_.features);
      }
    });
  }

  void backward_input(const BackwardInputCall& call) const override {
    if (!call.dx[0]) return;
    copy_or_add(call.pool, kernels_, call.dy.data, call.dx[0].data, call.dy.elements(), call.accumulate[0]);
  }

  // A row of the table is a column sum over samples; rows that no position of the batch reaches get nothing.
  void backward_weight(const BackwardWeightCall& call) const override {
    const std::int64_t features = layer_.features;
    const std::int64_t positions = call.dy.rows / call.batch.samples;
    call.pool.for_each(layer_.positions, [&](std::int64_t position, int) {
      float* to = call.gradients[0] + position * features;
      if (position < positions) {
        kernels_.column_sums(call.dy.row(position), call.batch.samples, positions * features, features, to,
                             call.accumulate);
      } else if (!call.accumulate) {
        std::memset(to, 0, static_cast<std::size_t>(features) * sizeof(float));
      }
    });
  }

 private:
  model::PositionEmbedding layer_;
  const Kernels& kernels_;
};

}  // namespace

std::unique_ptr<Operator> make_embedding(const model::Embedding& layer, const Site& site) {
  return std::make_unique<EmbeddingOperator>(layer, site.kernels);
}

std::unique_ptr<Operator> make_position_embedding(const model::PositionEmbedding& layer, const Site& site) {
  return std::make_unique<PositionEmbeddingOperator>(layer, site.kernels);
}

}  // namespace trainer::ops
