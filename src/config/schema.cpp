// The table of keys.
#include "schema.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <optional>

#include "compression_keys.hpp"
#include "exchange_keys.hpp"
#include "other_keys.hpp"
#include "trainer/core/error.hpp"

namespace trainer::config {

namespace {

// Bounds that keep every product of sizes far from overflow; none is near what a cluster of CPUs can train.
constexpr std::int64_t kMostRows = 1 << 24;   // vocabulary, features of an input, samples of a batch
constexpr std::int64_t kMostWidth = 1 << 20;  // hidden size, positions
constexpr std::int64_t kMostHeads = 1 << 12;  // what the mask of dropped probabilities can number
constexpr std::int64_t kMostParts = 100'000;  // layers, ranks, micro-batches
constexpr std::int64_t kMostSteps = 1'000'000'000'000;

template <class E>
using Names = std::vector<std::pair<const char*, E>>;

template <class E>
std::vector<std::string> words(const Names<E>& names) {
  std::vector<std::string> result;
  for (const auto& [word, value] : names) result.emplace_back(word);
  return result;
}

double number_of(const Value& value) {
  if (const auto* v = value.as<std::int64_t>()) return static_cast<double>(*v);
  if (const auto* v = value.as<std::uint64_t>()) return static_cast<double>(*v);
  return *value.as<double>();
}

std::vector<std::int64_t> integers_of(const Value& value) {
  std::vector<std::int64_t> result;
  for (const Value& element : *value.as<Array>()) result.push_back(*element.as<std::int64_t>());
  return result;
}

Value list_of(const std::vector<std::int64_t>& integers) {
  Array array;
  for (const std::int64_t integer : integers) array.push_back({integer});
  return {std::move(array)};
}

template <class T>
Key<T> bind(const char* name, Rule rule, const char* help, const char* example,
            std::function<void(T&, const Value&)> set, std::function<Value(const T&)> get) {
  Value default_value = get(T{});
  return {{name, std::move(rule), help, example, std::move(default_value)}, std::move(set), std::move(get)};
}

/// The field itself, as its type says. `example` makes a key required.
template <class T>
Key<T> key(const char* name, std::int64_t T::*field, std::int64_t least, std::int64_t most, const char* help,
           const char* example = "") {
  return bind<T>(
      name, {.kind = Kind::Integer, .least = least, .most = most}, help, example,
      [field](T& t, const Value& v) { t.*field = *v.as<std::int64_t>(); },
      [field](const T& t) { return Value{t.*field}; });
}

template <class T>
Key<T> key(const char* name, double T::*field, Rule range, const char* help, const char* example = "") {
  range.kind = Kind::Number;
  return bind<T>(
      name, range, help, example, [field](T& t, const Value& v) { t.*field = number_of(v); },
      [field](const T& t) { return Value{t.*field}; });
}

template <class T>
Key<T> key(const char* name, bool T::*field, const char* help) {
  return bind<T>(
      name, {.kind = Kind::Boolean}, help, "", [field](T& t, const Value& v) { t.*field = *v.as<bool>(); },
      [field](const T& t) { return Value{t.*field}; });
}

template <class T>
Key<T> key(const char* name, std::string T::*field, const char* help, const char* example = "") {
  return bind<T>(
      name, {.kind = Kind::Text, .least = *example ? 1 : 0}, help, example,
      [field](T& t, const Value& v) { t.*field = *v.as<std::string>(); },
      [field](const T& t) { return Value{t.*field}; });
}

template <class T, class E>
Key<T> key(const char* name, E T::*field, Names<E> names, const char* help, std::vector<std::string> later = {}) {
  Rule rule{.kind = Kind::Choice, .choices = words(names), .later = std::move(later)};
  return bind<T>(
      name, std::move(rule), help, "",
      [field, names](T& t, const Value& v) {
        for (const auto& [word, value] : names) {
          if (*v.as<std::string>() == word) t.*field = value;
        }
      },
      [field, names](const T& t) {
        for (const auto& [word, value] : names) {
          if (t.*field == value) return Value{std::string(word)};
        }
        internal_error("an enumerator has no word");
      });
}

Key<Training> seed_key(const char* help) {
  return bind<Training>(
      "seed", {.kind = Kind::Seed}, help, "",
      [](Training& t, const Value& v) {
        const auto* small = v.as<std::int64_t>();
        t.seed = small ? static_cast<std::uint64_t>(*small) : *v.as<std::uint64_t>();
      },
      [](const Training& t) {
        constexpr auto kMax = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
        return t.seed > kMax ? Value{t.seed} : Value{static_cast<std::int64_t>(t.seed)};
      });
}

Key<MlpModel> hidden_sizes_key(const char* help, const char* example) {
  return bind<MlpModel>(
      "hidden_sizes", {.kind = Kind::Integers, .least = 1, .most = kMostRows}, help, example,
      [](MlpModel& m, const Value& v) { m.hidden_sizes = integers_of(v); },
      [](const MlpModel& m) { return list_of(m.hidden_sizes); });
}

Key<Optimizer> betas_key(const char* help) {
  return bind<Optimizer>(
      "betas", {.kind = Kind::NumberPair, .high = 1, .open_high = true}, help, "",
      [](Optimizer& o, const Value& v) {
        o.beta1 = number_of(v.as<Array>()->at(0));
        o.beta2 = number_of(v.as<Array>()->at(1));
      },
      [](const Optimizer& o) {
        return Value{Array{{o.beta1}, {o.beta2}}};
      });
}

const Names<ScheduleName> kSchedules = {{"gpipe", ScheduleName::GPipe},
                                        {"1f1b", ScheduleName::OneFOneB},
                                        {"zb-h1", ScheduleName::ZeroBubbleH1},
                                        {"zb-h2", ScheduleName::ZeroBubbleH2},
                                        {"interleaved", ScheduleName::Interleaved},
                                        {"zb-v", ScheduleName::ZeroBubbleV},
                                        {"dualpipe-v", ScheduleName::DualPipeV},
                                        {"auto", ScheduleName::Automatic},
                                        {"file", ScheduleName::File}};

const Names<PartitionRule> kPartitions = {{"uniform", PartitionRule::Uniform},
                                          {"parameters", PartitionRule::Parameters},
                                          {"flops", PartitionRule::Flops},
                                          {"profile", PartitionRule::Profile}};

Key<Parallel> partition_key(const char* help) {
  const Names<PartitionRule>& names = kPartitions;
  Rule rule{.kind = Kind::Partition, .least = 1, .most = kMostParts, .choices = words(names)};
  return bind<Parallel>(
      "partition", std::move(rule), help, "",
      [names](Parallel& p, const Value& v) {
        if (v.as<Array>()) {
          p.partition = PartitionRule::Written;
          p.partition_units = integers_of(v);
        }
        for (const auto& [word, value] : names) {
          if (v.as<std::string>() && *v.as<std::string>() == word) p.partition = value;
        }
      },
      [names](const Parallel& p) {
        for (const auto& [word, value] : names) {
          if (p.partition == value) return Value{std::string(word)};
        }
        return list_of(p.partition_units);
      });
}

template <class T>
Key<T> layers_key(const char* help) {
  Key<T> result;
  result.name = "layers";
  result.rule = {.kind = Kind::Layers, .least = 1, .most = 10'000};
  result.help = help;
  result.example = R"([{"type": "linear", "output_size": 10}])";
  result.layers = &T::layers;
  return result;
}

/// Makes the "type" key of a section from the types that the table has.
KeyInfo type_key(std::vector<std::string> types, const char* help, std::string example, Value default_value = {}) {
  return {
      "type", {.kind = Kind::Choice, .choices = std::move(types)}, help, std::move(example), std::move(default_value)};
}

const Rule kProbability{.high = 1, .open_high = true};  // [0, 1)
const Rule kNotNegative{};
const Rule kPositive{.open_low = true};
const Rule kSeconds{.high = 1e9};
const Rule kPasses{.high = 1e9};
const Rule kMilliseconds{.high = 1e6};
const Rule kRatio{.high = 1};  // [0, 1]

// ---- the table ----------------------------------------------------------------------------------------------------

void add_models(Schema& s) {
  s.gpt = {"model",
           "gpt",
           {key("vocab_size", &GptModel::vocab_size, 1, kMostRows, "rows of the token table", "256"),
            key("context_length", &GptModel::context_length, 1, kMostWidth, "most positions of a sample", "128"),
            key("hidden_size", &GptModel::hidden_size, 1, kMostWidth, "features; a multiple of num_heads", "384"),
            key("num_layers", &GptModel::num_layers, 1, kMostParts, "transformer blocks", "6"),
            key("num_heads", &GptModel::num_heads, 1, kMostHeads, "attention heads", "6"),
            key("dropout", &GptModel::dropout, kProbability, "probability of dropping a feature"),
            key("tie_embeddings", &GptModel::tie_embeddings, "the head uses the token table")}};
  s.mlp = {"model",
           "mlp",
           {key("input_size", &MlpModel::input_size, 1, kMostRows, "features of an input row", "784"),
            hidden_sizes_key("features of each hidden layer", "[256, 128]"),
            key("output_size", &MlpModel::output_size, 1, kMostRows, "classes, or values to predict", "10"),
            key("activation", &MlpModel::activation,
                {{"gelu", Activation::Gelu},
                 {"relu", Activation::Relu},
                 {"tanh", Activation::Tanh},
                 {"sigmoid", Activation::Sigmoid}},
                "between the layers")}};
  s.sequential = {"model",
                  "sequential",
                  {key("input_size", &SequentialModel::input_size, 0, kMostRows,
                       "features of an input row; 0: the first layer's, or tokens into an embedding"),
                   layers_key<SequentialModel>("the layers, in order")}};
}

void add_layers(Schema& s) {
  using L = LayerConfig;
  using Type = LayerConfig::Type;
  const auto add = [&s](Type type, const char* name, std::vector<Key<L>> keys) {
    s.layers.push_back({type, {"model.layers[]", name, std::move(keys)}});
  };
  const auto bias = key("bias", &L::bias, "adds a learned bias");
  add(Type::Linear, "linear",
      {key("input_size", &L::input_size, 0, kMostRows, "0: follows from the layer before"),
       key("output_size", &L::output_size, 1, kMostRows, "features of the result", "10"), bias});
  add(Type::Embedding, "embedding",
      {key("vocab_size", &L::vocab_size, 1, kMostRows, "rows of the token table", "256"),
       key("hidden_size", &L::hidden_size, 1, kMostWidth, "features of a token", "128")});
  add(Type::PositionEmbedding, "position_embedding",
      {key("context_length", &L::context_length, 1, kMostWidth, "most positions of a sample", "128"),
       key("hidden_size", &L::hidden_size, 0, kMostWidth, "0: follows from the layer before")});
  add(Type::LayerNorm, "layer_norm", {key("eps", &L::eps, kPositive, "added to the variance")});
  add(Type::Attention, "causal_self_attention",
      {key("num_heads", &L::num_heads, 1, kMostHeads, "attention heads", "4"),
       key("dropout", &L::probability, kProbability, "on the attention probabilities"), bias});
  add(Type::Gelu, "gelu", {});
  add(Type::Relu, "relu", {});
  add(Type::Tanh, "tanh", {});
  add(Type::Sigmoid, "sigmoid", {});
  add(Type::Dropout, "dropout", {key("probability", &L::probability, kProbability, "of dropping a feature", "0.1")});
  add(Type::Delay, "delay",
      {key("forward_ms", &L::forward_ms, kMilliseconds, "a micro-batch's forward sleeps so long; nothing is computed"),
       key("backward_input_ms", &L::backward_input_ms, kMilliseconds, "the half of its backward that others wait for"),
       key("backward_weight_ms", &L::backward_weight_ms, kMilliseconds, "the half that nobody waits for")});
  add(Type::Residual, "residual", {layers_key<L>("output = input + layers(input)")});
  add(Type::Flatten, "flatten", {});
}

void add_data(Schema& s) {
  s.text = {"data",
            "text",
            {key("path", &TextData::path, "the text file", R"("corpus.txt")"),
             key("tokenizer", &TextData::tokenizer, {{"byte", Tokenizer::Byte}, {"char", Tokenizer::Char}},
                 "what a token is: a byte, or a character that occurs in the file")}};
  s.csv = {
      "data",
      "csv",
      {key("path", &CsvData::path, "the table, with a header line", R"("table.csv")"),
       key("target", &CsvData::target, "the column to predict", R"("label")"),
       key("task", &CsvData::task, {{"classification", TaskKind::Classification}, {"regression", TaskKind::Regression}},
           "whether the target is a class or a number"),
       delimiter_key("between columns; one ASCII character")}};
  s.idx = {"data",
           "idx",
           {key("images", &IdxData::images, "IDX file of samples, gzip'd or not", R"("train-images-idx3-ubyte.gz")"),
            key("labels", &IdxData::labels, "IDX file of classes, gzip'd or not", R"("train-labels-idx1-ubyte.gz")")}};
  s.synthetic = {"data",
                 "synthetic",
                 {key("samples", &SyntheticData::samples, 1, kMostSteps, "random samples of the model's input kind")}};
  s.data = {"data",
            "",
            {key("validation_fraction", &Data::validation_fraction, kProbability,
                 "share of the set, at its end, that is held out")}};
}

void add_training(Schema& s) {
  using T = Training;
  s.training = {
      "training",
      "",
      {key("steps", &T::steps, 0, kMostSteps, "optimizer steps; either this or epochs"),
       key("epochs", &T::epochs, kPasses, "passes over the training set; either this or steps"),
       key("batch_size", &T::batch_size, 0, kMostRows, "samples of a step over all replicas; 0: follows"),
       key("micro_batches", &T::micro_batches, 0, kMostParts, "pieces of a replica's share of a batch; 0: follows"),
       key("micro_batch_size", &T::micro_batch_size, 0, kMostRows, "samples of one micro-batch; 0: follows"),
       key("sequence_length", &T::sequence_length, 0, kMostWidth, "positions of a text sample; 0: the model's most"),
       key("loss", &T::loss, {{"cross_entropy", Loss::CrossEntropy}, {"mse", Loss::MeanSquaredError}},
           "left out: what the data asks for"),
       key("gradient_clip", &T::gradient_clip, kNotNegative, "largest global gradient norm; 0: no clipping"),
       key("precision", &T::precision, {{"float32", Precision::Float32}, {"bfloat16", Precision::BFloat16}},
           "of what matrix products multiply; weights and sums stay float32", {"float16", "float64"}),
       key("bfloat16_emulation", &T::bfloat16_emulation,
           "on CPUs without bfloat16 instructions: the same results at float32's speed; false: refuse"),
       recompute_key("what the backward computes again instead of keeping it; auto: the least that fits the memory"),
       key("optimistic_step", &T::optimistic_step,
           "updates before all ranks have agreed on the step, and takes it back exactly where it had to be clipped"),
       seed_key("of initial weights, dropout and the order of samples"),
       key("eval_every", &T::eval_every, 0, kMostSteps, "steps between evaluations; 0: only at the end"),
       key("time_limit", &T::time_limit, kSeconds, "seconds; then save and leave with code 75; 0: none"),
       key("hang_timeout", &T::hang_timeout, kSeconds, "seconds one wait may last; 0: for ever")}};
}

void add_optimizers(Schema& s) {
  using O = Optimizer;
  const std::vector<Key<O>> common = {key("learning_rate", &O::learning_rate, kNotNegative, "after warm-up"),
                                      key("weight_decay", &O::weight_decay, kNotNegative,
                                          "not on biases and norms; adamw: decoupled, sgd: added to the gradient")};
  const std::vector<Key<O>> curve = {
      key("schedule.type", &O::curve,
          {{"constant", RateCurve::Constant}, {"linear", RateCurve::Linear}, {"cosine", RateCurve::Cosine}},
          "how the learning rate falls"),
      key("schedule.warmup_steps", &O::warmup_steps, 0, kMostSteps, "steps over which the rate rises from 0"),
      key("schedule.final_ratio", &O::final_ratio, kRatio, "of learning_rate, at the last step; not for constant")};
  s.sgd = {"optimizer", "sgd", common};
  s.sgd.keys.push_back(key("momentum", &O::momentum, kProbability, "share of the last update kept"));
  s.sgd.keys.push_back(key("nesterov", &O::nesterov, "looks ahead; needs a momentum"));
  s.adamw = {"optimizer", "adamw", common};
  s.adamw.keys.push_back(betas_key("decay of the first and second moment"));
  s.adamw.keys.push_back(key("eps", &O::eps, kPositive, "added to the root of the second moment"));
  for (Section<O>* section : {&s.sgd, &s.adamw}) {
    section->keys.insert(section->keys.end(), curve.begin(), curve.end());
  }
}

void add_the_rest(Schema& s) {
  using P = Parallel;
  s.parallel = {
      "parallel",
      "",
      {key("data", &P::data, 0, kMostParts, "replicas that share a batch; 0: follows"),
       key("pipeline", &P::pipeline, 0, kMostParts, "stages of the model; 0: follows"),
       key("tensor", &P::tensor, 0, kMostParts, "ranks that share a layer; 0: follows"),
       key("schedule", &P::schedule, kSchedules, "order of the stages' work; auto: made for their times",
           {"v_half", "v_min", "v-half", "v-min"}),
       key("split_backward", &P::split_backward, "sends the input's gradient before it computes the weights'"),
       key("chunks", &P::chunks, 0, kMostParts, "stages a rank; 0: 2 for interleaved, zb-v and dualpipe-v, else 1"),
       key("micro_batch_group", &P::micro_batch_group, 0, kMostParts,
           "interleaved: micro-batches that a chunk takes in turn; 0: as many as pipeline ranks"),
       key("most_held", &P::most_held, 0, kMostParts,
           "(stage, micro-batch) pairs that the schedule may have a rank hold: auto keeps to it; 0: any"),
       key("schedule_file", &P::schedule_file, "CSV of schedule file, as trainer schedule prints it"),
       partition_key("what stages balance, or the units of each stage; profile: measured times"),
       key("profile", &P::profile, "file of `trainer profile`, for partition \"profile\"; \"\": none"),
       memory_key("that no rank may be predicted to need; 0: what the node has")}};
  for (Key<P>& each : exchange_keys()) s.parallel.keys.push_back(std::move(each));
  for (Key<P>& each : compression_keys()) s.parallel.keys.push_back(std::move(each));
  s.checkpoint = {"checkpoint",
                  "",
                  {key("directory", &Checkpoint::directory, "where checkpoints go; \"\": none are written"),
                   key("every_steps", &Checkpoint::every_steps, 0, kMostSteps, "0: only at the end"),
                   key("keep", &Checkpoint::keep, 1, kMostSteps, "newest checkpoints kept")}};
  s.logging = {"logging",
               "",
               {key("directory", &Logging::directory, "where metrics.jsonl goes; \"\": checkpoint.directory"),
                key("every_steps", &Logging::every_steps, 1, kMostSteps, "steps between lines")}};
}

Schema make_schema() {
  Schema s;
  add_models(s);
  add_layers(s);
  add_data(s);
  add_training(s);
  add_optimizers(s);
  add_the_rest(s);
  std::vector<std::string> layer_types;
  for (const LayerSection& layer : s.layers) layer_types.push_back(layer.section.type);
  s.model_type = type_key({s.gpt.type, s.mlp.type, s.sequential.type}, "kind of model", R"("gpt")");
  s.layer_type = type_key(layer_types, "kind of layer", R"("linear")");
  s.data_type = type_key({s.text.type, s.csv.type, s.idx.type, s.synthetic.type}, "kind of data set", R"("text")");
  s.optimizer_type = type_key({s.sgd.type, s.adamw.type}, "update rule", "", {s.adamw.type});
  return s;
}

template <class T>
SectionInfo info(const Section<T>& section, const KeyInfo* type = nullptr, const Section<Data>* common = nullptr) {
  SectionInfo result{section.path, section.type, {}};
  if (type) result.keys.push_back(type);
  for (const auto& key : section.keys) result.keys.push_back(&key);
  if (common) {
    for (const auto& key : common->keys) result.keys.push_back(&key);
  }
  return result;
}

std::string join_choices(const std::vector<std::string>& choices) {
  std::string result;
  for (std::size_t i = 0; i < choices.size(); ++i) {
    if (i > 0) result += i + 1 == choices.size() ? " or " : ", ";
    result += '"' + choices[i] + '"';
  }
  return result;
}

std::string number_expectation(const Rule& rule) {
  if (rule.high == std::numeric_limits<double>::infinity()) {
    return fmt::format("a number {} {}", rule.open_low ? ">" : "≥", rule.low);
  }
  return fmt::format("a number in {}{}, {}{}", rule.open_low ? '(' : '[', rule.low, rule.high,
                     rule.open_high ? ')' : ']');
}

}  // namespace

const Schema& schema() {
  static const Schema table = make_schema();
  return table;
}

const std::vector<SectionInfo>& sections() {
  static const std::vector<SectionInfo> table = [] {
    const Schema& s = schema();
    std::vector<SectionInfo> result = {info(s.gpt, &s.model_type), info(s.mlp, &s.model_type),
                                       info(s.sequential, &s.model_type)};
    for (const LayerSection& layer : s.layers) result.push_back(info(layer.section, &s.layer_type));
    result.push_back(info(s.text, &s.data_type, &s.data));
    result.push_back(info(s.csv, &s.data_type, &s.data));
    result.push_back(info(s.idx, &s.data_type, &s.data));
    result.push_back(info(s.synthetic, &s.data_type, &s.data));
    result.push_back(info(s.training));
    result.push_back(info(s.sgd, &s.optimizer_type));
    result.push_back(info(s.adamw, &s.optimizer_type));
    result.push_back(info(s.parallel));
    result.push_back(info(s.checkpoint));
    result.push_back(info(s.logging));
    return result;
  }();
  return table;
}

const char* name_of(ScheduleName schedule) {
  for (const auto& [word, value] : kSchedules) {
    if (value == schedule) return word;
  }
  internal_error("a schedule without a name");
}

const char* name_of(PartitionRule rule) {
  for (const auto& [word, value] : kPartitions) {
    if (value == rule) return word;
  }
  return "list";
}

std::string expectation(const Rule& rule) {
  switch (rule.kind) {
    case Kind::Integer:
      return fmt::format("an integer from {} to {}", rule.least, rule.most);
    case Kind::Seed:
      return fmt::format("an integer from 0 to {}", std::numeric_limits<std::uint64_t>::max());
    case Kind::Number:
      return number_expectation(rule);
    case Kind::Boolean:
      return "true or false";
    case Kind::Text:
      return rule.least > 0 ? "a string that is not empty" : "a string";
    case Kind::Character:
      return "a string of one ASCII character";
    case Kind::Choice:
      return join_choices(rule.choices);
    case Kind::Integers:
      return fmt::format("a list of integers from {} to {}", rule.least, rule.most);
    case Kind::Numbers:
      return "a list of numbers" + number_expectation(rule).substr(8);
    case Kind::NumberPair:
      return "a list of two numbers" + number_expectation(rule).substr(8);
    case Kind::Partition:
      return join_choices(rule.choices) + ", or a list of the units of each stage";
    case Kind::Names:
      return join_choices(rule.choices) + ", or a list of layers by name";
    case Kind::Bytes:
      return "a number of bytes, as 4294967296, \"4GiB\" or \"4GB\"";
    case Kind::Layers:
      return "a list of layers, each an object with a \"type\"";
  }
  internal_error("a kind of key has no expectation");
}

}  // namespace trainer::config
