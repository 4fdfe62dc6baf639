// Text and flags to a validated Config: document → overrides → keys by themselves → keys against each other.
#include <fmt/format.h>

#include "read.hpp"
#include "trainer/core/error.hpp"

namespace trainer::config {

namespace {

Value read_document(const std::string& text, const std::string& source_name) {
  Value root;
  JsonError error;
  if (read_json(text, root, error)) return root;
  if (error.syntax) {
    throw Error(ExitCode::Usage, fmt::format("{}:{}: not valid JSON: {}", source_name, error.where, error.what));
  }
  throw Error(ExitCode::Usage,
              fmt::format("{}: {} {}", source_name, error.where.empty() ? "the document" : error.where, error.what));
}

}  // namespace

void check_keys(const std::string& text, const std::string& source_name, const std::vector<std::string>& overrides) {
  Value root = read_document(text, source_name);
  Origin origin(source_name);
  for (const std::string& text_of_override : overrides) origin.apply(root, text_of_override);
  read_config(root, origin);
}

Config parse(const std::string& text, const std::string& source_name, const std::vector<std::string>& overrides) {
  Value root = read_document(text, source_name);
  Origin origin(source_name);
  for (const std::string& text_of_override : overrides) origin.apply(root, text_of_override);
  Config config = read_config(root, origin);
  complete(config, root, origin);
  return config;
}

}  // namespace trainer::config
