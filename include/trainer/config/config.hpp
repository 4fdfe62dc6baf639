// The validated configuration: every key of the JSON description as a typed value with its default.
// The one table of keys (names, types, ranges, help) is src/config/schema.cpp.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace trainer::config {

enum class Activation { Gelu, Relu, Tanh, Sigmoid };
enum class Loss { CrossEntropy, MeanSquaredError };
enum class TaskKind { Classification, Regression };
enum class Tokenizer { Byte, Char };
enum class Precision { Float32, BFloat16 };
enum class Recompute { None, Full, Auto, Written };
enum class OptimizerType { Sgd, AdamW };
enum class RateCurve { Constant, Linear, Cosine };
enum class PartitionRule { Uniform, Parameters, Flops, Profile, Written };
enum class ScheduleName {
  GPipe,
  OneFOneB,
  ZeroBubbleH1,
  ZeroBubbleH2,
  Interleaved,
  ZeroBubbleV,
  DualPipeV,
  Automatic,  // made for the stages' times
  File        // parallel.schedule_file
};

enum class Exchange { AllReduce, Server, Local };
enum class Consistency { Bsp, Ssp, Async };
enum class AllReduceAlgorithm { Automatic, Direct, Ring, Tree, Hierarchy, Mpi };
enum class Balance { Even, Auto };
enum class CompressionType { None, TopK, RandomK, Sign, PowerSgd, Int8 };

// ---- model -------------------------------------------------------------------------------------------------------

/// As GPT-2: learned positions, pre-norm, biases, tanh-approximated gelu, inner width 4 × hidden.
struct GptModel {
  std::int64_t vocab_size = 0;
  std::int64_t context_length = 0;
  std::int64_t hidden_size = 0;
  std::int64_t num_layers = 0;
  std::int64_t num_heads = 0;
  double dropout = 0.0;
  bool tie_embeddings = true;

  bool operator==(const GptModel&) const = default;
};

struct MlpModel {
  std::int64_t input_size = 0;
  std::vector<std::int64_t> hidden_sizes;
  std::int64_t output_size = 0;
  Activation activation = Activation::Relu;

  bool operator==(const MlpModel&) const = default;
};

/// One written layer of a `sequential` model. Sizes that follow from the layer before may be left out (0).
struct LayerConfig {
  enum class Type {
    Linear,             // "linear": input_size (follows), output_size, bias = true
    Embedding,          // "embedding": vocab_size, hidden_size
    PositionEmbedding,  // "position_embedding": context_length, (hidden_size follows)
    LayerNorm,          // "layer_norm": eps = 1e-5
    Attention,          // "causal_self_attention": num_heads, dropout = 0, bias = true
    Gelu,               // "gelu" (tanh approximation)
    Relu,               // "relu"
    Tanh,               // "tanh"
    Sigmoid,            // "sigmoid"
    Dropout,            // "dropout": probability
    Delay,              // "delay": forward_ms, backward_input_ms, backward_weight_ms = 0; the identity, asleep
    Residual,           // "residual": layers = [...]; output = input + layers(input)
    Flatten             // "flatten": positions × features become one row of features
  };
  Type type = Type::Linear;
  std::string path;  // JSON path, for messages: "model.layers[3]"
  std::int64_t input_size = 0;
  std::int64_t output_size = 0;
  std::int64_t vocab_size = 0;
  std::int64_t hidden_size = 0;
  std::int64_t context_length = 0;
  std::int64_t num_heads = 0;
  double eps = 1e-5;
  double probability = 0.0;  // dropout's; attention's "dropout" too
  double forward_ms = 0.0;
  double backward_input_ms = 0.0;
  double backward_weight_ms = 0.0;
  bool bias = true;
  std::vector<LayerConfig> layers;

  bool operator==(const LayerConfig&) const = default;
};

struct SequentialModel {
  /// Features of one input row for models that do not begin with an embedding; 0 otherwise ("input_size").
  std::int64_t input_size = 0;
  std::vector<LayerConfig> layers;

  bool operator==(const SequentialModel&) const = default;
};

using Model = std::variant<GptModel, MlpModel, SequentialModel>;

// ---- data --------------------------------------------------------------------------------------------------------

struct TextData {
  std::string path;
  Tokenizer tokenizer = Tokenizer::Byte;

  bool operator==(const TextData&) const = default;
};
struct CsvData {
  std::string path;
  std::string target;  // a column's name in the header
  TaskKind task = TaskKind::Classification;
  char delimiter = ',';

  bool operator==(const CsvData&) const = default;
};
struct IdxData {
  std::string images;
  std::string labels;

  bool operator==(const IdxData&) const = default;
};
/// Random samples of the model's input kind; no files; for measuring.
struct SyntheticData {
  std::int64_t samples = 1024;

  bool operator==(const SyntheticData&) const = default;
};
struct Data {
  std::variant<SyntheticData, TextData, CsvData, IdxData> source;
  double validation_fraction = 0.0;  // in [0, 1); the last samples of the set

  bool operator==(const Data&) const = default;
};

// ---- training ----------------------------------------------------------------------------------------------------

struct Training {
  std::int64_t steps = 0;          // exactly one of steps and epochs is given (> 0)
  double epochs = 0;               //
  std::int64_t batch_size = 0;     // samples of a step over all replicas
  std::int64_t micro_batches = 1;  // pieces of a replica's share
  /// Samples of one micro-batch. Any two of the three sizes are enough; the third is 0 until resolve_parallel.
  std::int64_t micro_batch_size = 0;
  std::int64_t sequence_length = 0;  // positions of a sample for text; 0: the model's context_length
  Loss loss = Loss::CrossEntropy;
  double gradient_clip = 0.0;                // 0: none
  Precision precision = Precision::Float32;  // of matrix products; all else, and everything kept, is float32
  bool bfloat16_emulation = false;           // on CPUs without the instructions: the same bits, slower; else refused
  /// What the backward computes again instead of keeping it: nothing, every layer, the least that fits the memory, or
  /// the units and pieces of units that recompute_layers names.
  Recompute recompute = Recompute::None;
  std::vector<std::string> recompute_layers;
  /// Updates without waiting for the other ranks, as if nothing had to be clipped; taken back exactly when it must be.
  bool optimistic_step = false;
  std::uint64_t seed = 1;
  std::int64_t eval_every = 0;  // 0: only at the end
  double time_limit = 0;        // seconds; 0: none. Then finish the step, save and exit 75
  double hang_timeout = 300;    // seconds one wait may last before exit 6; 0: for ever

  bool operator==(const Training&) const = default;
};

struct Optimizer {
  OptimizerType type = OptimizerType::AdamW;
  double learning_rate = 1e-3;
  double beta1 = 0.9, beta2 = 0.999;  // "betas": [b1, b2]
  double eps = 1e-8;
  double weight_decay = 0.0;  // not on biases and norms. AdamW: decoupled. SGD: added to the gradient
  double momentum = 0.0;
  bool nesterov = false;
  RateCurve curve = RateCurve::Constant;  // "schedule": {"type", "warmup_steps", "final_ratio"}
  std::int64_t warmup_steps = 0;
  double final_ratio = 0.0;  // of learning_rate, reached at the last step

  bool operator==(const Optimizer&) const = default;
};

/// How replicas send their gradients to each other (trainer/optim/compression.hpp).
struct Compression {
  CompressionType type = CompressionType::None;
  double ratio = 0.01;               // top_k, random_k: share of a tensor's elements that is sent
  std::int64_t rank = 4;             // power_sgd: columns of the factors
  bool error_feedback = true;        // what was not sent is added to the next step's gradient; not of sign and int8
  std::int64_t min_elements = 4096;  // smaller parameters are sent whole
  std::vector<std::string> layers;   // names or patterns of those that are compressed; empty: all

  bool operator==(const Compression&) const = default;
};

/// How sums of gradients travel (Exchange::AllReduce).
struct AllReduce {
  AllReduceAlgorithm algorithm = AllReduceAlgorithm::Automatic;
  Precision wire = Precision::Float32;
  bool sum = false;  // "result": the replicas' gradients added, not their mean
  std::int64_t bucket_elements = std::int64_t{1} << 20;

  bool operator==(const AllReduce&) const = default;
};

/// Ranks outside the mesh that hold the parameters (Exchange::Server). In JSON the keys lie in "parallel" itself.
struct Server {
  std::int64_t count = 0;  // "servers": at least 1 with Exchange::Server, else 0
  Consistency consistency = Consistency::Bsp;
  std::int64_t staleness = 1;  // ssp
  bool notify = false;         // servers send new parameters to those that wait
  std::int64_t backup = 0;     // bsp: replicas that a step may leave out
  double timeout = 60;         // seconds of silence of a replica

  bool operator==(const Server&) const = default;
};

/// Rounds of steps without exchange (Exchange::Local): local SGD, DiLoCo.
struct LocalSteps {
  std::int64_t steps = 10;
  double outer_learning_rate = 0.7;
  double outer_momentum = 0.9;
  bool nesterov = true;

  bool operator==(const LocalSteps&) const = default;
};

struct Parallel {
  /// Axis sizes; 0 when left out. resolve() fills them for a number of ranks.
  std::int64_t data = 0, pipeline = 0, tensor = 0;
  ScheduleName schedule = ScheduleName::OneFOneB;
  /// Backward as I then W, the gradient sent right after I ("split_backward"), or joined in B.
  bool split_backward = true;
  std::int64_t chunks = 0;             // stages a rank; 0: as the schedule has them (stages_a_rank)
  std::int64_t micro_batch_group = 0;  // interleaved: micro-batches a chunk takes in turn; 0: as many as ranks
  std::int64_t most_held = 0;          // (stage, micro-batch) pairs that a rank may hold from F to W; 0: any
  std::string schedule_file;           // of ScheduleName::File
  /// What the file says. No key: one rank reads it, so that all see one text.
  std::string schedule_text;
  PartitionRule partition = PartitionRule::Flops;
  std::vector<std::int64_t> partition_units;  // PartitionRule::Written: units of each stage
  std::string profile;                        // path of what `trainer profile` has measured; "": none
  std::int64_t memory_per_rank = 0;           // bytes that no rank may need; 0: what the node has
  Compression compression;

  Exchange exchange = Exchange::AllReduce;
  AllReduce all_reduce;
  bool delayed_gradients = false;  // a step applies the gradients of the step before
  Server server;
  bool tasks = false;
  std::int64_t task_batches = 4;
  Balance balance = Balance::Even;
  std::int64_t balance_every = 10;
  LocalSteps local;
  std::vector<double> injected_delay;  // [replica] ms of sleep a sample, for experiments; empty: none

  bool operator==(const Parallel&) const = default;
};

struct Checkpoint {
  std::string directory;         // "": nothing is written
  std::int64_t every_steps = 0;  // 0: only at the end
  std::int64_t keep = 2;         // newest whole ones kept; ≥ 1

  bool operator==(const Checkpoint&) const = default;
};

struct Logging {
  std::string directory;  // "": checkpoint.directory
  std::int64_t every_steps = 10;

  bool operator==(const Logging&) const = default;
};

struct Config {
  Model model;
  Data data;
  Training training;
  Optimizer optimizer;
  Parallel parallel;
  Checkpoint checkpoint;
  Logging logging;

  bool operator==(const Config&) const = default;
};

/// Reads `text` (the contents of `source_name`), applies `overrides` ("a.b=value", value as JSON or else a string)
/// and validates. Throws Error(Usage) naming JSON path, value, expectation and the nearest valid word. Relative file
/// paths are kept as written. At most 1 MiB, depth ≤ 64, no duplicate and no unknown keys.
Config parse(const std::string& text, const std::string& source_name, const std::vector<std::string>& overrides = {});

/// As parse(), but checks each key by itself only, not the keys against each other.
void check_keys(const std::string& text, const std::string& source_name,
                const std::vector<std::string>& overrides = {});

/// "8GiB", "1.5 GB", "300MiB", "4096": whole bytes; nothing where it is no size below 2⁶².
std::optional<std::int64_t> bytes_of(std::string_view text);

/// "1f1b", as the configuration spells it; and "flops".
const char* name_of(ScheduleName schedule);
const char* name_of(PartitionRule rule);

/// Stages of a pipeline rank as far as the configuration says; a schedule from a file says it itself (0).
std::int64_t stages_a_rank(const Parallel& parallel);

/// The whole configuration as JSON with every key written out; parse(to_json(c)) is c.
std::string to_json(const Config& config);

/// The part of the configuration that a checkpoint fixes (the "model" object), canonical, for comparing.
std::string model_json(const Config& config);

/// Fills left-out axis sizes for `ranks` (at most one may follow from the others; with none given, data takes them
/// all) and checks data × pipeline × tensor + servers == ranks. Then derives whichever of batch_size, micro_batches and
/// micro_batch_size was left out and checks batch_size == data × micro_batches × micro_batch_size.
/// Throws Error(Usage) with the numbers and what would work.
void resolve_parallel(Config& config, std::int64_t ranks);

/// Every key with its values, default and help, as lines of text for `trainer --help-keys`.
std::string describe_keys();

}  // namespace trainer::config
