// The steps of parse: a document becomes a Config by the table of keys, then the keys are checked against each other.
#pragma once

#include "json_value.hpp"
#include "origin.hpp"
#include "trainer/config/config.hpp"

namespace trainer::config {

/// Fills a Config by the table. Every key has been checked by itself, none against another.
Config read_config(const Value& root, const Origin& origin);

/// Derives what follows from other keys (loss, sequence length, input size) and checks the keys against each other.
/// `root` says which keys were written.
void complete(Config& config, const Value& root, const Origin& origin);

/// The document of a Config with every key that its types have.
Value write_config(const Config& config);
Value write_model(const Config& config);

}  // namespace trainer::config
