// From a node of the graph to its operator: one row a kind of layer.
#include <string>
#include <variant>

#include "layers.hpp"
#include "trainer/core/error.hpp"

namespace trainer::ops {

namespace {

struct Maker {
  Site site;

  using Made = std::unique_ptr<Operator>;
  Made operator()(const model::Embedding& layer) const { return make_embedding(layer, site); }
  Made operator()(const model::PositionEmbedding& layer) const { return make_position_embedding(layer, site); }
  Made operator()(const model::Linear& layer) const { return make_linear(layer, site); }
  Made operator()(const model::LayerNorm& layer) const { return make_layer_norm(layer, site); }
  Made operator()(const model::Attention& layer) const { return make_attention(layer, site); }
  Made operator()(const model::Unary& layer) const { return make_unary(layer, site); }
  Made operator()(const model::Dropout& layer) const { return make_dropout(layer, site); }
  Made operator()(const model::Delay& layer) const { return make_delay(layer, site); }
  Made operator()(const model::Add& layer) const { return make_add(layer, site); }
  Made operator()(const model::Flatten& layer) const { return make_flatten(layer, site); }
  Made operator()(const model::CrossEntropy&) const { return refuse(); }
  Made operator()(const model::MeanSquaredError&) const { return refuse(); }

  Made refuse() const { internal_error("the loss '" + site.name + "' was asked for as an operator"); }
};

}  // namespace

void Operator::backward_weight(const BackwardWeightCall&) const {}

std::unique_ptr<Operator> make_operator_with(const model::Node& node, std::int64_t positions, const Kernels& kernels,
                                             MatmulPrecision precision) {
  return std::visit(Maker{{node.name, positions, kernels, precision}}, node.op);
}

std::unique_ptr<Operator> make_operator(const model::Node& node, std::int64_t positions, MatmulPrecision precision) {
  return make_operator_with(node, positions, best_kernels(), precision);
}

}  // namespace trainer::ops
