// The charts that only a run's page has: a step as a picture, a bar a rank.
#pragma once

#include <string>

#include "report_data.hpp"

namespace trainer::observe {

/// Rows of the page that a chart has at most; the rest is left out, with a sentence.
inline constexpr std::size_t kMostRows = 64;

/// A row a rank, time from left to right. Empty without actions.
std::string pipeline_chart(const RunData& run);

/// A bar a rank and the table behind it. Empty without splits.
std::string time_chart(const RunData& run);

/// Two bars a rank, predicted by purpose and measured. Empty when neither is known.
std::string memory_chart(const RunData& run);

/// Predicted and measured side by side. Empty without predictions.
std::string prediction_table(const RunData& run);

}  // namespace trainer::observe
