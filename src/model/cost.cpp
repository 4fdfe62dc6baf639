// Arithmetic of a node: multiply-adds of matrix products, which is what a "share of peak" means in this field.
#include "trainer/model/graph.hpp"

namespace trainer::model {

NodeCost cost(const Node& node, const Graph& graph) {
  NodeCost cost;
  if (const auto* linear = std::get_if<Linear>(&node.op)) {
    const double rows = static_cast<double>(graph.values[node.inputs[0].index()].positions);
    cost.forward = 2.0 * rows * static_cast<double>(linear->in) * static_cast<double>(linear->out);
    cost.backward_input = node.inputs[0] == graph.input ? 0.0 : cost.forward;  // data has no gradient
    cost.backward_weight = cost.forward;
  } else if (const auto* attention = std::get_if<Attention>(&node.op)) {
    // Two products over the causal half, T(T+1)/2 pairs; four in the backward. Recomputed scores are not counted.
    const double t = static_cast<double>(graph.values[node.inputs[0].index()].positions);
    const double pairs = t * (t + 1.0) / 2.0;
    cost.forward = 4.0 * pairs * static_cast<double>(attention->heads * attention->head_size);
    cost.backward_input = 2.0 * cost.forward;
  }
  return cost;
}

std::int64_t parameter_elements(const Graph& graph) {
  std::int64_t elements = 0;
  for (const Parameter& parameter : graph.parameters) elements += parameter.shape.elements();
  return elements;
}

}  // namespace trainer::model
