// JSON to Config by the table of keys.
#include "read.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "check_value.hpp"
#include "schema.hpp"
#include "trainer/core/error.hpp"

namespace trainer::config {

namespace {

std::string join(const std::vector<std::string>& words) {
  std::string result;
  for (const std::string& word : words) result += (result.empty() ? "" : ", ") + word;
  return result;
}

const SectionInfo& find_section(const std::string& path, const std::string& type) {
  for (const SectionInfo& section : sections()) {
    if (section.path == path && section.type == type) return section;
  }
  internal_error("a section of the configuration has no keys");
}

std::vector<std::string> section_names() {
  std::vector<std::string> names;
  for (const SectionInfo& section : sections()) {
    const bool top = section.path.find('.') == std::string::npos;
    if (top && (names.empty() || names.back() != section.path)) names.push_back(section.path);
  }
  return names;
}

/// The word of `names` that `name` was probably meant to be, or begins; "" when there is none.
std::string nearest_name(const std::string& name, const std::vector<std::string>& names) {
  constexpr std::size_t kLongest = 100;  // keys are shorter
  const std::string near = nearest_word(name.substr(0, kLongest), names);
  if (!near.empty() || name.size() < 3) return near;
  const auto longer = std::find_if(names.begin(), names.end(), [&](const auto& n) { return n.rfind(name, 0) == 0; });
  return longer == names.end() ? "" : *longer;
}

/// Which other type or section has a key of this name; "" when none has.
std::string known_elsewhere(const std::string& name, const SectionInfo* here) {
  std::vector<std::string> types;
  std::string section;
  for (const SectionInfo& other : sections()) {
    const bool has = std::any_of(other.keys.begin(), other.keys.end(), [&](auto* key) { return key->name == name; });
    if (!has) continue;
    if (here && other.path == here->path) types.push_back('"' + other.type + '"');
    if (section.empty() && other.path.find('[') == std::string::npos) section = other.path;
  }
  if (!types.empty()) return fmt::format("it belongs to type {}, and the type here is \"{}\"", join(types), here->type);
  if (!section.empty() && name != "type") return fmt::format("did you mean {}.{}?", section, name);
  return "";
}

class Reader {
 public:
  explicit Reader(const Origin& origin) : origin_(origin) {}
  Config read(const Value& root);

 private:
  const Value& object_of(const Value& root, const std::string& name, const char* example);
  std::string type_of(const Value& object, const std::string& path, const KeyInfo& info);

  /// Refuses members of `object` that the section does not have; `prefix` is "schedule." inside that object.
  void check_names(const Value& object, const std::string& path, const SectionInfo& section,
                   const std::string& prefix = "");
  [[noreturn]] void unknown_key(const Value& value, const std::string& path, const std::string& name,
                                const std::string& prefix, const SectionInfo& section);
  [[noreturn]] void unknown_section(const Member& member);

  template <class T>
  void fill(T& target, const Value& object, const std::string& path, const std::vector<Key<T>>& keys);
  template <class T>
  T read_section(const Value& object, const Section<T>& section);
  std::vector<LayerConfig> read_layers(const Value& list, const std::string& path);

  const Origin& origin_;
};

void Reader::unknown_key(const Value& value, const std::string& path, const std::string& name,
                         const std::string& prefix, const SectionInfo& section) {
  const std::string object_path = path.substr(0, path.size() - join_path("", name.substr(prefix.size())).size());
  std::vector<std::string> names;
  for (const KeyInfo* key : section.keys) {
    if (key->name.rfind(prefix, 0) == 0) names.push_back(key->name.substr(prefix.size()));
  }
  std::string hint = known_elsewhere(name, &section);
  if (hint.empty()) {
    const std::string near = nearest_name(name.substr(prefix.size()), names);
    hint = near.empty() ? "the keys here are " + join(names) : fmt::format("did you mean {}{}?", object_path, near);
  }
  origin_.fail({path}, fmt::format("unknown key {} (its value is {}); {}", path, to_short_text(value), hint));
}

void Reader::unknown_section(const Member& member) {
  const std::string path = join_path("", member.name);
  const std::vector<std::string> names = section_names();
  const std::string near = nearest_name(member.name, names);
  std::string hint = near.empty() ? known_elsewhere(member.name, nullptr) : fmt::format("did you mean {}?", near);
  if (hint.empty()) hint = "the keys here are " + join(names);
  origin_.fail({path}, fmt::format("unknown key {} (its value is {}); {}", path, to_short_text(member.value), hint));
}

void Reader::check_names(const Value& object, const std::string& path, const SectionInfo& section,
                         const std::string& prefix) {
  for (const Member& member : *object.as<Object>()) {
    const std::string name = prefix + member.name;
    const std::string member_path = join_path(path, member.name);
    const auto is = [&](const KeyInfo* key) { return key->name == name; };
    const auto begins = [&](const KeyInfo* key) { return key->name.rfind(name + ".", 0) == 0; };
    if (std::any_of(section.keys.begin(), section.keys.end(), is)) continue;
    if (std::none_of(section.keys.begin(), section.keys.end(), begins)) {
      unknown_key(member.value, member_path, name, prefix, section);
    }
    if (!member.value.as<Object>()) {
      origin_.fail({member_path},
                   fmt::format("{} is {}; expected an object", member_path, to_short_text(member.value)));
    }
    check_names(member.value, member_path, section, name + ".");
  }
}

template <class T>
void Reader::fill(T& target, const Value& object, const std::string& path, const std::vector<Key<T>>& keys) {
  for (const Key<T>& key : keys) {
    const std::size_t dot = key.name.find('.');
    const Value* value = object.find(key.name.substr(0, dot));
    if (value && dot != std::string::npos) value = value->find(key.name.substr(dot + 1));
    const std::string key_path = path + "." + key.name;
    if (!value) {
      if (!key.required()) continue;
      origin_.fail({key_path}, fmt::format("{} is missing; for example \"{}\": {}", key_path, key.name, key.example));
    }
    Value text;
    if (key.rule.kind == Kind::Text && !value->template as<std::string>()) {
      // A flag's text is text, also where it looks like a number: --set data.target=1.
      if (const std::string* raw = origin_.raw_value(key_path)) value = &(text = Value{*raw});
    }
    check_value(*value, key_path, key.rule, origin_);
    if (key.layers) {
      target.*(key.layers) = read_layers(*value, key_path);
    } else {
      key.set(target, *value);
    }
  }
}

template <class T>
T Reader::read_section(const Value& object, const Section<T>& section) {
  T result;
  check_names(object, section.path, find_section(section.path, section.type));
  fill(result, object, section.path, section.keys);
  return result;
}

const Value& Reader::object_of(const Value& root, const std::string& name, const char* example) {
  static const Value kEmpty{Object{}};
  const Value* found = root.find(name);
  if (!found && *example) origin_.fail({name}, fmt::format("{0} is missing; for example \"{0}\": {1}", name, example));
  if (found && !found->as<Object>()) {
    origin_.fail({name}, fmt::format("{} is {}; expected an object", name, to_short_text(*found)));
  }
  return found ? *found : kEmpty;
}

std::string Reader::type_of(const Value& object, const std::string& path, const KeyInfo& info) {
  const std::string type_path = path + ".type";
  const Value* type = object.find("type");
  if (!type && info.required()) {
    origin_.fail({type_path}, fmt::format("{} is missing; expected {}", type_path, expectation(info.rule)));
  }
  if (!type) return *info.default_value.as<std::string>();
  check_value(*type, type_path, info.rule, origin_);
  return *type->as<std::string>();
}

std::vector<LayerConfig> Reader::read_layers(const Value& list, const std::string& path) {
  std::vector<LayerConfig> layers;
  for (const Value& element : *list.as<Array>()) {
    const std::string layer_path = join_path(path, layers.size());
    if (!element.as<Object>()) {
      origin_.fail({layer_path}, fmt::format("{} is {}; expected an object, for example {{\"type\": \"relu\"}}",
                                             layer_path, to_short_text(element)));
    }
    const std::string type = type_of(element, layer_path, schema().layer_type);
    const auto known = std::find_if(schema().layers.begin(), schema().layers.end(),
                                    [&](const LayerSection& l) { return l.section.type == type; });
    check_names(element, layer_path, find_section(known->section.path, type));
    LayerConfig layer;
    layer.type = known->type;
    layer.path = layer_path;
    fill(layer, element, layer_path, known->section.keys);
    layers.push_back(std::move(layer));
  }
  return layers;
}

Config Reader::read(const Value& root) {
  const Object* document = root.as<Object>();
  if (!document) origin_.fail({}, fmt::format("the document is {}; expected an object", to_short_text(root)));
  const std::vector<std::string> names = section_names();
  for (const Member& member : *document) {
    if (std::find(names.begin(), names.end(), member.name) == names.end()) unknown_section(member);
  }
  const Schema& s = schema();
  Config config;
  const Value& model = object_of(root, "model", R"({"type": "mlp", ...})");
  const std::string model_type = type_of(model, "model", s.model_type);
  if (model_type == s.gpt.type) config.model = read_section(model, s.gpt);
  if (model_type == s.mlp.type) config.model = read_section(model, s.mlp);
  if (model_type == s.sequential.type) config.model = read_section(model, s.sequential);

  const Value& data = object_of(root, "data", R"({"type": "text", "path": "corpus.txt"})");
  const std::string data_type = type_of(data, "data", s.data_type);
  if (data_type == s.text.type) config.data.source = read_section(data, s.text);
  if (data_type == s.csv.type) config.data.source = read_section(data, s.csv);
  if (data_type == s.idx.type) config.data.source = read_section(data, s.idx);
  if (data_type == s.synthetic.type) config.data.source = read_section(data, s.synthetic);
  fill(config.data, data, "data", s.data.keys);

  config.training = read_section(object_of(root, "training", R"({"steps": 100, "batch_size": 32})"), s.training);
  const Value& optimizer = object_of(root, "optimizer", "");
  const bool sgd = type_of(optimizer, "optimizer", s.optimizer_type) == s.sgd.type;
  config.optimizer = read_section(optimizer, sgd ? s.sgd : s.adamw);
  config.optimizer.type = sgd ? OptimizerType::Sgd : OptimizerType::AdamW;
  config.parallel = read_section(object_of(root, "parallel", ""), s.parallel);
  config.checkpoint = read_section(object_of(root, "checkpoint", ""), s.checkpoint);
  config.logging = read_section(object_of(root, "logging", ""), s.logging);
  return config;
}

}  // namespace

Config read_config(const Value& root, const Origin& origin) { return Reader(origin).read(root); }

}  // namespace trainer::config
