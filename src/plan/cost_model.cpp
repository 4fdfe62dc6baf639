// The arithmetic of costs.
#include "trainer/plan/cost_model.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <optional>
#include <tuple>

namespace trainer::plan {

namespace {

using model::Graph;

// ---- signatures ---------------------------------------------------------------------------------------------------

struct OpText {
  std::string operator()(const model::Embedding& op) const {
    return fmt::format("embedding({},{})", op.vocab, op.features);
  }
  std::string operator()(const model::PositionEmbedding& op) const { return fmt::format("positions({})", op.features); }
  std::string operator()(const model::Linear& op) const {
    return fmt::format("linear({},{}{})", op.in, op.out, op.bias ? "" : ",no bias");
  }
  std::string operator()(const model::LayerNorm& op) const { return fmt::format("norm({})", op.features); }
  std::string operator()(const model::Attention& op) const {
    return fmt::format("attention({}x{}{})", op.heads, op.head_size, op.dropout > 0 ? ",dropout" : "");
  }
  std::string operator()(const model::Unary& op) const {
    constexpr const char* kNames[] = {"gelu", "relu", "tanh", "sigmoid"};
    return fmt::format("{}({})", kNames[static_cast<int>(op.kind)], op.features);
  }
  std::string operator()(const model::Dropout& op) const { return fmt::format("dropout({})", op.features); }
  std::string operator()(const model::Add& op) const { return fmt::format("add({})", op.features); }
  std::string operator()(const model::Flatten& op) const { return fmt::format("flatten({})", op.features); }
  std::string operator()(const model::Delay& op) const {
    return fmt::format("delay({},{},{})", op.forward_ms, op.backward_input_ms, op.backward_weight_ms);
  }
  std::string operator()(const model::CrossEntropy& op) const { return fmt::format("cross_entropy({})", op.classes); }
  std::string operator()(const model::MeanSquaredError& op) const { return fmt::format("mse({})", op.features); }
};

// ---- estimates ----------------------------------------------------------------------------------------------------

// Shares of a core's peak that products reach: operands are packed, so small extents cost more than they compute.
double product_efficiency(double rows, double in, double out) {
  return 0.85 * rows / (rows + 8) * in / (in + 16) * out / (out + 8);
}
constexpr double kAttentionEfficiency = 0.45;
constexpr double kBFloat16Speed = 1.75;  // of products, over float32

struct NodeShape {
  double rows = 0;         // of a micro-batch
  double in = 0;           // features of the first input, on this rank
  double out = 0;          // of the output; the loss: of its input
  bool from_data = false;  // no gradient flows back
};

class Estimator {
 public:
  Estimator(const CostModel& costs, double rate) : costs_(costs), rate_(rate) {}

  PassSeconds operator()(const model::Node& node, const NodeShape& shape) const {
    const auto* linear = std::get_if<model::Linear>(&node.op);
    PassSeconds seconds;
    if (linear != nullptr) {
      const double flops = 2 * shape.rows * static_cast<double>(linear->in) * static_cast<double>(linear->out);
      const double efficiency =
          product_efficiency(shape.rows, static_cast<double>(linear->in), static_cast<double>(linear->out));
      seconds.forward = flops / (rate_ * efficiency);
      seconds.backward_input = shape.from_data ? 0 : seconds.forward;
      seconds.backward_weight = seconds.forward;
    } else if (const auto* attention = std::get_if<model::Attention>(&node.op)) {
      const double t = static_cast<double>(positions);
      const double width = static_cast<double>(attention->heads * attention->head_size);
      seconds.forward = 4 * shape.rows * (t + 1) / 2 * width / (rate_ * kAttentionEfficiency);
      seconds.backward_input = 2.5 * seconds.forward;  // two products more, and the scores again
    } else if (const auto* delay = std::get_if<model::Delay>(&node.op)) {
      seconds.forward = 1e-3 * delay->forward_ms;
      seconds.backward_input = 1e-3 * delay->backward_input_ms;
      seconds.backward_weight = 1e-3 * delay->backward_weight_ms;
    } else {
      const double pass = sizeof(float) * shape.rows * (shape.in + shape.out) / bandwidth();
      seconds.forward = pass;
      seconds.backward_input = shape.from_data ? 0 : 1.5 * pass;
      if (!node.parameters.empty()) seconds.backward_weight = pass;
    }
    seconds.backward = seconds.backward_input + seconds.backward_weight;
    return seconds;
  }

  std::int64_t positions = 1;

 private:
  double bandwidth() const { return costs_.memory_bandwidth * static_cast<double>(costs_.machine.threads); }
  const CostModel& costs_;
  const double rate_;
};

// ---- measured pieces ----------------------------------------------------------------------------------------------

PassSeconds mix(const PassSeconds& a, const PassSeconds& b, double weight) {
  PassSeconds result = a * (1 - weight);
  result += b * weight;
  return result;
}

// Of the pieces [begin, end), which differ in samples only. By a line between the sizes around `samples`, in proportion
// beyond the largest. Below the smallest: towards half of its time at no samples at all, as small products waste more.
using Pieces = std::vector<MeasuredPiece>::const_iterator;
PassSeconds between_sizes(Pieces begin, Pieces end, std::int64_t samples) {
  const auto above =
      std::find_if(begin, end, [samples](const MeasuredPiece& piece) { return piece.samples >= samples; });
  const auto size = static_cast<double>(samples);
  if (above == end) return (end - 1)->seconds * (size / static_cast<double>((end - 1)->samples));
  const auto b = static_cast<double>(above->samples);
  if (above == begin) return above->seconds * (0.5 + 0.5 * size / b);
  const auto a = static_cast<double>((above - 1)->samples);
  return mix((above - 1)->seconds, above->seconds, (size - a) / (b - a));
}

// In stages of the same number, or the one nearest by its ratio.
std::optional<PassSeconds> measured_seconds(const CostModel& costs, const std::string& piece, const PieceSize& size) {
  const auto wanted = std::tie(piece, size.tensor);
  const auto of = [](const MeasuredPiece& m) { return std::tie(m.piece, m.tensor); };
  const auto begin = std::lower_bound(costs.pieces.begin(), costs.pieces.end(), wanted,
                                      [&](const MeasuredPiece& m, const auto& key) { return of(m) < key; });
  std::optional<PassSeconds> nearest;
  double least = 0;
  for (auto at = begin; at != costs.pieces.end() && of(*at) == wanted;) {
    auto next = at;
    while (next != costs.pieces.end() && of(*next) == wanted && next->pipeline == at->pipeline) ++next;
    const double ratio = std::log2(static_cast<double>(at->pipeline) / static_cast<double>(size.pipeline));
    if (!nearest || std::abs(ratio) < least) {
      nearest = between_sizes(at, next, size.samples);
      least = std::abs(ratio);
    }
    at = next;
  }
  return nearest;
}

// Elements of one sample that cross the boundary before each node, [node] and past the last.
std::vector<double> crossing_elements(const Graph& graph, const LocalGraph& local) {
  std::vector<std::int64_t> producer(graph.values.size(), -1);
  std::vector<std::int64_t> last_use(graph.values.size(), -1);
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    const model::Node& node = graph.nodes[i];
    if (node.output.valid()) producer[node.output.index()] = static_cast<std::int64_t>(i);
    for (const ValueId v : node.inputs) last_use[v.index()] = static_cast<std::int64_t>(i);
  }
  std::vector<double> change(graph.nodes.size() + 2, 0.0);
  for (std::size_t v = 0; v < graph.values.size(); ++v) {
    if (producer[v] < 0 || last_use[v] <= producer[v]) continue;
    const auto elements = static_cast<double>(graph.values[v].positions * local.values[v].features);
    change[static_cast<std::size_t>(producer[v] + 1)] += elements;
    change[static_cast<std::size_t>(last_use[v] + 1)] -= elements;
  }
  std::partial_sum(change.begin(), change.end(), change.begin());
  return change;
}

}  // namespace

double Curve::at(double size) const {
  if (points.empty()) return 0;
  if (size <= points.front().first) return size <= 0 ? 0 : points.front().second;
  for (std::size_t i = 1; i < points.size(); ++i) {
    const auto& [a, at_a] = points[i - 1];
    const auto& [b, at_b] = points[i];
    if (size <= b) return at_a + (at_b - at_a) * (size - a) / (b - a);
  }
  return points.back().second * size / points.back().first;
}

PassSeconds& PassSeconds::operator+=(const PassSeconds& other) {
  forward += other.forward;
  backward_input += other.backward_input;
  backward_weight += other.backward_weight;
  backward += other.backward;
  sums += other.sums;
  return *this;
}

PassSeconds PassSeconds::operator*(double factor) const {
  return {forward * factor, backward_input * factor, backward_weight * factor, backward * factor, sums * factor};
}

CostModel estimated_costs(double core_flops, std::int64_t threads) {
  CostModel costs;
  costs.core_flops = core_flops;
  costs.machine.threads = threads;
  const double elements = 1e6;
  const double bandwidth = costs.memory_bandwidth * static_cast<double>(threads);
  costs.optimizer.points = {{elements, 7 * sizeof(float) * elements / bandwidth}};  // AdamW: reads 4, writes 3
  costs.norm.points = {{elements, sizeof(float) * elements / bandwidth}};
  costs.sum.points = {{elements, sizeof(float) * elements / bandwidth}};
  costs.agreement.points = {{1000, 20e-6}};
  costs.action = 2e-6;
  return costs;
}

std::string signature(const Graph& graph, const model::Unit& piece) {
  const model::Node& first = graph.nodes[static_cast<std::size_t>(piece.node_begin)];
  std::string text = fmt::format("{}:", graph.values[first.inputs[0].index()].positions);
  if (first.inputs[0] == graph.input) text += " data";
  for (std::int64_t i = piece.node_begin; i < piece.node_end; ++i) {
    const model::Node& node = graph.nodes[static_cast<std::size_t>(i)];
    text += ' ' + std::visit(OpText{}, node.op);
  }
  return text;
}

PassSeconds estimated_seconds(const CostModel& costs, const Graph& graph, const LocalGraph& local, Range nodes,
                              std::int64_t samples, bool bfloat16) {
  Estimator estimate(costs, costs.rank_flops() * (bfloat16 ? kBFloat16Speed : 1.0));
  PassSeconds sum;
  for (std::int64_t i = nodes.begin; i < nodes.end; ++i) {
    model::Node node = graph.nodes[static_cast<std::size_t>(i)];
    node.op = local.nodes[static_cast<std::size_t>(i)].op;
    const ValueId in = node.inputs[0];
    const ValueId out = node.output.valid() ? node.output : in;
    estimate.positions = graph.values[in.index()].positions;
    sum += estimate(node, {.rows = static_cast<double>(samples * estimate.positions),
                           .in = static_cast<double>(local.values[in.index()].features),
                           .out = static_cast<double>(local.values[out.index()].features),
                           .from_data = in == graph.input});
  }
  return sum;
}

double sum_seconds(const CostModel& costs, double elements, std::int64_t ranks, bool one_node) {
  if (ranks <= 1 || elements <= 0) return 0;
  const auto n = static_cast<double>(ranks);
  if (one_node) return costs.within.latency + costs.sum.at(elements * (n + 1));
  return 2 * costs.between.latency * std::ceil(std::log2(n)) +
         2 * (n - 1) / n * sizeof(float) * elements / costs.between.bandwidth + costs.sum.at(3 * elements);
}

PassSeconds tensor_sums(const CostModel& costs, const Graph& graph, const LocalGraph& local, Range nodes,
                        std::int64_t samples, std::int64_t tensor, bool one_node) {
  PassSeconds seconds;
  for (std::int64_t i = nodes.begin; i < nodes.end; ++i) {
    const LocalNode& node = local.nodes[static_cast<std::size_t>(i)];
    const model::Node& global = graph.nodes[static_cast<std::size_t>(i)];
    const auto sum_of = [&](ValueId v) {
      const auto elements =
          static_cast<double>(samples * graph.values[v.index()].positions * local.values[v.index()].features);
      return sum_seconds(costs, elements, tensor, one_node);
    };
    if (node.reduce_output) seconds.forward += sum_of(global.output);
    if (node.reduce_input_gradient) seconds.backward_input += sum_of(global.inputs[0]);
  }
  seconds.backward = seconds.backward_input;
  seconds.sums = seconds.forward + seconds.backward_input;
  return seconds;
}

PieceCosts::PieceCosts(const CostModel& costs, const Graph& graph, const PieceSize& size, bool tensor_on_one_node,
                       bool bfloat16)
    : graph_(graph),
      local_(shard(graph, size.tensor, 0)),
      size_(size),
      copy_bandwidth_(costs.within.bandwidth),
      action_(costs.action),
      crossing_(crossing_elements(graph, local_)),
      prefix_(1) {
  const LocalGraph undivided = size.tensor == 1 ? local_ : shard(graph, 1, 0);
  std::map<std::string, std::pair<PassSeconds, bool>> known;  // by signature; whether it was measured
  double total = 0;
  double measured = 0;
  for (const model::Unit& piece : graph.pieces) {
    const std::string text = signature(graph, piece);
    auto found = known.find(text);
    if (found == known.end()) {
      std::optional<PassSeconds> seconds;
      if (tensor_on_one_node) seconds = measured_seconds(costs, text, size);
      const bool is_measured = seconds.has_value();
      if (!seconds) seconds = estimate(costs, undivided, piece, tensor_on_one_node, bfloat16);
      found = known.emplace(text, std::make_pair(*seconds, is_measured)).first;
    }
    const auto& [seconds, is_measured] = found->second;
    total += seconds.forward;
    if (is_measured) measured += seconds.forward;
    std::vector<double> shares;
    for (std::int64_t i = piece.node_begin; i < piece.node_end; ++i) {
      shares.push_back(estimated_seconds(costs, graph, local_, {i, i + 1}, size.samples, bfloat16).forward);
    }
    const double whole = std::accumulate(shares.begin(), shares.end(), 0.0);
    for (const double share : shares) forward_.push_back(whole > 0 ? seconds.forward * share / whole : 0);
    pieces_.push_back(seconds);
    prefix_.push_back(prefix_.back());
    prefix_.back() += seconds;
  }
  measured_share_ = total > 0 ? measured / total : 0;
}

// What one rank takes alone, where only the undivided piece was measured scaled by what the estimate says of the
// division, and the sums.
PassSeconds PieceCosts::estimate(const CostModel& costs, const LocalGraph& undivided, const model::Unit& piece,
                                 bool tensor_on_one_node, bool bfloat16) const {
  const Range nodes{piece.node_begin, piece.node_end};
  PassSeconds seconds = estimated_seconds(costs, graph_, local_, nodes, size_.samples, bfloat16);
  if (size_.tensor > 1) {
    if (const auto whole = measured_seconds(costs, signature(graph_, piece), {size_.samples, 1, size_.pipeline})) {
      const double alone = estimated_seconds(costs, graph_, undivided, nodes, size_.samples, bfloat16).forward;
      if (alone > 0) seconds = *whole * (seconds.forward / alone);
    }
  }
  seconds.sums = 0;
  seconds += tensor_sums(costs, graph_, local_, nodes, size_.samples, size_.tensor, tensor_on_one_node);
  return seconds;
}

double PieceCosts::forward_of(Range nodes, const std::vector<NodeId>& some) const {
  double sum = 0;
  for (const NodeId node : some) {
    if (node.value >= nodes.begin && node.value < nodes.end) sum += forward_[node.index()];
  }
  return sum;
}

double PieceCosts::boundary_bytes(std::int64_t node) const {
  return sizeof(float) * static_cast<double>(size_.samples) * crossing_[static_cast<std::size_t>(node)];
}

PassSeconds PieceCosts::stage(Range nodes) const {
  const auto piece_at = [&](std::int64_t node) {
    std::size_t i = 0;
    while (i < graph_.pieces.size() && graph_.pieces[i].node_begin < node) ++i;
    return i;
  };
  const std::size_t begin = piece_at(nodes.begin);
  const std::size_t end = piece_at(nodes.end);
  PassSeconds seconds = prefix_[end];
  seconds += prefix_[begin] * -1.0;
  // Who receives a message copies it out of the sender's memory.
  const bool first = nodes.begin == 0;
  const bool last = nodes.end == static_cast<std::int64_t>(graph_.nodes.size());
  const double in = first ? 0 : boundary_bytes(nodes.begin) / copy_bandwidth_;
  const double out = last ? 0 : boundary_bytes(nodes.end) / copy_bandwidth_;
  seconds.forward += in + action_;
  seconds.backward_input += out + action_;
  seconds.backward_weight += action_;
  seconds.backward += out + action_;
  return seconds;
}

std::vector<schedule::StageTimes> simulator_times(const schedule::Schedule& table,
                                                  const std::vector<PassSeconds>& stages) {
  std::vector<bool> joint(stages.size(), false);
  for (const auto& row : table.ranks) {
    for (const schedule::Action& action : row) {
      if (action.kind == schedule::ActionKind::Backward) joint[action.stage.index()] = true;
    }
  }
  std::vector<schedule::StageTimes> times;
  for (std::size_t s = 0; s < stages.size(); ++s) {
    const PassSeconds& stage = stages[s];
    const double apart = stage.backward_input + stage.backward_weight;
    const double scale = joint[s] && apart > 0 ? stage.backward / apart : 1;
    times.push_back({stage.forward, stage.backward_input * scale, stage.backward_weight * scale});
  }
  return times;
}

}  // namespace trainer::plan
