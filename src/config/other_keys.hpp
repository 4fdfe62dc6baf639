// Keys whose values are neither one field's own type nor a word: a choice or a list of names, an amount of memory.
#pragma once

#include "schema.hpp"

namespace trainer::config {

/// training.recompute: a word, or names of layers.
Key<Training> recompute_key(const char* help);

/// data.delimiter: one character.
Key<CsvData> delimiter_key(const char* help);

/// parallel.memory_per_rank: bytes, as a number or with a unit.
Key<Parallel> memory_key(const char* help);

}  // namespace trainer::config
