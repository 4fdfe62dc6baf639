// y = (x - mean) / sqrt(variance + eps) · weight + bias, row by row.
#include "layers.hpp"

namespace trainer::ops {

namespace {

class LayerNormOperator final : public Operator {
 public:
  LayerNormOperator(const model::LayerNorm& layer, const Kernels& kernels)
      : features_(layer.features), eps_(static_cast<float>(layer.eps)), kernels_(kernels) {}

  Needs needs(std::int64_t rows, int) const override {
    Needs needs;
    needs.input_in_backward_input = true;
    needs.input_in_backward_weight = true;
    needs.saved_in_backward_weight = true;
    needs.output_gradient_in_backward_weight = true;
    needs.has_weight = true;
    needs.saved_bytes = static_cast<std::size_t>(rows) * sizeof(RowStatistics);
    return needs;
  }

  void forward(const ForwardCall& call) const override {
    auto* statistics = reinterpret_cast<RowStatistics*>(call.saved);
    for_chunks(call.pool, call.y.rows, chunk_rows(features_), [&](std::int64_t begin, std::int64_t end) {
      kernels_.layer_norm(call.x[0].row(begin), call.parameters[0], call.parameters[1], eps_, end - begin, features_,
                          call.y.row(begin), statistics + begin);
    });
  }

  void backward_input(const BackwardInputCall& call) const override {
    if (!call.dx[0]) return;
    const auto* statistics = reinterpret_cast<const RowStatistics*>(call.saved);
    for_chunks(call.pool, call.dy.rows, chunk_rows(features_), [&](std::int64_t begin, std::int64_t end) {
      kernels_.layer_norm_backward(call.x[0].row(begin), call.dy.row(begin), call.parameters[0], statistics + begin,
                                   end - begin, features_, call.dx[0].row(begin), call.accumulate[0]);
    });
  }

  void backward_weight(const BackwardWeightCall& call) const override {
    const auto* statistics = reinterpret_cast<const RowStatistics*>(call.saved);
    for_chunks(call.pool, features_, kColumnChunk, [&](std::int64_t begin, std::int64_t end) {
      kernels_.layer_norm_columns(call.x[0].data + begin, call.dy.data + begin, statistics, call.dy.rows, features_,
                                  end - begin, call.gradients[0] + begin, call.gradients[1] + begin, call.accumulate);
    });
  }

 private:
  std::int64_t features_;
  float eps_;
  const Kernels& kernels_;
};

}  // namespace

std::unique_ptr<Operator> make_layer_norm(const model::LayerNorm& layer, const Site& site) {
  return std::make_unique<LayerNormOperator>(layer, site.kernels);
}

}  // namespace trainer::ops
