// JSON text to Value and back; nlohmann::json does the lexing and the printing of numbers and strings.
#include "json_value.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <unordered_set>

namespace trainer::config {

namespace {

std::string line_and_column(std::string_view text, std::size_t offset) {
  const std::string_view before = text.substr(0, std::min(offset, text.size()));
  const auto line = 1 + std::count(before.begin(), before.end(), '\n');
  const std::size_t newline = before.rfind('\n');
  const std::size_t column = newline == std::string_view::npos ? before.size() + 1 : before.size() - newline;
  return fmt::format("{}:{}", line, column);
}

/// Drops the library's prefix: "[json.exception.parse_error.101] parse error at line 3, column 5: ".
std::string plain_reason(std::string message) {
  const std::size_t bracket = message.find("] ");
  if (bracket != std::string::npos) message.erase(0, bracket + 2);
  if (message.rfind("parse error", 0) == 0) {
    const std::size_t colon = message.find(": ");
    if (colon != std::string::npos) message.erase(0, colon + 2);
  }
  return message;
}

/// Builds a Value from the parser's events; stops at the first thing that is not taken.
class Builder : public nlohmann::json_sax<nlohmann::json> {
 public:
  Builder(std::string_view text, Value& root, JsonError& error) : text_(text), root_(root), error_(error) {}

  bool null() override { return put({}); }
  bool boolean(bool v) override { return put({v}); }
  bool number_integer(number_integer_t v) override { return put({std::int64_t{v}}); }
  bool number_unsigned(number_unsigned_t v) override {
    if (v > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) return put({std::uint64_t{v}});
    return put({static_cast<std::int64_t>(v)});
  }
  bool number_float(number_float_t v, const string_t&) override { return put({v}); }
  bool string(string_t& v) override { return put({std::move(v)}); }
  bool binary(binary_t&) override { return false; }

  bool start_object(std::size_t) override { return open({Object{}}); }
  bool start_array(std::size_t) override { return open({Array{}}); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    Level& level = levels_.back();
    if (!level.names.insert(name).second) {
      error_ = {join_path(path(), name), "is written twice", false};
      return false;
    }
    level.container->as<Object>()->push_back({std::move(name), {}});
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& reason) override {
    error_ = {line_and_column(text_, position == 0 ? 0 : position - 1), plain_reason(reason.what()), true};
    return false;
  }

 private:
  struct Level {
    Value* container;
    std::unordered_set<std::string> names;
  };

  Value* put(Value value) {
    if (levels_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Value& container = *levels_.back().container;
    if (Array* array = container.as<Array>()) return &array->emplace_back(std::move(value));
    Value& member = container.as<Object>()->back().value;
    member = std::move(value);
    return &member;
  }

  bool open(Value empty) {
    if (levels_.size() >= kMaxDepth) {
      error_ = {path(), fmt::format("is nested deeper than {} levels", kMaxDepth), false};
      return false;
    }
    // Containers that are open are the last of their parents, so growing a parent never moves one of them.
    levels_.push_back({put(std::move(empty)), {}});
    return true;
  }

  bool close() {
    levels_.pop_back();
    return true;
  }

  std::string path() const {
    std::string result;
    for (const Level& level : levels_) {
      if (const Array* array = level.container->as<Array>()) {
        if (!array->empty()) result = join_path(result, array->size() - 1);
      } else if (const Object& object = *level.container->as<Object>(); !object.empty() && &level != &levels_.back()) {
        result = join_path(result, object.back().name);
      }
    }
    return result;
  }

  std::string_view text_;
  Value& root_;
  JsonError& error_;
  std::vector<Level> levels_;
};

std::string quoted(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

bool is_plain(const Value& value) { return !value.as<Array>() && !value.as<Object>(); }

std::string plain_text(const Value& value) {
  if (const bool* v = value.as<bool>()) return *v ? "true" : "false";
  if (const auto* v = value.as<std::int64_t>()) return std::to_string(*v);
  if (const auto* v = value.as<std::uint64_t>()) return std::to_string(*v);
  if (const double* v = value.as<double>()) return nlohmann::json(*v).dump();
  if (const auto* v = value.as<std::string>()) return quoted(*v);
  return "null";
}

/// indent < 0: everything on one line.
void print(const Value& value, int indent, std::string& out) {
  if (is_plain(value)) {
    out += plain_text(value);
    return;
  }
  const Array* array = value.as<Array>();
  const Object* object = value.as<Object>();
  const bool one_line = indent < 0 || (array && std::all_of(array->begin(), array->end(), is_plain));
  const int inner = one_line ? -1 : indent + 2;
  const std::string separator = one_line ? ", " : ",\n" + std::string(static_cast<std::size_t>(inner), ' ');
  const std::size_t count = array ? array->size() : object->size();
  out += array ? '[' : '{';
  if (!one_line && count > 0) out += separator.substr(1);
  for (std::size_t i = 0; i < count; ++i) {
    if (i > 0) out += separator;
    if (object) out += quoted((*object)[i].name) + ": ";
    print(array ? (*array)[i] : (*object)[i].value, inner, out);
  }
  if (!one_line && count > 0) out += "\n" + std::string(static_cast<std::size_t>(indent), ' ');
  out += array ? ']' : '}';
}

}  // namespace

const Value* Value::find(std::string_view name) const {
  const Object* object = as<Object>();
  if (!object) return nullptr;
  const auto found = std::find_if(object->begin(), object->end(), [&](const Member& m) { return m.name == name; });
  return found == object->end() ? nullptr : &found->value;
}

Value* Value::find(std::string_view name) { return const_cast<Value*>(std::as_const(*this).find(name)); }

bool read_json(std::string_view text, Value& value, JsonError& error) {
  if (text.size() > kMaxBytes) {
    error = {"", fmt::format("is {} bytes long; at most {} are read", text.size(), kMaxBytes), false};
    return false;
  }
  // The lexer takes a NUL byte for the end of its input and would not see what follows.
  if (const std::size_t nul = text.find('\0'); nul != std::string_view::npos) {
    error = {line_and_column(text, nul), "a NUL byte, which JSON does not allow", true};
    return false;
  }
  Builder builder(text, value, error);
  return nlohmann::json::sax_parse(text.begin(), text.end(), &builder);
}

std::string to_text(const Value& value) {
  std::string out;
  print(value, -1, out);
  return out;
}

std::string to_pretty_text(const Value& value) {
  std::string out;
  print(value, 0, out);
  return out + "\n";
}

std::string to_short_text(const Value& value) {
  constexpr std::size_t kMost = 60;
  std::string text = to_text(value);
  if (text.size() > kMost) {
    std::size_t end = kMost;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;  // not inside a character
    text = text.substr(0, end) + "…";
  }
  return text;
}

bool is_utf8(std::string_view text) {
  try {
    (void)nlohmann::json(text).dump();
    return true;
  } catch (const nlohmann::json::type_error&) {
    return false;
  }
}

std::string join_path(std::string_view path, std::string_view name) {
  const bool word = !name.empty() && std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  });
  std::string shown = word && name.size() <= 60 ? std::string(name) : quoted(std::string(name.substr(0, 60)));
  return path.empty() ? shown : fmt::format("{}.{}", path, shown);
}

std::string join_path(std::string_view path, std::size_t index) { return fmt::format("{}[{}]", path, index); }

}  // namespace trainer::config
