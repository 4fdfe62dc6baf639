// Where the model is cut into pipeline stages.
#pragma once

#include <cstdint>
#include <vector>

#include "trainer/config/config.hpp"
#include "trainer/core/shape.hpp"
#include "trainer/model/graph.hpp"

namespace trainer::plan {

/// Units [begin, end) of each stage, contiguous, none empty, all covered, by the configured rule.
/// Throws Error(Usage) when there are more stages than units or the written list does not add up.
std::vector<Range> cut_stages(const model::Graph& graph, const config::Parallel& parallel, std::int64_t stages);

/// The contiguous cut of `costs` into `parts` non-empty parts with the smallest largest sum; among those the one with
/// the smallest sum of squares. Exact, by dynamic programming in O(parts · n²).
std::vector<Range> balanced_cut(const std::vector<double>& costs, std::int64_t parts);

/// Nodes [begin, end) of a range of units.
Range nodes_of(const model::Graph& graph, Range units);

}  // namespace trainer::plan
