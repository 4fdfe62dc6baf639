// y = x·Wᵀ + b.
#include "layers.hpp"
#include "trainer/ops/matmul.hpp"

namespace trainer::ops {

namespace {

class LinearOperator final : public Operator {
 public:
  LinearOperator(const model::Linear& layer, const Site& site)
      : layer_(layer), kernels_(site.kernels), precision_(site.precision) {}

  Needs needs(std::int64_t rows, int threads) const override {
    Needs needs;
    needs.input_in_backward_weight = true;
    needs.output_gradient_in_backward_weight = true;
    needs.has_weight = true;
    for (const MatmulShape& shape : {forward_shape(rows), input_shape(rows), weight_shape(rows)}) {
      needs.workspace_bytes = std::max(needs.workspace_bytes, matmul_workspace_bytes(shape, threads));
    }
    return needs;
  }

  void forward(const ForwardCall& call) const override {
    const float* bias = layer_.bias && layer_.add_bias ? call.parameters[1] : nullptr;
    matmul(call.pool, forward_shape(call.y.rows), call.x[0].data, call.parameters[0], call.y.data, false, bias,
           call.workspace);
  }

  void backward_input(const BackwardInputCall& call) const override {
    if (!call.dx[0]) return;
    matmul(call.pool, input_shape(call.dy.rows), call.dy.data, call.parameters[0], call.dx[0].data, call.accumulate[0],
           nullptr, call.workspace);
  }

  void backward_weight(const BackwardWeightCall& call) const override {
    matmul(call.pool, weight_shape(call.dy.rows), call.dy.data, call.x[0].data, call.gradients[0], call.accumulate,
           nullptr, call.workspace);
    if (layer_.bias) column_sums(call.pool, kernels_, call.dy, call.gradients[1], call.accumulate);
  }

 private:
  MatmulShape forward_shape(std::int64_t rows) const {
    return {Layout::NT, rows, layer_.out, layer_.in, layer_.in, layer_.in, layer_.out, precision_};
  }
  MatmulShape input_shape(std::int64_t rows) const {
    return {Layout::NN, rows, layer_.in, layer_.out, layer_.out, layer_.in, layer_.in, precision_};
  }
  MatmulShape weight_shape(std::int64_t rows) const {
    return {Layout::TN, layer_.out, layer_.in, rows, layer_.out, layer_.in, layer_.in, precision_};
  }

  model::Linear layer_;
  const Kernels& kernels_;
  MatmulPrecision precision_;
};

}  // namespace

std::unique_ptr<Operator> make_linear(const model::Linear& layer, const Site& site) {
  return std::make_unique<LinearOperator>(layer, site);
}

}  // namespace trainer::ops
