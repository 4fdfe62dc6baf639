// The results of a sweep: a table for people, CSV and JSON for scripts.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace trainer::observe {

/// One combination and what became of it.
struct SweepRow {
  enum class State { Waiting, Done, Dropped, Failed, Interrupted };
  std::vector<std::pair<std::string, std::string>> combination;  // key, value
  State state = State::Waiting;
  std::string reason;  // Failed: why
  int exit_code = 0;   // Failed: what such a run exits with
  int ranks = 0;
  std::int64_t steps = 0;              // measured, over all repeats, without the first of each
  std::optional<double> step_seconds;  // median
  std::optional<double> samples_per_second, tokens_per_second;
  std::optional<double> bubble;            // share of the ranks' time in a step's pass that nobody computes
  std::optional<double> peak_memory;       // bytes, of the rank with most
  std::optional<double> predicted_memory;  // of the same rank
  std::optional<double> loss;              // of the last step
  std::optional<double> predicted_step_seconds;
  bool estimated = false;  // predicted without a profile
};

/// By what rows are compared: tokens or samples a second; nullopt when the row has not been measured.
std::optional<double> rate_of(const SweepRow& row);
/// The fastest row that is Done.
std::optional<std::size_t> fastest(const std::vector<SweepRow>& rows);

/// A row a combination, then a line for each that failed, with its reason.
std::string sweep_table(const std::vector<SweepRow>& rows);
/// A header, then a line a combination (RFC 4180); what was not measured is empty.
std::string sweep_csv(const std::vector<SweepRow>& rows);
/// {"combinations": [{"set": {key: value}, "state", …}], "fastest"?: index, "best_command"?}
std::string sweep_json(const std::vector<SweepRow>& rows, const std::string& best_command);

}  // namespace trainer::observe
