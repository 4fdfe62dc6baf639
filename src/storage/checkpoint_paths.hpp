// Names inside the directory of a run's checkpoints.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace trainer::storage {

inline constexpr std::string_view kStepPrefix = "step-";         // whole
inline constexpr std::string_view kPartialPrefix = ".partial-";  // being written
inline constexpr std::string_view kRetiredPrefix = ".retired-";  // whole, making room for another of the same step
inline constexpr std::string_view kRemovedPrefix = ".removed-";  // being removed

inline constexpr std::uint64_t kLargestManifest = std::uint64_t{1} << 30;

std::string retired_path(const std::string& directory, std::int64_t step);

/// The step of a folder named `prefix` and at least eight digits.
std::optional<std::int64_t> step_of(const std::string& name, std::string_view prefix);

}  // namespace trainer::storage
