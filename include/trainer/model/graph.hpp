// The model as an immutable graph of nodes over named values and parameters; what it computes, not who computes it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "trainer/config/config.hpp"
#include "trainer/core/id.hpp"
#include "trainer/core/shape.hpp"

namespace trainer::model {

// What a node computes. Sizes are global in a Graph; plan makes copies with this rank's sizes, in which `*_begin`
// says where the local part starts in the global dim. Rows of a matrix are (sample, position), sample outermost.

struct Embedding {               // tokens [rows] → [rows, features]; weight [vocab, features]
  std::int64_t vocab = 0;        // rows of the table held here
  std::int64_t vocab_begin = 0;  // tokens outside [begin, begin + vocab) give zero rows
  std::int64_t features = 0;
};
struct PositionEmbedding {     // x [rows, features] → x + weight[position]; weight [positions, features]
  std::int64_t positions = 0;  // rows of the table ≥ positions of a sample
  std::int64_t features = 0;
};
struct Linear {  // y = x·Wᵀ + b; weight [out, in], bias [out]
  std::int64_t in = 0;
  std::int64_t out = 0;
  bool bias = true;      // has the parameter
  bool add_bias = true;  // adds it (on one rank of a row-parallel group only)
};
struct LayerNorm {  // weight [features], bias [features]
  std::int64_t features = 0;
  double eps = 1e-5;
};
struct Attention {  // causal; x [rows, 3·heads·head_size] as q|k|v → [rows, heads·head_size]; no parameters
  std::int64_t heads = 0;
  std::int64_t head_begin = 0;
  std::int64_t total_heads = 0;
  std::int64_t head_size = 0;
  double dropout = 0;  // on the probabilities
};
enum class UnaryKind { Gelu, Relu, Tanh, Sigmoid };
struct Unary {
  UnaryKind kind = UnaryKind::Gelu;
  std::int64_t features = 0;
};
struct Dropout {
  std::int64_t features = 0;
  std::int64_t feature_begin = 0;
  std::int64_t total_features = 0;
  double probability = 0;
};
/// The identity, and its gradient too, each call of which takes a stated time asleep: work without arithmetic, so that
/// more ranks than cores can show how a schedule behaves. Its W half is a sleep as well, though there is no parameter.
struct Delay {
  std::int64_t features = 0;
  double forward_ms = 0;  // of one micro-batch, as the others
  double backward_input_ms = 0;
  double backward_weight_ms = 0;
};
struct Add {  // two inputs of one shape
  std::int64_t features = 0;
};
struct Flatten {  // [samples·positions, features] → [samples, positions·features]: the same memory
  std::int64_t positions = 0;
  std::int64_t features = 0;
};
/// Inputs: logits [rows, classes]; targets [rows] int32, -1 is not counted.
struct CrossEntropy {
  std::int64_t classes = 0;
  std::int64_t class_begin = 0;
};
/// Inputs: predictions [rows, features]; targets the same shape, float. Mean over rows · features.
struct MeanSquaredError {
  std::int64_t features = 0;
};

using Op = std::variant<Embedding, PositionEmbedding, Linear, LayerNorm, Attention, Unary, Dropout, Delay, Add, Flatten,
                        CrossEntropy, MeanSquaredError>;

enum class InitKind { Zero, One, Normal, Uniform };
struct Init {
  InitKind kind = InitKind::Zero;
  double scale = 0;  // Normal: standard deviation; Uniform: in [-scale, scale)
};

/// A named global tensor that training changes.
struct Parameter {
  std::string name;  // "h.0.mlp.c_fc.weight"
  Shape shape;
  Init init;
  bool decay = true;  // weight decay applies (not to biases and norms)
};

enum class ValueKind { Tokens, Real };
/// What flows between nodes: [samples · positions, features] for any number of samples.
struct Value {
  std::string name;
  ValueKind kind = ValueKind::Real;
  std::int64_t positions = 1;  // rows a sample
  std::int64_t features = 0;   // Tokens: 1
};

struct Node {
  std::string name;  // "h.0.mlp.c_fc"
  Op op;
  std::vector<ValueId> inputs;
  ValueId output;                       // invalid for the loss
  std::vector<ParameterId> parameters;  // in the order its Op states
};

/// What people cut a model between: the embedding, each block or written layer, the head with the loss.
struct Unit {
  std::string name;  // "embedding", "h.3", "head"
  std::int64_t node_begin = 0;
  std::int64_t node_end = 0;
};

struct Graph {
  std::vector<Node> nodes;  // in an order in which inputs come before users; the loss is the last
  std::vector<Value> values;
  std::vector<Parameter> parameters;  // in order of first use: "the global order of parameters"
  std::vector<Unit> units;
  /// What no cut divides: the units, a gpt's blocks parted into "h.3.attn" and "h.3.mlp", between which one value
  /// flows as it does between blocks.
  std::vector<Unit> pieces;
  ValueId input;               // tokens or features
  ValueId target;              // tokens (classes) or features (real targets)
  ValueId output;              // logits or predictions
  std::int64_t positions = 1;  // of the input
  /// Parameters that more than one node uses (tied embeddings); every use accumulates its own gradient.
  bool uses_tied_parameters() const;
};

/// Builds the graph; `positions` of a sample from training.sequence_length where the model reads tokens.
/// Throws Error(Usage) naming the layer and the two sizes that do not fit.
Graph build(const config::Config& config);

/// Floating-point operations (2 a multiply-add) of one sample through one node.
struct NodeCost {
  double forward = 0;
  double backward_input = 0;
  double backward_weight = 0;
};
NodeCost cost(const Node& node, const Graph& graph);

std::int64_t parameter_elements(const Graph& graph);

}  // namespace trainer::model
