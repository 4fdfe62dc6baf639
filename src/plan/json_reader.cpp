#include "json_reader.hpp"

#include <fmt/format.h>

#include <set>

#include "trainer/core/error.hpp"

namespace trainer::plan {

namespace {

using Json = nlohmann::json;

std::string shortened(const Json& value) {
  constexpr std::size_t kMost = 60;
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  return text.size() <= kMost ? text : text.substr(0, kMost) + "…";
}

std::string listed(const std::vector<std::string>& words) {
  std::string all;
  for (const std::string& word : words) all += (all.empty() ? "" : ", ") + word;
  return all;
}

}  // namespace

Json JsonValue::document(const std::string& text, const std::string& source, const char* made_by) {
  constexpr std::size_t kMostBytes = std::size_t{64} << 20;
  constexpr int kMostDepth = 16;
  if (text.size() > kMostBytes) throw Error(ExitCode::Usage, fmt::format("{}: larger than 64 MiB", source));
  std::vector<std::set<std::string>> names;
  std::string twice;
  const auto check = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > kMostDepth && twice.empty()) twice = fmt::format("nested deeper than {} levels", kMostDepth);
    if (event == Json::parse_event_t::object_start) names.emplace_back();
    if (event == Json::parse_event_t::object_end && !names.empty()) names.pop_back();
    if (event == Json::parse_event_t::key && !names.back().insert(parsed.get<std::string>()).second) {
      twice = fmt::format("has \"{}\" twice in one object", parsed.get<std::string>());
    }
    return depth <= kMostDepth;
  };
  Json root;
  try {
    root = Json::parse(text, check);
  } catch (const Json::exception& error) {
    const std::string what = error.what();
    const std::size_t at = what.find("] ");
    throw Error(ExitCode::Usage, fmt::format("{}: not valid JSON: {}; expected {}", source,
                                             at == std::string::npos ? what : what.substr(at + 2), made_by));
  }
  if (!twice.empty()) throw Error(ExitCode::Usage, fmt::format("{}: {}", source, twice));
  return root;
}

void JsonValue::fail(const std::string& expected) const {
  throw Error(ExitCode::Usage, fmt::format("{}: {} is {}; expected {}", *source_,
                                           path_.empty() ? "the document" : path_, shortened(*value_), expected));
}

void JsonValue::only(const std::vector<std::string>& names) const {
  if (!value_->is_object()) fail("an object");
  for (const auto& [name, member] : value_->items()) {
    if (std::find(names.begin(), names.end(), name) != names.end()) continue;
    const std::string near = nearest_word(name.substr(0, 100), names);
    const std::string prefix = path_.empty() ? "" : path_ + ".";
    throw Error(ExitCode::Usage,
                fmt::format("{}: unknown key {}{} (its value is {}); {}", *source_, prefix, name, shortened(member),
                            near.empty() ? "the keys here are " + listed(names)
                                         : fmt::format("did you mean {}{}?", prefix, near)));
  }
}

JsonValue JsonValue::at(const char* name) const {
  const std::string path = path_.empty() ? name : path_ + "." + name;
  if (!value_->is_object()) fail("an object");
  if (!value_->contains(name)) throw Error(ExitCode::Usage, fmt::format("{}: {} is missing", *source_, path));
  return {(*value_)[name], *source_, path};
}

std::vector<JsonValue> JsonValue::elements() const {
  if (!value_->is_array()) fail("a list");
  std::vector<JsonValue> all;
  for (std::size_t i = 0; i < value_->size(); ++i) {
    all.emplace_back((*value_)[i], *source_, fmt::format("{}[{}]", path_, i));
  }
  return all;
}

double JsonValue::number(double least, double most) const {
  const double number = value_->is_number() ? value_->get<double>() : least - 1;
  if (!(number >= least && number <= most)) fail(fmt::format("a number from {} to {}", least, most));
  return number;
}

std::int64_t JsonValue::integer(std::int64_t least, std::int64_t most) const {
  const std::string expected = fmt::format("an integer from {} to {}", least, most);
  if (!value_->is_number_integer()) fail(expected);
  if (value_->is_number_unsigned() && value_->get<std::uint64_t>() > static_cast<std::uint64_t>(most)) fail(expected);
  const auto number = value_->get<std::int64_t>();
  if (number < least || number > most) fail(expected);
  return number;
}

std::string JsonValue::text() const {
  if (!value_->is_string()) fail("a string");
  return value_->get<std::string>();
}

}  // namespace trainer::plan
