// --set flags: their paths, their values, and their place in error messages.
#include "origin.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "trainer/core/error.hpp"

namespace trainer::config {

namespace {

/// One step of a path: a member's name, or an element's index.
struct Step {
  std::string name;
  std::optional<std::size_t> index;
};

[[noreturn]] void refuse(const std::string& text, const std::string& why) {
  throw Error(ExitCode::Usage, fmt::format("--set {}: {}", text, why));
}

void add_indices(const std::string& text, std::string_view rest, std::vector<Step>& steps) {
  while (!rest.empty()) {
    const std::size_t end = rest.find(']');
    const std::string_view digits = end == std::string_view::npos ? "" : rest.substr(1, end - 1);
    const bool number = rest[0] == '[' && !digits.empty() && digits.size() < 8 &&
                        std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (!number) refuse(text, fmt::format("cannot read \"{}\" in the path; an element is written name[2]", rest));
    steps.push_back({"", std::stoul(std::string(digits))});
    rest.remove_prefix(end + 1);
  }
}

std::vector<Step> steps_of(const std::string& text, std::string_view path) {
  std::vector<Step> steps;
  while (true) {
    const std::size_t dot = path.find('.');
    const std::string_view part = path.substr(0, dot);
    const std::size_t bracket = std::min(part.find('['), part.size());
    if (bracket == 0) refuse(text, "an empty name in the path; write --set training.steps=100");
    steps.push_back({std::string(part.substr(0, bracket)), {}});
    add_indices(text, part.substr(bracket), steps);
    if (dot == std::string_view::npos) return steps;
    path.remove_prefix(dot + 1);
  }
}

/// The element of a list; throws when `value` is no list or too short.
Value* element(Value* value, std::size_t index, const std::string& path, const std::string& text) {
  Array* array = value->as<Array>();
  if (!array) refuse(text, fmt::format("{} is {}, not a list", path, to_short_text(*value)));
  if (index >= array->size()) {
    refuse(text, fmt::format("{} has {} elements, counted from 0; there is no [{}]", path, array->size(), index));
  }
  return &(*array)[index];
}

/// The member of an object, made when there is none; nullptr when there is none and `make` is false.
Value* member(Value* value, const std::string& name, const std::string& path, const std::string& text, bool make) {
  if (value->is_null() && make) value->data = Object{};
  Object* object = value->as<Object>();
  if (!object) {
    if (value->is_null()) return nullptr;
    refuse(text, fmt::format("{} is {}, not an object with keys", path.empty() ? "the document" : path,
                             to_short_text(*value)));
  }
  if (Value* found = value->find(name)) return found;
  if (!make) return nullptr;
  object->push_back({name, {}});
  return &object->back().value;
}

std::size_t depth_of(const Value& value) {
  std::size_t deepest = 0;
  if (const Array* array = value.as<Array>()) {
    for (const Value& v : *array) deepest = std::max(deepest, depth_of(v));
  } else if (const Object* object = value.as<Object>()) {
    for (const Member& m : *object) deepest = std::max(deepest, depth_of(m.value));
  } else {
    return 0;
  }
  return deepest + 1;
}

Value value_of(const std::string& text, const std::string& raw) {
  Value value;
  JsonError error;
  if (read_json(raw, value, error)) return value;
  if (!error.syntax) {
    const std::string where = error.where.empty() ? "" : error.where + " ";
    refuse(text.substr(0, 200), fmt::format("{}{}", error.where.empty() ? "the value " : where, error.what));
  }
  if (!is_utf8(raw)) refuse(text, "the value is not UTF-8");
  return {raw};
}

void erase(Value* parent, const Step& last) {
  if (Object* object = parent->as<Object>()) {
    std::erase_if(*object, [&](const Member& m) { return m.name == last.name; });
  }
}

bool is_prefix(const std::string& path, const std::string& of) {
  if (of.compare(0, path.size(), path) != 0) return false;
  return of.size() == path.size() || of[path.size()] == '.' || of[path.size()] == '[';
}

std::string shortened(const std::string& text) { return text.size() <= 120 ? text : text.substr(0, 117) + "..."; }

}  // namespace

void Origin::apply(Value& root, const std::string& override_text) {
  const std::size_t equals = override_text.find('=');
  if (equals == std::string::npos || equals == 0) {
    refuse(shortened(override_text), "expected key=value, for example --set training.steps=100");
  }
  const std::string raw = override_text.substr(equals + 1);
  const std::vector<Step> steps = steps_of(override_text, std::string_view(override_text).substr(0, equals));
  if (steps.size() > kMaxDepth) refuse(shortened(override_text), "the path is deeper than 64 levels");
  Value value = value_of(override_text, raw);
  if (steps.size() + depth_of(value) > kMaxDepth) refuse(shortened(override_text), "deeper than 64 levels");
  const bool take_away = value.is_null() && !steps.back().index;

  Value* target = &root;
  std::string path;
  std::string first_made;
  for (std::size_t i = 0; i + (take_away ? 1 : 0) < steps.size() && target; ++i) {
    target = steps[i].index ? element(target, *steps[i].index, path, override_text)
                            : member(target, steps[i].name, path, override_text, !take_away);
    path = steps[i].index ? join_path(path, *steps[i].index) : join_path(path, steps[i].name);
    if (first_made.empty() && target && target->is_null()) first_made = path;
  }
  if (take_away) {
    if (target) erase(target, steps.back());
    path = join_path(path, steps.back().name);
  } else {
    *target = std::move(value);
  }
  overrides_.push_back({path, first_made, shortened(override_text), raw});
}

void Origin::fail(const std::vector<std::string>& paths, const std::string& message) const {
  for (auto it = overrides_.rbegin(); it != overrides_.rend(); ++it) {
    for (const std::string& path : paths) {
      const bool made = !it->first_made.empty() && is_prefix(it->first_made, path);
      if (made || is_prefix(it->path, path))
        throw Error(ExitCode::Usage, fmt::format("--set {}: {}", it->text, message));
    }
  }
  throw Error(ExitCode::Usage, fmt::format("{}: {}", source_, message));
}

const std::string* Origin::raw_value(const std::string& path) const {
  for (auto it = overrides_.rbegin(); it != overrides_.rend(); ++it) {
    if (it->path == path) return &it->raw;
  }
  return nullptr;
}

}  // namespace trainer::config
