// Config to JSON by the table of keys, and the table itself as help.
#include <fmt/format.h>

#include "read.hpp"
#include "schema.hpp"

namespace trainer::config {

namespace {

template <class T>
void write_keys(const T& source, const std::vector<Key<T>>& keys, Object& object);

Value write_layers(const std::vector<LayerConfig>& layers) {
  Array list;
  for (const LayerConfig& layer : layers) {
    for (const LayerSection& known : schema().layers) {
      if (known.type != layer.type) continue;
      Object object{{"type", {known.section.type}}};
      write_keys(layer, known.section.keys, object);
      list.push_back({std::move(object)});
    }
  }
  return {std::move(list)};
}

/// The object that the dotted name `name` ends in, made when there is none; `name` keeps its last part.
Object& parent_of(std::string& name, Object& object) {
  const std::size_t dot = name.find('.');
  if (dot == std::string::npos) return object;
  const std::string parent = name.substr(0, dot);
  name.erase(0, dot + 1);
  for (Member& member : object) {
    if (member.name == parent) return *member.value.as<Object>();
  }
  return *object.emplace_back(Member{parent, {Object{}}}).value.as<Object>();
}

template <class T>
void write_keys(const T& source, const std::vector<Key<T>>& keys, Object& object) {
  for (const Key<T>& key : keys) {
    std::string name = key.name;
    Object& parent = parent_of(name, object);
    parent.push_back({name, key.layers ? write_layers(source.*(key.layers)) : key.get(source)});
  }
}

template <class T>
Object write_section(const T& source, const Section<T>& section) {
  Object object;
  if (!section.type.empty()) object.push_back({"type", {section.type}});
  write_keys(source, section.keys, object);
  return object;
}

struct WriteSource {
  Object operator()(const TextData& d) const { return write_section(d, schema().text); }
  Object operator()(const CsvData& d) const { return write_section(d, schema().csv); }
  Object operator()(const IdxData& d) const { return write_section(d, schema().idx); }
  Object operator()(const SyntheticData& d) const { return write_section(d, schema().synthetic); }
};

struct WriteModel {
  Object operator()(const GptModel& m) const { return write_section(m, schema().gpt); }
  Object operator()(const MlpModel& m) const { return write_section(m, schema().mlp); }
  Object operator()(const SequentialModel& m) const { return write_section(m, schema().sequential); }
};

std::string help_of(const KeyInfo& key) {
  const std::string state = key.required()                ? "required, for example " + key.example
                            : key.default_value.is_null() ? "required"
                                                          : "default " + to_text(key.default_value);
  return fmt::format("  {}: {}\n      {}; {}\n", key.name, key.help, expectation(key.rule), state);
}

}  // namespace

Value write_model(const Config& config) { return {std::visit(WriteModel{}, config.model)}; }

Value write_config(const Config& config) {
  const Schema& s = schema();
  Object data = std::visit(WriteSource{}, config.data.source);
  write_keys(config.data, s.data.keys, data);
  const bool sgd = config.optimizer.type == OptimizerType::Sgd;
  return {Object{{"model", write_model(config)},
                 {"data", {std::move(data)}},
                 {"training", {write_section(config.training, s.training)}},
                 {"optimizer", {write_section(config.optimizer, sgd ? s.sgd : s.adamw)}},
                 {"parallel", {write_section(config.parallel, s.parallel)}},
                 {"checkpoint", {write_section(config.checkpoint, s.checkpoint)}},
                 {"logging", {write_section(config.logging, s.logging)}}}};
}

std::string to_json(const Config& config) { return to_pretty_text(write_config(config)); }

std::string model_json(const Config& config) { return to_text(write_model(config)); }

std::string describe_keys() {
  std::string text =
      "Keys of the configuration, as the file spells them; --set SECTION.KEY=VALUE reaches every one.\n"
      "--set SECTION.KEY=null takes a key of the file away, so that its default counts.\n"
      "A list's element is reached by its index: --set model.layers[2].output_size=4.\n";
  for (const SectionInfo& section : sections()) {
    const std::string* usual = section.keys[0]->default_value.as<std::string>();
    text += "\n" + section.path;
    if (!section.type.empty()) text += fmt::format(" of type \"{}\"", section.type);
    text += usual && !usual->empty() && *usual == section.type ? " (the default)\n" : "\n";
    for (const KeyInfo* key : section.keys) {
      if (key->name != "type") text += help_of(*key);
    }
  }
  return text;
}

}  // namespace trainer::config
