// The keys of parallel.compression, and which of them belong to which type.
#include "compression_keys.hpp"

#include <fmt/format.h>

#include <array>
#include <utility>

namespace trainer::config {

namespace {

constexpr std::array<std::pair<const char*, CompressionType>, 6> kTypes = {{{"none", CompressionType::None},
                                                                            {"top_k", CompressionType::TopK},
                                                                            {"random_k", CompressionType::RandomK},
                                                                            {"sign", CompressionType::Sign},
                                                                            {"power_sgd", CompressionType::PowerSgd},
                                                                            {"int8", CompressionType::Int8}}};
constexpr std::int64_t kMostRank = 1024;
constexpr std::int64_t kMostElements = std::int64_t{1} << 40;

const char* name_of(CompressionType type) {
  for (const auto& [word, value] : kTypes) {
    if (value == type) return word;
  }
  return "";
}

void set_type(Compression& c, const Value& value) {
  for (const auto& [word, type] : kTypes) {
    if (*value.as<std::string>() == word) c.type = type;
  }
}

double number_of(const Value& value) {
  if (const auto* integer = value.as<std::int64_t>()) return static_cast<double>(*integer);
  return *value.as<double>();
}

void set_layers(Compression& c, const Value& value) {
  if (value.as<std::string>()) return;  // "all"
  for (const Value& name : *value.as<Array>()) c.layers.push_back(*name.as<std::string>());
}

Value get_layers(const Compression& c) {
  if (c.layers.empty()) return {std::string("all")};
  Array names;
  for (const std::string& name : c.layers) names.push_back({name});
  return {std::move(names)};
}

Key<Parallel> bind(const char* name, Rule rule, const char* help, void (*set)(Compression&, const Value&),
                   Value (*get)(const Compression&)) {
  return {{name, std::move(rule), help, "", get({})},
          [set](Parallel& p, const Value& v) { set(p.compression, v); },
          [get](const Parallel& p) { return get(p.compression); }};
}

// A key that only some types have, written with another value than the one it has when it is left out.
void refuse_unless(bool fits, const Value& written, const char* key, bool is_default, const char* types,
                   const Compression& c, const Origin& origin) {
  if (fits || is_default || !written.find(key)) return;
  origin.fail({fmt::format("parallel.compression.{}", key), "parallel.compression.type"},
              fmt::format("parallel.compression.{} is {}, but parallel.compression.type is \"{}\"; it belongs to {}",
                          key, to_short_text(*written.find(key)), name_of(c.type), types));
}

// A vote gives every element of a tensor one magnitude, so AdamW's second moment is one number for all of them: what it
// is there for is gone, and AdamW moves as an SGD with momentum of another learning rate does (Tang et al., "1-bit
// Adam", ICML 2021; there the second moment comes from uncompressed steps and is then frozen). The other types keep
// sizes.
void refuse_sign_with_adamw(const Value& root, const Origin& origin) {
  const Value* written = root.find("optimizer");
  const bool by_default = !written || !written->find("type");
  origin.fail(
      {"parallel.compression.type", "optimizer.type"},
      fmt::format("parallel.compression.type is \"sign\", which gives every element of a tensor the same "
                  "magnitude, but optimizer.type is \"adamw\"{}, which divides each element by its own; expected "
                  "optimizer.type \"sgd\", for example {{\"type\": \"sgd\", \"learning_rate\": 0.05, \"momentum\": "
                  "0.9}}, or another compression",
                  by_default ? " (the default)" : ""));
}

}  // namespace

std::vector<Key<Parallel>> compression_keys() {
  Rule types{.kind = Kind::Choice};
  for (const auto& [word, type] : kTypes) types.choices.emplace_back(word);
  return {bind("compression.type", std::move(types), "how replicas compress the gradients that they send", set_type,
               [](const Compression& c) { return Value{std::string(name_of(c.type))}; }),
          bind(
              "compression.ratio", {.kind = Kind::Number, .high = 1, .open_low = true},
              "top_k, random_k: share of a tensor's elements that is sent",
              [](Compression& c, const Value& v) { c.ratio = number_of(v); },
              [](const Compression& c) { return Value{c.ratio}; }),
          bind(
              "compression.rank", {.kind = Kind::Integer, .least = 1, .most = kMostRank},
              "power_sgd: columns of the two factors",
              [](Compression& c, const Value& v) { c.rank = *v.as<std::int64_t>(); },
              [](const Compression& c) { return Value{c.rank}; }),
          bind(
              "compression.error_feedback", {.kind = Kind::Boolean},
              "top_k, random_k, power_sgd: what was not sent is added to the next step's gradient",
              [](Compression& c, const Value& v) { c.error_feedback = *v.as<bool>(); },
              [](const Compression& c) { return Value{c.error_feedback}; }),
          bind(
              "compression.min_elements", {.kind = Kind::Integer, .least = 0, .most = kMostElements},
              "smaller parameters are sent whole",
              [](Compression& c, const Value& v) { c.min_elements = *v.as<std::int64_t>(); },
              [](const Compression& c) { return Value{c.min_elements}; }),
          bind("compression.layers", {.kind = Kind::Names, .choices = {"all"}},
               "parameters or layers to compress, * for any letters: [\"h.*.mlp\", \"head\"]; others are sent whole",
               set_layers, get_layers)};
}

void complete_compression(Compression& c, OptimizerType optimizer, const Value& root, const Origin& origin) {
  const Value* parallel = root.find("parallel");
  const Value* written = parallel ? parallel->find("compression") : nullptr;
  if (!written) return;
  if (!written->find("type") && !written->as<Object>()->empty()) {
    origin.fail(
        {"parallel.compression.type"},
        "parallel.compression.type is missing; for example \"compression\": {\"type\": \"top_k\", \"ratio\": 0.01}");
  }
  const bool sparse = c.type == CompressionType::TopK || c.type == CompressionType::RandomK;
  const bool power = c.type == CompressionType::PowerSgd;
  const bool none = c.type == CompressionType::None;
  const Compression usual;
  refuse_unless(sparse, *written, "ratio", c.ratio == usual.ratio, "\"top_k\" and \"random_k\"", c, origin);
  refuse_unless(power, *written, "rank", c.rank == usual.rank, "\"power_sgd\"", c, origin);
  refuse_unless(!none, *written, "min_elements", c.min_elements == usual.min_elements, "every other type", c, origin);
  refuse_unless(!none, *written, "layers", c.layers.empty(), "every other type", c, origin);
  if (c.type == CompressionType::Sign && optimizer == OptimizerType::AdamW) refuse_sign_with_adamw(root, origin);
  if (sparse || power || none) return;
  if (!written->find("error_feedback")) c.error_feedback = false;
  if (c.error_feedback) {
    origin.fail({"parallel.compression.error_feedback", "parallel.compression.type"},
                fmt::format("parallel.compression.error_feedback is true, but parallel.compression.type is \"{}\", "
                            "which has none, as {}; expected false, or \"top_k\", \"random_k\" or \"power_sgd\"",
                            name_of(c.type),
                            c.type == CompressionType::Sign ? "no replica knows what the vote leaves of its gradient"
                                                            : "both of its rounds round"));
  }
}

}  // namespace trainer::config
