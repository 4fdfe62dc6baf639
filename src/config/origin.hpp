// Where each value of a configuration came from, the --set flags, and the errors that name both.
#pragma once

#include <string>
#include <vector>

#include "json_value.hpp"

namespace trainer::config {

/// Throws Error(Usage) for values of one source and the overrides applied to it.
class Origin {
 public:
  explicit Origin(std::string source_name) : source_(std::move(source_name)) {}

  /// Applies "a.b[2].c=value" to `root`: value as JSON, or else as a string; null takes the key away, so that its
  /// default counts.
  void apply(Value& root, const std::string& override_text);

  /// "SOURCE: message", or "--set A=B: message" when one of `paths` was set that way (the last flag that did).
  [[noreturn]] void fail(const std::vector<std::string>& paths, const std::string& message) const;

  /// What stood right of "=" when exactly `path` was set by a flag; else nullptr.
  const std::string* raw_value(const std::string& path) const;

 private:
  struct Override {
    std::string path;
    std::string first_made;  // the outermost object on the path that the document did not have; "" if it had all
    std::string text;        // for messages
    std::string raw;
  };
  std::string source_;
  std::vector<Override> overrides_;
};

}  // namespace trainer::config
