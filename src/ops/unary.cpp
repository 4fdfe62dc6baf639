// Functions of one element: gelu (tanh approximation), relu, tanh, sigmoid.
#include "layers.hpp"

namespace trainer::ops {

namespace {

class UnaryOperator final : public Operator {
 public:
  UnaryOperator(model::UnaryKind kind, const Kernels& kernels)
      : forward_(kernels.unary[static_cast<std::size_t>(kind)]),
        backward_(kernels.unary_backward[static_cast<std::size_t>(kind)]),
        from_input_(kind == model::UnaryKind::Gelu) {}

  // The slope of gelu needs its input; of the others, their output.
  Needs needs(std::int64_t, int) const override {
    Needs needs;
    needs.input_in_backward_input = from_input_;
    needs.output_in_backward_input = !from_input_;
    return needs;
  }

  void forward(const ForwardCall& call) const override {
    for_chunks(call.pool, call.y.elements(), kChunkElements, [&](std::int64_t begin, std::int64_t end) {
      forward_(call.x[0].data + begin, call.y.data + begin, end - begin);
    });
  }

  void backward_input(const BackwardInputCall& call) const override {
    if (!call.dx[0]) return;
    const float* operand = from_input_ ? call.x[0].data : call.y.data;
    for_chunks(call.pool, call.dy.elements(), kChunkElements, [&](std::int64_t begin, std::int64_t end) {
      backward_(operand + begin, call.dy.data + begin, call.dx[0].data + begin, end - begin, call.accumulate[0]);
    });
  }

 private:
  void (*forward_)(const float*, float*, std::int64_t);
  void (*backward_)(const float*, const float*, float*, std::int64_t, bool);
  bool from_input_;
};

}  // namespace

std::unique_ptr<Operator> make_unary(const model::Unary& layer, const Site& site) {
  return std::make_unique<UnaryOperator>(layer.kind, site.kernels);
}

}  // namespace trainer::ops
