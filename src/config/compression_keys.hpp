// The keys of parallel.compression.
#pragma once

#include "origin.hpp"
#include "schema.hpp"

namespace trainer::config {

std::vector<Key<Parallel>> compression_keys();

/// Checks the keys against each other and against the optimizer, and fills in error_feedback where it was not written.
/// `root` is the document.
void complete_compression(Compression& compression, OptimizerType optimizer, const Value& root, const Origin& origin);

}  // namespace trainer::config
