#include "trainer/runtime/stage_runner.hpp"

#include <algorithm>
#include <cmath>

#include "trainer/core/error.hpp"
#include "trainer/ops/loss.hpp"

namespace trainer::runtime {

namespace {

const model::Node& node_of(const model::Graph& graph, NodeId id) { return graph.nodes[id.index()]; }

bool reads_tokens(const model::Graph& graph, const model::Node& node) {
  return graph.values[node.inputs[0].index()].kind == model::ValueKind::Tokens;
}

}  // namespace

StageRunner::StageRunner(const model::Graph& graph, const plan::LocalGraph& local, const StageLayout& layout,
                         Parameters& parameters, ThreadPool& pool, TensorGroup& tensor)
    : graph_(graph), local_(local), layout_(layout), parameters_(parameters), pool_(pool), tensor_(tensor) {
  for (const NodeLayout& node : layout.nodes) {
    const plan::LocalNode& placed = local.nodes[node.node.index()];
    const model::Node& n = node_of(graph, node.node);
    if (placed.reduce_output) tensor_.book(matrix({}, {}, n.output).elements());
    if (placed.reduce_input_gradient && layout.training) tensor_.book(matrix({}, {}, n.inputs[0]).elements());
  }
}

Matrix StageRunner::matrix(const Frame& frame, Place place, ValueId value) const {
  const model::Value& v = graph_.values[value.index()];
  return {reinterpret_cast<float*>(at(frame, place)), layout_.samples * v.positions,
          local_.values[value.index()].features};
}

void StageRunner::forward(const Frame& frame, const ops::MicroBatch& batch) {
  for (const NodeLayout& node : layout_.nodes) {
    forward_node(node, node.forward, node.forward.workspace, frame, batch);
    step_aside();
  }
  for (const Port& port : layout_.outputs) {
    if (port.value_at == port.value_message) continue;
    std::copy_n(at(frame, port.value_at), port.bytes, at(frame, port.value_message));
  }
}

void StageRunner::forward_node(const NodeLayout& node, const Operands& operands, Place workspace, const Frame& frame,
                               const ops::MicroBatch& batch) {
  const model::Node& n = node_of(graph_, node.node);
  ops::ForwardCall call{.pool = pool_, .batch = batch};
  call.batch.positions = graph_.values[n.inputs[0].index()].positions;
  if (reads_tokens(graph_, n)) {
    call.tokens = {reinterpret_cast<const std::int32_t*>(at(frame, operands.input[0])), call.batch.rows(), 1};
  } else {
    for (std::size_t k = 0; k < n.inputs.size(); ++k) call.x[k] = matrix(frame, operands.input[k], n.inputs[k]);
  }
  const auto& uses = parameters_.layout().of_node[node.node.index()];
  for (std::size_t k = 0; k < uses.size(); ++k) call.parameters[k] = parameters_.weights() + uses[k].weight;
  call.y = matrix(frame, operands.output, n.output);
  call.saved = at(frame, operands.saved);
  call.workspace = at(frame, workspace);
  const Matrix y = call.y;
  const bool reduced = local_.nodes[node.node.index()].reduce_output && tensor_.size() > 1;
  if (reduced) call.y.data = tensor_.partial();
  node.op->forward(call);
  if (reduced) {
    tensor_.start(y.elements());
    tensor_.finish(pool_, y.data, false);
  }
  if (look_ && !found_.valid()) {
    const auto values = y.span();
    if (!std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); })) found_ = node.node;
  }
}

void StageRunner::start_input_gradient(const NodeLayout& node, const Frame& frame, const ops::MicroBatch& batch) {
  const model::Node& n = node_of(graph_, node.node);
  ops::BackwardInputCall call{.pool = pool_, .batch = batch};
  call.batch.positions = graph_.values[n.inputs[0].index()].positions;
  const bool reduced = reduces_input_gradient(node);
  bool wanted = false;
  for (std::size_t k = 0; k < n.inputs.size(); ++k) {
    if (node.input_gradient[k].region == Region::None || node.skip_gradient[k]) continue;
    wanted = true;
    call.dx[k] = matrix(frame, node.input_gradient[k], n.inputs[k]);
    call.accumulate[k] = node.accumulate[k] && !reduced;
    if (reduced) call.dx[k].data = tensor_.partial();
  }
  if (!wanted && !node.needs.always_backward_input) return;
  for (std::size_t k = 0; k < n.inputs.size(); ++k) call.x[k] = matrix(frame, node.backward.input[k], n.inputs[k]);
  call.y = matrix(frame, node.backward.output, n.output);
  call.dy = matrix(frame, node.output_gradient, n.output);
  const auto& uses = parameters_.layout().of_node[node.node.index()];
  for (std::size_t k = 0; k < uses.size(); ++k) call.parameters[k] = parameters_.weights() + uses[k].weight;
  call.saved = at(frame, node.backward.saved);
  call.workspace = at(frame, node.backward.workspace);
  node.op->backward_input(call);
  if (reduced) tensor_.start(call.dx[0].elements());
}

void StageRunner::finish_input_gradient(const NodeLayout& node, const Frame& frame) {
  if (!reduces_input_gradient(node) || node.input_gradient[0].region == Region::None) return;
  const ValueId v = node_of(graph_, node.node).inputs[0];
  tensor_.finish(pool_, matrix(frame, node.input_gradient[0], v).data, node.accumulate[0]);
}

void StageRunner::weight_gradient(const NodeLayout& node, const Frame& frame, const ops::MicroBatch& batch,
                                  bool accumulate) {
  if (!node.needs.has_weight) return;
  const model::Node& n = node_of(graph_, node.node);
  ops::BackwardWeightCall call{.pool = pool_, .batch = batch};
  call.batch.positions = graph_.values[n.inputs[0].index()].positions;
  if (reads_tokens(graph_, n)) {
    call.tokens = {reinterpret_cast<const std::int32_t*>(at(frame, node.backward.input[0])), call.batch.rows(), 1};
  } else {
    for (std::size_t k = 0; k < n.inputs.size(); ++k) call.x[k] = matrix(frame, node.backward.input[k], n.inputs[k]);
  }
  call.dy = matrix(frame, node.output_gradient, n.output);
  const auto& uses = parameters_.layout().of_node[node.node.index()];
  for (std::size_t k = 0; k < uses.size(); ++k) {
    call.parameters[k] = parameters_.weights() + uses[k].weight;
    call.gradients[k] = parameters_.gradients() + uses[k].gradient;
  }
  call.saved = at(frame, node.backward.saved);
  call.accumulate = accumulate;
  call.workspace = at(frame, node.backward.workspace);
  node.op->backward_weight(call);
  if (weight_done) weight_done(node.node);
}

void StageRunner::fill_gradient_messages(const Frame& frame) {
  for (const Port& port : layout_.inputs) {
    if (port.gradient_at == port.gradient_message) continue;
    std::copy_n(at(frame, port.gradient_at), port.bytes, at(frame, port.gradient_message));
  }
}

void StageRunner::backward_input(const Frame& frame, const ops::MicroBatch& batch) {
  for (const BackwardStep& step : layout_.backward) {
    const NodeLayout& node = layout_.nodes[step.node];
    if (step.recompute) {
      forward_node(node, node.backward, node.recompute_workspace, frame, batch);
    } else {
      start_input_gradient(node, frame, batch);
      finish_input_gradient(node, frame);
    }
    step_aside();
  }
  fill_gradient_messages(frame);
}

void StageRunner::backward_weight(const Frame& frame, const ops::MicroBatch& batch, bool accumulate) {
  for (auto node = layout_.nodes.rbegin(); node != layout_.nodes.rend(); ++node) {
    weight_gradient(*node, frame, batch, accumulate);
    step_aside();
  }
}

void StageRunner::backward(const Frame& frame, const ops::MicroBatch& batch, bool accumulate) {
  for (const BackwardStep& step : layout_.backward) {
    const NodeLayout& node = layout_.nodes[step.node];
    if (step.recompute) {
      forward_node(node, node.backward, node.recompute_workspace, frame, batch);
    } else {
      start_input_gradient(node, frame, batch);
      step_aside();
      weight_gradient(node, frame, batch, accumulate);
      finish_input_gradient(node, frame);
    }
    step_aside();
  }
  fill_gradient_messages(frame);
}

LossResult StageRunner::loss(const Frame& frame, const LossRequest& request) {
  const model::Op& op = graph_.nodes.back().op;
  return std::holds_alternative<model::CrossEntropy>(op) ? cross_entropy(frame, request)
                                                         : squared_error(frame, request);
}

LossResult StageRunner::cross_entropy(const Frame& frame, const LossRequest& request) {
  const LossLayout& loss = layout_.loss;
  const auto& op = std::get<model::CrossEntropy>(local_.nodes.back().op);
  const Matrix logits = matrix(frame, loss.logits, graph_.nodes.back().inputs[0]);
  const auto* targets = reinterpret_cast<const std::int32_t*>(at(frame, loss.target));
  auto* maxima = reinterpret_cast<float*>(at(frame, loss.maxima));
  auto* sums = reinterpret_cast<float*>(at(frame, loss.sums));
  auto* losses = reinterpret_cast<float*>(at(frame, loss.losses));
  const auto rows = static_cast<std::size_t>(logits.rows);
  // Sums over tensor ranks pass through double, in rank order.
  const std::span<double> wide(reinterpret_cast<double*>(at(frame, loss.wide)), 2 * rows);
  const bool over_ranks = local_.loss_sharded && tensor_.size() > 1;

  LossResult result;
  if (request.count_hits) result.hits = count_hits(frame, logits, targets);
  ops::cross_entropy_max(pool_, logits, maxima);
  if (over_ranks) {
    std::copy_n(maxima, rows, wide.begin());
    tensor_.ranks().max(wide.first(rows));
    for (std::size_t i = 0; i < rows; ++i) maxima[i] = static_cast<float>(wide[i]);
  }
  ops::cross_entropy_sums(pool_, logits, maxima, targets, op.class_begin, request.scale != 0, sums);
  if (over_ranks) {
    std::copy_n(sums, 2 * rows, wide.begin());
    tensor_.ranks().sum(wide);
    for (std::size_t i = 0; i < 2 * rows; ++i) sums[i] = static_cast<float>(wide[i]);
  }
  ops::cross_entropy_finish(pool_, logits, sums, targets, op.class_begin, request.scale, losses);
  result.loss = ops::ordered_sum(losses, logits.rows);
  return result;
}

std::int64_t StageRunner::count_hits(const Frame& frame, ConstMatrix logits, const std::int32_t* targets) {
  const auto& op = std::get<model::CrossEntropy>(local_.nodes.back().op);
  auto* best = reinterpret_cast<float*>(at(frame, layout_.loss.maxima));
  auto* classes = reinterpret_cast<std::int32_t*>(at(frame, layout_.loss.classes));
  ops::row_argmax(pool_, logits, op.class_begin, best, classes);
  const auto rows = static_cast<std::size_t>(logits.rows);
  if (local_.loss_sharded && tensor_.size() > 1) {
    const std::span<double> wide(reinterpret_cast<double*>(at(frame, layout_.loss.wide)), 2 * rows);
    std::copy_n(best, rows, wide.begin());
    tensor_.ranks().max(wide.first(rows));
    // Among ranks that hold the maximum the lowest class wins: the largest negated one.
    for (std::size_t i = 0; i < rows; ++i) {
      wide[i] = static_cast<double>(best[i]) == wide[i] ? -static_cast<double>(classes[i]) : -1e18;
    }
    tensor_.ranks().max(wide.first(rows));
    for (std::size_t i = 0; i < rows; ++i) classes[i] = static_cast<std::int32_t>(-wide[i]);
  }
  std::int64_t hits = 0;
  for (std::size_t i = 0; i < rows; ++i) hits += targets[i] >= 0 && classes[i] == targets[i] ? 1 : 0;
  return hits;
}

LossResult StageRunner::squared_error(const Frame& frame, const LossRequest& request) {
  const LossLayout& loss = layout_.loss;
  const Matrix predictions = matrix(frame, loss.logits, graph_.nodes.back().inputs[0]);
  const ConstMatrix targets{reinterpret_cast<const float*>(at(frame, loss.target)), predictions.rows,
                            predictions.features};
  auto* losses = reinterpret_cast<float*>(at(frame, loss.losses));
  ops::squared_error(pool_, predictions, targets, request.valid, request.scale, losses);
  return {ops::ordered_sum(losses, predictions.rows), 0};
}

}  // namespace trainer::runtime
