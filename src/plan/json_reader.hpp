// Reads members of a JSON document with a check of each, so that a wrong file is one clear sentence.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

namespace trainer::plan {

/// A value and where it stands. Every method throws Error(Usage): "FILE: PATH is …; expected …".
class JsonValue {
 public:
  JsonValue(const nlohmann::json& value, const std::string& source, std::string path)
      : value_(&value), source_(&source), path_(std::move(path)) {}

  /// The document, read strictly: at most 64 MiB, no duplicate names.
  static nlohmann::json document(const std::string& text, const std::string& source, const char* made_by);

  /// An object whose names are all among `names`.
  void only(const std::vector<std::string>& names) const;
  bool has(const char* name) const { return value_->contains(name); }
  JsonValue at(const char* name) const;
  std::vector<JsonValue> elements() const;
  double number(double least, double most) const;
  std::int64_t integer(std::int64_t least, std::int64_t most) const;
  std::string text() const;
  [[noreturn]] void fail(const std::string& expected) const;
  const std::string& path() const { return path_; }

 private:
  const nlohmann::json* value_;
  const std::string* source_;
  std::string path_;
};

}  // namespace trainer::plan
