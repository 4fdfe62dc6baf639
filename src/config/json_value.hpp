// A JSON document as a tree whose numbers keep what they were written as, so that no cast goes unchecked.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace trainer::config {

struct Value;
struct Member;
using Array = std::vector<Value>;
using Object = std::vector<Member>;  // in the order written; names are unique

/// Integers beyond int64 are uint64; numbers with a point or an exponent, or beyond uint64, are double. Never NaN or
/// infinite when read from text.
struct Value {
  std::variant<std::monostate, bool, std::int64_t, std::uint64_t, double, std::string, Array, Object> data;

  template <class T>
  const T* as() const {
    return std::get_if<T>(&data);
  }
  template <class T>
  T* as() {
    return std::get_if<T>(&data);
  }
  bool is_null() const { return data.index() == 0; }
  /// The member of an object; nullptr when there is none or this is no object.
  const Value* find(std::string_view name) const;
  Value* find(std::string_view name);
};

struct Member {
  std::string name;
  Value value;
};

/// Text that is no JSON, or JSON that is not taken. `where` is "line:column" or a JSON path.
struct JsonError {
  std::string where;
  std::string what;
  bool syntax = false;  // no JSON at all
};

inline constexpr int kMaxDepth = 64;
inline constexpr std::size_t kMaxBytes = std::size_t{1} << 20;

/// Reads one document of at most kMaxBytes and kMaxDepth, without duplicate names; else fills `error`.
bool read_json(std::string_view text, Value& value, JsonError& error);

/// One line; text that is not UTF-8 is shown with replacement characters.
std::string to_text(const Value& value);

/// Indented by two spaces, lists of plain values on one line.
std::string to_pretty_text(const Value& value);

/// For messages: one line of at most about 60 characters.
std::string to_short_text(const Value& value);

bool is_utf8(std::string_view text);

/// "a.b" of ("a", "b"); names that are no plain words are quoted.
std::string join_path(std::string_view path, std::string_view name);
std::string join_path(std::string_view path, std::size_t index);

}  // namespace trainer::config
