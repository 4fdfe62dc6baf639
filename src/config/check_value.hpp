// Checks one value of a document against its rule in the table of keys.
#pragma once

#include <string>

#include "json_value.hpp"
#include "origin.hpp"
#include "schema.hpp"

namespace trainer::config {

/// Throws Error(Usage) by `origin` with path, value and expectation when `value` does not keep to `rule`. Of
/// Kind::Layers only the list itself is checked.
void check_value(const Value& value, const std::string& path, const Rule& rule, const Origin& origin);

}  // namespace trainer::config
