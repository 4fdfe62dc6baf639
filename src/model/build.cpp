// From the configuration to the graph: one builder that walks written layers, and the two named architectures on top of
// it.
#include <fmt/format.h>

#include <cmath>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "trainer/core/error.hpp"
#include "trainer/model/graph.hpp"

namespace trainer::model {

namespace {

using config::LayerConfig;

[[noreturn]] void usage(const std::string& message) { throw Error(ExitCode::Usage, message); }

// Grows a graph node by node; `at` is the value that the next layer reads.
class Builder {
 public:
  explicit Builder(std::int64_t positions) { graph_.positions = positions; }

  ValueId add_value(std::string name, ValueKind kind, std::int64_t positions, std::int64_t features) {
    graph_.values.push_back({std::move(name), kind, positions, features});
    return ValueId(static_cast<std::int64_t>(graph_.values.size()) - 1);
  }

  ParameterId parameter(const std::string& name, Shape shape, Init init, bool decay) {
    const auto [found, is_new] = by_name_.try_emplace(name, static_cast<std::int64_t>(graph_.parameters.size()));
    if (is_new) graph_.parameters.push_back({name, shape, init, decay});
    return found->second;
  }

  /// Appends a node that reads `inputs` and gives a value of `positions` × `features` under the node's name.
  ValueId node(const std::string& name, Op op, std::vector<ValueId> inputs, std::int64_t positions,
               std::int64_t features, std::vector<ParameterId> parameters = {}) {
    const ValueId output = add_value(name, ValueKind::Real, positions, features);
    graph_.nodes.push_back({name, op, std::move(inputs), output, std::move(parameters)});
    return output;
  }

  void begin_unit() { unit_begin_ = piece_begin_ = static_cast<std::int64_t>(graph_.nodes.size()); }
  void end_piece(std::string name) {
    const auto end = static_cast<std::int64_t>(graph_.nodes.size());
    graph_.pieces.push_back({std::move(name), piece_begin_, end});
    piece_begin_ = end;
  }
  /// The last piece of a unit that is not parted has its name.
  void end_unit(const std::string& name, const std::string& last_piece = {}) {
    end_piece(last_piece.empty() ? name : last_piece);
    graph_.units.push_back({name, unit_begin_, piece_begin_});
  }

  ValueId linear(const std::string& name, ValueId x, std::int64_t out, bool bias, Init weight, Init bias_init) {
    const std::int64_t in = value(x).features;
    std::vector<ParameterId> parameters{parameter(name + ".weight", {out, in}, weight, true)};
    if (bias) parameters.push_back(parameter(name + ".bias", {out}, bias_init, false));
    return node(name, Linear{in, out, bias, bias}, {x}, value(x).positions, out, parameters);
  }

  ValueId layer_norm(const std::string& name, ValueId x, double eps) {
    const std::int64_t features = value(x).features;
    const ParameterId weight = parameter(name + ".weight", {features}, {InitKind::One, 0}, false);
    const ParameterId bias = parameter(name + ".bias", {features}, {InitKind::Zero, 0}, false);
    return node(name, LayerNorm{features, eps}, {x}, value(x).positions, features, {weight, bias});
  }

  ValueId unary(const std::string& name, ValueId x, UnaryKind kind) {
    return node(name, Unary{kind, value(x).features}, {x}, value(x).positions, value(x).features);
  }

  /// Nothing is added for probability 0.
  ValueId dropout(const std::string& name, ValueId x, double probability) {
    if (probability == 0) return x;
    const std::int64_t features = value(x).features;
    return node(name, Dropout{features, 0, features, probability}, {x}, value(x).positions, features);
  }

  ValueId add(const std::string& name, ValueId a, ValueId b) {
    return node(name, Add{value(a).features}, {a, b}, value(a).positions, value(a).features);
  }

  /// Projection to q|k|v, attention by heads, projection back: names NAME.c_attn, NAME, NAME.c_proj.
  ValueId attention(const std::string& name, ValueId x, std::int64_t heads, double drop, bool bias, Init weight,
                    Init projection, Init bias_init) {
    const std::int64_t hidden = value(x).features;
    const ValueId qkv = linear(name + ".c_attn", x, 3 * hidden, bias, weight, bias_init);
    const ValueId mixed =
        node(name, Attention{heads, 0, heads, hidden / heads, drop}, {qkv}, value(x).positions, hidden);
    return linear(name + ".c_proj", mixed, hidden, bias, projection, bias_init);
  }

  const Value& value(ValueId id) const { return graph_.values[id.index()]; }
  Graph& graph() { return graph_; }

 private:
  Graph graph_;
  std::map<std::string, ParameterId> by_name_;
  std::int64_t unit_begin_ = 0, piece_begin_ = 0;
};

UnaryKind unary_kind(config::Activation activation) {
  switch (activation) {
    case config::Activation::Gelu:
      return UnaryKind::Gelu;
    case config::Activation::Relu:
      return UnaryKind::Relu;
    case config::Activation::Tanh:
      return UnaryKind::Tanh;
    case config::Activation::Sigmoid:
      return UnaryKind::Sigmoid;
  }
  internal_error("an unknown activation");
}

// As PyTorch's nn.Linear: weight and bias uniform in ±1/√in.
Init linear_init(std::int64_t in) { return {InitKind::Uniform, 1.0 / std::sqrt(static_cast<double>(in))}; }

ValueId build_gpt(Builder& b, const config::GptModel& m, ValueId tokens) {
  const Init normal{InitKind::Normal, 0.02};
  const Init residual{InitKind::Normal, 0.02 / std::sqrt(2.0 * static_cast<double>(m.num_layers))};
  const Init zero{InitKind::Zero, 0};
  const std::int64_t positions = b.graph().positions;

  b.begin_unit();
  const ParameterId wte = b.parameter("wte.weight", {m.vocab_size, m.hidden_size}, normal, true);
  ValueId x = b.node("wte", Embedding{m.vocab_size, 0, m.hidden_size}, {tokens}, positions, m.hidden_size, {wte});
  const ParameterId wpe = b.parameter("wpe.weight", {m.context_length, m.hidden_size}, normal, true);
  x = b.node("wpe", PositionEmbedding{m.context_length, m.hidden_size}, {x}, positions, m.hidden_size, {wpe});
  x = b.dropout("drop", x, m.dropout);
  b.end_unit("embedding");

  for (std::int64_t i = 0; i < m.num_layers; ++i) {
    const std::string h = fmt::format("h.{}", i);
    b.begin_unit();
    ValueId y = b.layer_norm(h + ".ln_1", x, 1e-5);
    y = b.attention(h + ".attn", y, m.num_heads, m.dropout, true, normal, residual, zero);
    y = b.dropout(h + ".attn.dropout", y, m.dropout);
    x = b.add(h + ".attn.residual", x, y);
    b.end_piece(h + ".attn");
    y = b.layer_norm(h + ".ln_2", x, 1e-5);
    y = b.linear(h + ".mlp.c_fc", y, 4 * m.hidden_size, true, normal, zero);
    y = b.unary(h + ".mlp.gelu", y, UnaryKind::Gelu);
    y = b.linear(h + ".mlp.c_proj", y, m.hidden_size, true, residual, zero);
    y = b.dropout(h + ".mlp.dropout", y, m.dropout);
    x = b.add(h + ".mlp.residual", x, y);
    b.end_unit(h, h + ".mlp");
  }

  b.begin_unit();
  x = b.layer_norm("ln_f", x, 1e-5);
  const ParameterId head =
      m.tie_embeddings ? wte : b.parameter("lm_head.weight", {m.vocab_size, m.hidden_size}, normal, true);
  return b.node("lm_head", Linear{m.hidden_size, m.vocab_size, false, false}, {x}, positions, m.vocab_size, {head});
}

ValueId build_mlp(Builder& b, const config::MlpModel& m, ValueId x) {
  std::int64_t i = 0;
  for (const std::int64_t width : m.hidden_sizes) {
    const std::string name = fmt::format("layers.{}", i++);
    const Init init = linear_init(b.value(x).features);
    b.begin_unit();
    x = b.linear(name, x, width, true, init, init);
    x = b.unary(name + ".activation", x, unary_kind(m.activation));
    b.end_unit(name);
  }
  const Init init = linear_init(b.value(x).features);
  b.begin_unit();
  return b.linear(fmt::format("layers.{}", i), x, m.output_size, true, init, init);
}

// Written layers: sizes that were written must agree with what flows in.
class Sequential {
 public:
  Sequential(Builder& builder) : b_(builder) {}

  ValueId layer(const LayerConfig& layer, const std::string& name, ValueId x) {
    using Type = LayerConfig::Type;
    if (layer.type == Type::Embedding) return embedding(layer, name, x);
    if (b_.value(x).kind == ValueKind::Tokens) {
      usage(
          fmt::format("{}: reads tokens, which only an \"embedding\" layer can; make it the first layer", layer.path));
    }
    switch (layer.type) {
      case Type::Linear:
        return linear(layer, name, x);
      case Type::PositionEmbedding:
        return position_embedding(layer, name, x);
      case Type::LayerNorm:
        return b_.layer_norm(name, x, layer.eps);
      case Type::Attention:
        return attention(layer, name, x);
      case Type::Gelu:
        return b_.unary(name, x, UnaryKind::Gelu);
      case Type::Relu:
        return b_.unary(name, x, UnaryKind::Relu);
      case Type::Tanh:
        return b_.unary(name, x, UnaryKind::Tanh);
      case Type::Sigmoid:
        return b_.unary(name, x, UnaryKind::Sigmoid);
      case Type::Dropout:
        return b_.dropout(name, x, layer.probability);
      case Type::Delay:
        return delay(layer, name, x);
      case Type::Residual:
        return residual(layer, name, x);
      case Type::Flatten:
        return flatten(name, x);
      case Type::Embedding:
        break;
    }
    internal_error("an unknown layer type");
  }

 private:
  ValueId linear(const LayerConfig& layer, const std::string& name, ValueId x) {
    const std::int64_t in = b_.value(x).features;
    if (layer.input_size != 0 && layer.input_size != in) {
      usage(fmt::format("{}.input_size: is {}, but the layer before gives {} features; write {} or leave it out",
                        layer.path, layer.input_size, in, in));
    }
    const Init init = linear_init(in);
    return b_.linear(name, x, layer.output_size, layer.bias, init, init);
  }

  ValueId embedding(const LayerConfig& layer, const std::string& name, ValueId x) {
    if (b_.value(x).kind != ValueKind::Tokens) {
      usage(fmt::format("{}: an \"embedding\" reads tokens, but {} features flow in; it can only be the first layer",
                        layer.path, b_.value(x).features));
    }
    const ParameterId weight =
        b_.parameter(name + ".weight", {layer.vocab_size, layer.hidden_size}, {InitKind::Normal, 0.02}, true);
    return b_.node(name, Embedding{layer.vocab_size, 0, layer.hidden_size}, {x}, b_.value(x).positions,
                   layer.hidden_size, {weight});
  }

  ValueId position_embedding(const LayerConfig& layer, const std::string& name, ValueId x) {
    const Value in = b_.value(x);
    if (in.positions > layer.context_length) {
      usage(fmt::format("{}.context_length: is {}, but samples have {} positions (training.sequence_length)",
                        layer.path, layer.context_length, in.positions));
    }
    if (layer.hidden_size != 0 && layer.hidden_size != in.features) {
      usage(fmt::format("{}.hidden_size: is {}, but the layer before gives {} features", layer.path, layer.hidden_size,
                        in.features));
    }
    const ParameterId weight =
        b_.parameter(name + ".weight", {layer.context_length, in.features}, {InitKind::Normal, 0.02}, true);
    return b_.node(name, PositionEmbedding{layer.context_length, in.features}, {x}, in.positions, in.features,
                   {weight});
  }

  ValueId attention(const LayerConfig& layer, const std::string& name, ValueId x) {
    const std::int64_t hidden = b_.value(x).features;
    if (hidden % layer.num_heads != 0) {
      usage(fmt::format("{}.num_heads: {} heads do not divide the {} features that flow in", layer.path,
                        layer.num_heads, hidden));
    }
    const Init init = linear_init(hidden);
    return b_.attention(name, x, layer.num_heads, layer.probability, layer.bias, init, init, init);
  }

  ValueId residual(const LayerConfig& layer, const std::string& name, ValueId x) {
    ValueId y = x;
    std::int64_t i = 0;
    for (const LayerConfig& inner : layer.layers) y = this->layer(inner, fmt::format("{}.layers.{}", name, i++), y);
    const Value& in = b_.value(x);
    const Value& out = b_.value(y);
    if (in.features != out.features || in.positions != out.positions) {
      usage(
          fmt::format("{}: a residual block adds its input ({} × {}) to what its layers give ({} × {}); make its last "
                      "layer give {} features",
                      layer.path, in.positions, in.features, out.positions, out.features, in.features));
    }
    if (y == x) usage(fmt::format("{}.layers: a residual block needs at least one layer that computes", layer.path));
    return b_.add(name, x, y);
  }

  ValueId delay(const LayerConfig& layer, const std::string& name, ValueId x) {
    const Value in = b_.value(x);
    const Delay op{in.features, layer.forward_ms, layer.backward_input_ms, layer.backward_weight_ms};
    return b_.node(name, op, {x}, in.positions, in.features);
  }

  ValueId flatten(const std::string& name, ValueId x) {
    const Value in = b_.value(x);
    if (in.positions == 1) return x;
    return b_.node(name, Flatten{in.positions, in.features}, {x}, 1, in.positions * in.features);
  }

  Builder& b_;
};

ValueId build_sequential(Builder& b, const config::SequentialModel& m, ValueId x) {
  Sequential layers(b);
  for (std::size_t i = 0; i < m.layers.size(); ++i) {
    b.begin_unit();
    const std::string name = fmt::format("layers.{}", i);
    x = layers.layer(m.layers[i], name, x);
    if (i + 1 < m.layers.size()) b.end_unit(name);
  }
  return x;
}

// The loss joins the last unit.
void add_loss(Builder& b, const config::Config& config, ValueId output) {
  Graph& graph = b.graph();
  const Value out = b.value(output);
  const bool tokens = b.value(graph.input).kind == ValueKind::Tokens;
  if (config.training.loss == config::Loss::CrossEntropy) {
    if (out.positions != (tokens ? graph.positions : 1)) {
      usage(fmt::format("model: gives {} rows a sample, but the targets have {}{}", out.positions,
                        tokens ? graph.positions : 1, tokens ? "; leave the \"flatten\" out" : "; add a \"flatten\""));
    }
    graph.target = b.add_value("target", ValueKind::Tokens, out.positions, 1);
    graph.nodes.push_back({"loss", CrossEntropy{out.features, 0}, {output, graph.target}, ValueId(), {}});
    return;
  }
  if (tokens) usage("training.loss: \"mse\" needs real targets, but text has classes; use \"cross_entropy\"");
  if (out.positions != 1) usage("model: the output has several rows a sample; add a \"flatten\" for the loss \"mse\"");
  graph.target = b.add_value("target", ValueKind::Real, 1, out.features);
  graph.nodes.push_back({"loss", MeanSquaredError{out.features}, {output, graph.target}, ValueId(), {}});
}

// Positions of a sample for a model that reads tokens.
std::int64_t positions_of(const config::Config& config) {
  if (config.training.sequence_length > 0) return config.training.sequence_length;
  if (const auto* gpt = std::get_if<config::GptModel>(&config.model)) return gpt->context_length;
  const auto& layers = std::get<config::SequentialModel>(config.model).layers;
  for (const LayerConfig& layer : layers) {
    if (layer.type == LayerConfig::Type::PositionEmbedding) return layer.context_length;
  }
  usage(
      "training.sequence_length: is left out, and the model has no \"position_embedding\" to tell it; for example 128");
}

}  // namespace

bool Graph::uses_tied_parameters() const {
  std::set<ParameterId> seen;
  for (const Node& node : nodes) {
    for (const ParameterId p : node.parameters) {
      if (!seen.insert(p).second) return true;
    }
  }
  return false;
}

Graph build(const config::Config& config) {
  const auto* sequential = std::get_if<config::SequentialModel>(&config.model);
  if (sequential != nullptr && sequential->layers.empty()) usage("model.layers: is empty; write at least one layer");
  const bool tokens = std::holds_alternative<config::GptModel>(config.model) ||
                      (sequential != nullptr && sequential->layers.front().type == LayerConfig::Type::Embedding);
  Builder b(tokens ? positions_of(config) : 1);
  Graph& graph = b.graph();
  ValueId output;
  if (tokens) {
    graph.input = b.add_value("input", ValueKind::Tokens, graph.positions, 1);
  } else {
    const auto* mlp = std::get_if<config::MlpModel>(&config.model);
    const std::int64_t features = mlp != nullptr ? mlp->input_size : sequential->input_size;
    if (features <= 0)
      usage("model.input_size: is missing; how many features has an input row? (an \"embedding\" first reads tokens)");
    graph.input = b.add_value("input", ValueKind::Real, 1, features);
  }
  if (const auto* gpt = std::get_if<config::GptModel>(&config.model)) {
    if (graph.positions > gpt->context_length) {
      usage(fmt::format("training.sequence_length: is {}, but model.context_length is {}", graph.positions,
                        gpt->context_length));
    }
    output = build_gpt(b, *gpt, graph.input);
  } else if (const auto* mlp = std::get_if<config::MlpModel>(&config.model)) {
    output = build_mlp(b, *mlp, graph.input);
  } else {
    output = build_sequential(b, *sequential, graph.input);
  }
  if (output == graph.input) usage("model.layers: no layer computes anything");
  graph.output = output;
  add_loss(b, config, output);
  b.end_unit(sequential != nullptr ? fmt::format("layers.{}", sequential->layers.size() - 1) : std::string("head"));
  // A written layer that computes nothing (dropout 0) leaves no unit behind.
  for (auto* units : {&graph.units, &graph.pieces}) {
    std::erase_if(*units, [](const Unit& unit) { return unit.node_begin == unit.node_end; });
  }
  return std::move(graph);
}

}  // namespace trainer::model
