// What a sweep varies: keys of the configuration with several values each, and their combinations.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace trainer::config {

/// One key and the values it takes in turn, as written.
struct Over {
  std::string key;
  std::vector<std::string> values;
};

/// Reads "parallel.pipeline=1,2,4" or "parallel.partition=[3,5],[4,4]": commas part values, except inside brackets,
/// braces and double quotes. Throws Error(Usage): no key, no value, an empty value, one that is there twice.
Over parse_over(const std::string& text);

/// A value of each key, in the order of the keys.
using Combination = std::vector<std::pair<std::string, std::string>>;

/// All combinations; the last key changes fastest. Throws Error(Usage): a key that is there twice or that `overrides`
/// (--set) state too, a key that a sweep states itself, more combinations than anyone waits for.
std::vector<Combination> combinations(const std::vector<Over>& over, const std::vector<std::string>& overrides);

/// "parallel.pipeline=2": as --set takes it.
std::vector<std::string> as_overrides(const Combination& combination);

/// What a sweep states itself, as overrides: so many steps, no evaluations, no files.
std::vector<std::string> sweep_overrides(long long steps);

}  // namespace trainer::config
