#include <doctest/doctest.h>

#include <set>

#include "trainer/core/error.hpp"
#include "trainer/model/graph.hpp"

using namespace trainer;

namespace {

model::Graph graph_of(const std::string& model) {
  const bool features = model.find("input_size\": 4") != std::string::npos;
  const std::string rest = R"(, "data": {"type": "synthetic"}, "optimizer": {"type": "sgd", "learning_rate": 0.1},
                              "training": {"steps": 1, "batch_size": 2)";
  return model::build(
      config::parse("{\"model\": " + model + rest + (features ? "}}" : ", \"sequence_length\": 6}}"), "test"));
}

std::string refused(const std::string& model) {
  try {
    graph_of(model);
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Usage);
    return error.what();
  }
  FAIL("was accepted: " << model);
  return "";
}

std::set<std::string> names(const model::Graph& graph) {
  std::set<std::string> all;
  for (const model::Parameter& p : graph.parameters) all.insert(p.name);
  return all;
}

}  // namespace

TEST_CASE("a gpt has GPT-2's parameters, units and number of elements") {
  const model::Graph tied = graph_of(
      R"({"type": "gpt", "vocab_size": 50, "context_length": 8, "hidden_size": 12, "num_layers": 2, "num_heads": 3})");
  CHECK(tied.units.size() == 4);
  std::vector<std::string> pieces;
  for (const model::Unit& piece : tied.pieces) pieces.push_back(piece.name);
  CHECK(pieces == std::vector<std::string>{"embedding", "h.0.attn", "h.0.mlp", "h.1.attn", "h.1.mlp", "head"});
  CHECK(tied.units.front().name == "embedding");
  CHECK(tied.units.back().name == "head");
  CHECK(tied.uses_tied_parameters());
  // V·h + T·h + L·(12h² + 13h) + 2h
  CHECK(model::parameter_elements(tied) == 50 * 12 + 8 * 12 + 2 * (12 * 144 + 13 * 12) + 24);
  CHECK(names(tied).contains("h.1.attn.c_attn.weight"));
  CHECK(tied.parameters[0].name == "wte.weight");
  for (const model::Parameter& p : tied.parameters) CHECK(p.decay == (p.shape.dims() > 1));
  const model::Graph untied = graph_of(
      R"({"type": "gpt", "vocab_size": 50, "context_length": 8, "hidden_size": 12, "num_layers": 2, "num_heads": 3, "tie_embeddings": false})");
  CHECK_FALSE(untied.uses_tied_parameters());
  CHECK(names(untied).contains("lm_head.weight"));
}

TEST_CASE("nodes come after what they read, and units cover all nodes once") {
  const model::Graph graph = graph_of(
      R"({"type": "sequential", "layers": [{"type": "embedding", "vocab_size": 20, "hidden_size": 8},
          {"type": "position_embedding", "context_length": 6}, {"type": "dropout", "probability": 0.1},
          {"type": "residual", "layers": [{"type": "layer_norm"}, {"type": "causal_self_attention", "num_heads": 2}]},
          {"type": "residual", "layers": [{"type": "layer_norm"}, {"type": "linear", "output_size": 16}, {"type": "tanh"},
                                          {"type": "linear", "output_size": 8}]},
          {"type": "linear", "output_size": 20}]})");
  std::set<std::int32_t> made{graph.input.value, graph.target.value};
  for (const model::Node& node : graph.nodes) {
    for (const ValueId v : node.inputs) CHECK(made.contains(v.value));
    if (node.output.valid()) made.insert(node.output.value);
  }
  std::int64_t at = 0;
  for (const model::Unit& unit : graph.units) {
    CHECK(unit.node_begin == at);
    CHECK(unit.node_end > at);
    at = unit.node_end;
  }
  CHECK(at == static_cast<std::int64_t>(graph.nodes.size()));
  CHECK(graph.units.size() == 6);
  CHECK(graph.pieces.size() == 6);
}

TEST_CASE("FLOPs of a gpt are 6 a parameter and token, and attention's own") {
  const model::Graph graph = graph_of(
      R"({"type": "gpt", "vocab_size": 50, "context_length": 8, "hidden_size": 12, "num_layers": 2, "num_heads": 3, "tie_embeddings": false})");
  double sum = 0;
  for (const model::Node& node : graph.nodes) {
    const model::NodeCost cost = model::cost(node, graph);
    sum += cost.forward + cost.backward_input + cost.backward_weight;
  }
  const double positions = 6;
  const double matrices = 50 * 12 + 2 * 12 * 144;  // those that multiply
  const double attention =
      2 * 3 * 4 * 12 * positions * (positions + 1) / 2;  // layers · (1 + 2 backward) · 4 · width · pairs
  CHECK(sum == doctest::Approx(6 * matrices * positions + attention).epsilon(1e-12));
}

TEST_CASE("sizes that do not fit name the layer and both sizes") {
  CHECK(refused(R"({"type": "sequential", "input_size": 4, "layers": [{"type": "linear", "output_size": 8},
                    {"type": "linear", "input_size": 9, "output_size": 2}]})")
            .find("model.layers[1].input_size: is 9, but the layer before gives 8") != std::string::npos);
  CHECK(
      refused(
          R"({"type": "sequential", "input_size": 4, "layers": [{"type": "residual", "layers": [{"type": "linear", "output_size": 5}]},
                    {"type": "linear", "output_size": 2}]})")
          .find("model.layers[0]: a residual block") != std::string::npos);
  CHECK(refused(R"({"type": "sequential", "layers": [{"type": "embedding", "vocab_size": 20, "hidden_size": 8},
                    {"type": "flatten"}, {"type": "linear", "output_size": 20}]})")
            .find("flatten") != std::string::npos);
}
