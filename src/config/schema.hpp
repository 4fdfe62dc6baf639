// The table of keys: for every JSON key its name, the values it takes, its default, its help and the field it fills.
// Reading, printing, --set, suggestions and help all go by this table.
#pragma once

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "json_value.hpp"
#include "trainer/config/config.hpp"

namespace trainer::config {

enum class Kind {
  Integer,
  Seed,
  Number,
  Boolean,
  Text,
  Character,
  Choice,
  Integers,
  Numbers,
  NumberPair,
  Partition,
  Names,
  Bytes,
  Layers
};

/// Which values a key takes. A list's bounds are those of its elements.
struct Rule {
  Kind kind = Kind::Text;
  std::int64_t least = 0;  // Integer, Integers, Partition; Text: the least length
  std::int64_t most = 0;
  double low = 0;  // Number, Numbers, NumberPair; included unless `open_low`
  double high = std::numeric_limits<double>::infinity();
  bool open_low = false;
  bool open_high = false;                 // `high` itself is not taken
  std::vector<std::string> choices = {};  // Choice, Partition, Names
  std::vector<std::string> later = {};    // words of the field that this version does not have
};

struct KeyInfo {
  std::string name;  // in its section: "batch_size", "schedule.type"
  Rule rule;
  std::string help;
  std::string example;  // as JSON; not empty: the key is required
  Value default_value;

  bool required() const { return !example.empty(); }
};

/// A key that fills a field of T. `set` is given values that keep to the rule only.
template <class T>
struct Key : KeyInfo {
  std::function<void(T&, const Value&)> set;
  std::function<Value(const T&)> get;
  std::vector<LayerConfig> T::*layers = nullptr;  // Kind::Layers, instead of set and get
};

/// The keys of one JSON object; of one of its types where the object has a "type".
template <class T>
struct Section {
  std::string path;  // "model"
  std::string type;  // "gpt", or ""
  std::vector<Key<T>> keys;
};

struct LayerSection {
  LayerConfig::Type type;
  Section<LayerConfig> section;
};

struct Schema {
  Section<GptModel> gpt;
  Section<MlpModel> mlp;
  Section<SequentialModel> sequential;
  std::vector<LayerSection> layers;
  Section<TextData> text;
  Section<CsvData> csv;
  Section<IdxData> idx;
  Section<SyntheticData> synthetic;
  Section<Data> data;  // keys of every type
  Section<Training> training;
  Section<Optimizer> sgd;
  Section<Optimizer> adamw;
  Section<Parallel> parallel;
  Section<Checkpoint> checkpoint;
  Section<Logging> logging;

  KeyInfo model_type, layer_type, data_type, optimizer_type;
};

const Schema& schema();

/// One section without its fields, for messages and help.
struct SectionInfo {
  std::string path;  // "model", "model.layers[]"
  std::string type;
  std::vector<const KeyInfo*> keys;  // with "type" first where there is one
};
const std::vector<SectionInfo>& sections();

/// "an integer from 1 to 10", "a number in [0, 1)", `"gpt", "mlp" or "sequential"`.
std::string expectation(const Rule& rule);

}  // namespace trainer::config
