// The checks of keys against each other, and the values that follow from other keys.
#include <fmt/format.h>

#include <algorithm>

#include "compression_keys.hpp"
#include "exchange_keys.hpp"
#include "read.hpp"

namespace trainer::config {

namespace {

using Paths = std::vector<std::string>;

constexpr std::int64_t kByteVocabulary = 256;

bool given(const Value& root, const char* section, const char* key) {
  const Value* object = root.find(section);
  return object && object->find(key);
}

struct Completion {
  Config& config;
  const Value& root;
  const Origin& origin;

  void model();
  void data();
  void loss();
  void sequence();
  void duration();
  void batch();
  void pipeline();
  void others();

  bool reads_tokens() const;
  std::int64_t vocab_size() const;      // of models that read tokens
  std::int64_t context_length() const;  // of models that read tokens; 0 when nothing limits it
  void sequential_input(SequentialModel& m);
  void check_vocabulary(const TextData& data);
};

void for_each_layer(const std::vector<LayerConfig>& layers, const auto& visit) {
  for (const LayerConfig& layer : layers) {
    visit(layer);
    for_each_layer(layer.layers, visit);
  }
}

bool Completion::reads_tokens() const {
  if (std::holds_alternative<GptModel>(config.model)) return true;
  const auto* sequential = std::get_if<SequentialModel>(&config.model);
  return sequential && sequential->layers.front().type == LayerConfig::Type::Embedding;
}

std::int64_t Completion::vocab_size() const {
  if (const auto* gpt = std::get_if<GptModel>(&config.model)) return gpt->vocab_size;
  return std::get<SequentialModel>(config.model).layers.front().vocab_size;
}

std::int64_t Completion::context_length() const {
  if (const auto* gpt = std::get_if<GptModel>(&config.model)) return gpt->context_length;
  std::int64_t least = 0;
  for_each_layer(std::get<SequentialModel>(config.model).layers, [&](const LayerConfig& layer) {
    if (layer.type != LayerConfig::Type::PositionEmbedding) return;
    least = least == 0 ? layer.context_length : std::min(least, layer.context_length);
  });
  return least;
}

void Completion::sequential_input(SequentialModel& m) {
  const LayerConfig& first = m.layers.front();
  if (first.type == LayerConfig::Type::Embedding) {
    if (m.input_size == 0) return;
    origin.fail({"model.input_size"},
                fmt::format("model.input_size is {}, but model.layers[0] is an embedding, which reads tokens; leave "
                            "model.input_size out or begin with another layer",
                            m.input_size));
  }
  const std::int64_t first_size = first.type == LayerConfig::Type::Linear ? first.input_size : 0;
  if (m.input_size == 0) m.input_size = first_size;
  if (m.input_size == 0) {
    origin.fail({"model.input_size", "model.layers"},
                "model.input_size is missing: a sequential model that does not begin with an embedding says how many "
                "features a row has, for example \"input_size\": 784");
  }
  if (first_size != 0 && first_size != m.input_size) {
    origin.fail({"model.layers[0].input_size", "model.input_size"},
                fmt::format("model.layers[0].input_size is {} and model.input_size is {}; leave one of them out or "
                            "make them equal",
                            first_size, m.input_size));
  }
}

void Completion::model() {
  if (const auto* gpt = std::get_if<GptModel>(&config.model)) {
    if (gpt->hidden_size % gpt->num_heads != 0) {
      origin.fail({"model.num_heads", "model.hidden_size"},
                  fmt::format("model.hidden_size is {}, which is not a multiple of model.num_heads, {}; for {} heads "
                              "{} would work",
                              gpt->hidden_size, gpt->num_heads, gpt->num_heads,
                              (gpt->hidden_size / gpt->num_heads + 1) * gpt->num_heads));
    }
  }
  if (auto* sequential = std::get_if<SequentialModel>(&config.model)) sequential_input(*sequential);
}

void Completion::check_vocabulary(const TextData& data) {
  const bool gpt = std::holds_alternative<GptModel>(config.model);
  const std::string path = gpt ? "model.vocab_size" : "model.layers[0].vocab_size";
  if (data.tokenizer == Tokenizer::Byte && vocab_size() < kByteVocabulary) {
    origin.fail({path, "data.tokenizer"},
                fmt::format("{} is {}, but data.tokenizer \"byte\" has {} tokens; a vocabulary may be larger than the "
                            "tokenizer's, never smaller",
                            path, vocab_size(), kByteVocabulary));
  }
  if (gpt) return;
  const LayerConfig& last = std::get<SequentialModel>(config.model).layers.back();
  if (last.type == LayerConfig::Type::Linear && last.output_size < vocab_size()) {
    origin.fail({last.path + ".output_size", path},
                fmt::format("{0}.output_size is {1}, but {2} is {3}: a token beyond {1} could never be predicted; "
                            "expected at least {3}",
                            last.path, last.output_size, path, vocab_size()));
  }
}

void Completion::data() {
  const auto& source = config.data.source;
  if (const auto* text = std::get_if<TextData>(&source)) {
    if (!reads_tokens()) {
      origin.fail({"data.type", "model.type"},
                  "data.type is \"text\", which needs a model that reads tokens, and this one reads rows of features; "
                  "expected model.type \"gpt\", or \"sequential\" beginning with an embedding");
    }
    return check_vocabulary(*text);
  }
  const bool csv = std::holds_alternative<CsvData>(source);
  if ((csv || std::holds_alternative<IdxData>(source)) && reads_tokens()) {
    origin.fail({"data.type", "model.type"},
                fmt::format("data.type is \"{}\", which needs a model that reads rows of features, and this one reads "
                            "tokens; expected model.type \"mlp\", or \"sequential\" with an input_size",
                            csv ? "csv" : "idx"));
  }
}

void Completion::loss() {
  Training& training = config.training;
  const auto* csv = std::get_if<CsvData>(&config.data.source);
  const bool regression = csv && csv->task == TaskKind::Regression;
  if (!given(root, "training", "loss") && regression) training.loss = Loss::MeanSquaredError;
  const bool mse = training.loss == Loss::MeanSquaredError;
  if (csv && regression != mse) {
    origin.fail({"training.loss", "data.task"},
                fmt::format("training.loss is \"{}\", but data.task is \"{}\", which needs \"{}\"; change one of them",
                            mse ? "mse" : "cross_entropy", regression ? "regression" : "classification",
                            regression ? "mse" : "cross_entropy"));
  }
  if (mse && std::holds_alternative<IdxData>(config.data.source)) {
    origin.fail({"training.loss", "data.type"},
                "training.loss is \"mse\", but the labels of data.type \"idx\" are classes, which need "
                "\"cross_entropy\"");
  }
  if (mse && reads_tokens()) {
    origin.fail({"training.loss", "model.type"},
                "training.loss is \"mse\", but the model predicts tokens, which needs \"cross_entropy\"");
  }
}

void Completion::sequence() {
  std::int64_t& length = config.training.sequence_length;
  if (!reads_tokens()) {
    if (length == 0) return;
    origin.fail({"training.sequence_length"},
                fmt::format("training.sequence_length is {}, but the model reads rows of features, not sequences; "
                            "leave it out",
                            length));
  }
  const std::int64_t most = context_length();
  if (length == 0) length = most;
  if (length == 0) {
    origin.fail({"training.sequence_length"},
                "training.sequence_length is missing, and no layer of the model limits it; for example "
                "\"sequence_length\": 128");
  }
  if (most > 0 && length > most) {
    origin.fail({"training.sequence_length", "model.context_length", "model.layers"},
                fmt::format("training.sequence_length is {}, more than the model's context_length, {}; expected at "
                            "most {}",
                            length, most, most));
  }
}

void Completion::duration() {
  const Training& training = config.training;
  if (training.steps > 0 && training.epochs > 0) {
    origin.fail({"training.steps", "training.epochs"},
                fmt::format("training.steps is {} and training.epochs is {}; expected one of them, and the other left "
                            "out or 0",
                            training.steps, training.epochs));
  }
  if (training.steps == 0 && training.epochs == 0) {
    origin.fail({"training.steps", "training.epochs"},
                "training.steps and training.epochs are both missing; for example \"steps\": 100");
  }
}

void Completion::batch() {
  Training& t = config.training;
  if (!given(root, "training", "micro_batches")) t.micro_batches = 0;
  if (t.micro_batches == 0 && t.micro_batch_size == 0) t.micro_batches = 1;
  const Paths paths = {"training.batch_size", "training.micro_batches", "training.micro_batch_size"};
  if (t.batch_size == 0 && (t.micro_batches == 0 || t.micro_batch_size == 0)) {
    origin.fail(paths,
                "training.batch_size is missing; for example \"batch_size\": 32, or two of batch_size, micro_batches "
                "and micro_batch_size");
  }
  if (t.batch_size == 0) return;
  // What holds for any number of replicas; resolve_parallel checks the rest.
  const std::int64_t pieces = std::max<std::int64_t>(1, t.micro_batches);
  const std::int64_t size = std::max<std::int64_t>(1, t.micro_batch_size);
  if (t.batch_size % (pieces * size) == 0) return;
  std::string product = t.micro_batches > 0 ? fmt::format("micro_batches {}", pieces) : "";
  if (t.micro_batch_size > 0) product += fmt::format("{}micro_batch_size {}", product.empty() ? "" : " × ", size);
  const std::int64_t below = t.batch_size / (pieces * size) * pieces * size;
  const std::string lower = below > 0 ? fmt::format("{} or ", below) : "";
  origin.fail(paths, fmt::format("training.batch_size is {}, which is not a multiple of {}; {}{} would work",
                                 t.batch_size, product, lower, below + pieces * size));
}

// How many stages a rank has, and what the schedules want.
void Completion::pipeline() {
  const Parallel& parallel = config.parallel;
  const std::string schedule = name_of(parallel.schedule);
  const bool file = parallel.schedule == ScheduleName::File;
  if (file == parallel.schedule_file.empty()) {
    origin.fail({"parallel.schedule_file", "parallel.schedule"},
                file ? "parallel.schedule is \"file\", but parallel.schedule_file is missing; for example "
                       "\"schedule_file\": \"schedule.csv\" (trainer schedule prints such files)"
                     : fmt::format("parallel.schedule_file is \"{}\", but parallel.schedule is \"{}\"; expected "
                                   "\"file\", or no schedule_file",
                                   parallel.schedule_file, schedule));
  }
  const bool one = parallel.schedule == ScheduleName::GPipe || parallel.schedule == ScheduleName::OneFOneB ||
                   parallel.schedule == ScheduleName::ZeroBubbleH1 || parallel.schedule == ScheduleName::ZeroBubbleH2;
  const bool two = parallel.schedule == ScheduleName::ZeroBubbleV || parallel.schedule == ScheduleName::DualPipeV;
  if ((one && parallel.chunks > 1) || (two && parallel.chunks != 0 && parallel.chunks != 2)) {
    origin.fail({"parallel.chunks", "parallel.schedule"},
                fmt::format("parallel.chunks is {}, but parallel.schedule \"{}\" has {} a rank; expected {}, or the "
                            "schedule \"interleaved\" or \"auto\"",
                            parallel.chunks, schedule, one ? "one stage" : "two stages", one ? 1 : 2));
  }
  if (parallel.micro_batch_group > 0 && parallel.schedule != ScheduleName::Interleaved) {
    origin.fail({"parallel.micro_batch_group", "parallel.schedule"},
                fmt::format("parallel.micro_batch_group is {}, but parallel.schedule is \"{}\"; expected "
                            "\"interleaved\", or no micro_batch_group",
                            parallel.micro_batch_group, schedule));
  }
  const bool splits =
      parallel.schedule == ScheduleName::ZeroBubbleH1 || parallel.schedule == ScheduleName::ZeroBubbleH2 || two;
  if (splits && !parallel.split_backward) {
    origin.fail({"parallel.split_backward", "parallel.schedule"},
                fmt::format("parallel.split_backward is false, but parallel.schedule is \"{}\", which fills gaps with "
                            "the second half of the backward; expected true, or another schedule",
                            schedule));
  }
  const auto stages = static_cast<std::int64_t>(parallel.partition_units.size());
  const std::int64_t chunks = stages_a_rank(parallel);
  if (stages > 0 && parallel.pipeline > 0 && chunks > 0 && stages != parallel.pipeline * chunks) {
    origin.fail(
        {"parallel.partition", "parallel.pipeline"},
        fmt::format("parallel.partition lists the units of {} stages, but parallel.pipeline is {}{}; expected "
                    "one number a stage",
                    stages, parallel.pipeline, chunks > 1 ? fmt::format(" and a rank has {} stages", chunks) : ""));
  }
  if (parallel.partition == PartitionRule::Profile && parallel.profile.empty()) {
    origin.fail({"parallel.partition", "parallel.profile"},
                "parallel.partition is \"profile\", but parallel.profile names no file; give what `trainer profile` "
                "has written, for example \"profile\": \"profile.json\", or take \"flops\"");
  }
}

void Completion::others() {
  const Optimizer& optimizer = config.optimizer;
  if (optimizer.nesterov && optimizer.momentum == 0) {
    origin.fail({"optimizer.nesterov", "optimizer.momentum"},
                "optimizer.nesterov is true, but optimizer.momentum is 0; for example \"momentum\": 0.9");
  }
  const Checkpoint& checkpoint = config.checkpoint;
  if (checkpoint.every_steps > 0 && checkpoint.directory.empty()) {
    origin.fail({"checkpoint.directory", "checkpoint.every_steps"},
                fmt::format("checkpoint.every_steps is {}, but there is no checkpoint.directory to write to; give one, "
                            "for example \"directory\": \"runs/a\", or set every_steps to 0",
                            checkpoint.every_steps));
  }
}

}  // namespace

void complete(Config& config, const Value& root, const Origin& origin) {
  Completion completion{config, root, origin};
  completion.model();
  completion.data();
  completion.loss();
  completion.sequence();
  completion.duration();
  completion.batch();
  completion.pipeline();
  completion.others();
  complete_compression(config.parallel.compression, config.optimizer.type, root, origin);
  complete_exchange(config, origin);
}

}  // namespace trainer::config
