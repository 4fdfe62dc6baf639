#include "trainer/observe/sweep_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "trainer/observe/reporters.hpp"

namespace trainer::observe {

namespace {

using Json = nlohmann::ordered_json;
using State = SweepRow::State;

const char* name_of(State state) {
  switch (state) {
    case State::Waiting:
      return "not run";
    case State::Done:
      return "done";
    case State::Dropped:
      return "dropped";
    case State::Failed:
      return "failed";
    case State::Interrupted:
      return "interrupted";
  }
  return "";
}

// "pipeline" of "parallel.pipeline", unless another key ends alike.
std::vector<std::string> short_keys(const std::vector<SweepRow>& rows) {
  std::vector<std::string> keys;
  const auto last = [](const std::string& key) { return key.substr(key.find_last_of('.') + 1); };
  for (const auto& choice : rows.front().combination) {
    const std::string& key = choice.first;
    const auto alike = std::count_if(rows.front().combination.begin(), rows.front().combination.end(),
                                     [&](const auto& other) { return last(other.first) == last(key); });
    keys.push_back(alike > 1 ? key : last(key));
  }
  return keys;
}

std::string cell(const std::optional<double>& value, double unit, const char* digits) {
  return value ? fmt::format(fmt::runtime(digits), *value * unit) : "-";
}

std::string bytes_cell(const std::optional<double>& bytes) { return bytes ? human_bytes(*bytes) : "-"; }

std::string shown(const SweepRow& row) {
  std::string text;
  for (const auto& [key, value] : row.combination) text += fmt::format("{}{}={}", text.empty() ? "" : " ", key, value);
  return text;
}

// Values that scripts read: full precision, empty where there is none.
struct Fact {
  const char* name;
  std::optional<double> SweepRow::*value;
};
constexpr Fact kFacts[] = {{"step_seconds", &SweepRow::step_seconds},
                           {"samples_per_second", &SweepRow::samples_per_second},
                           {"tokens_per_second", &SweepRow::tokens_per_second},
                           {"bubble", &SweepRow::bubble},
                           {"peak_memory", &SweepRow::peak_memory},
                           {"predicted_memory", &SweepRow::predicted_memory},
                           {"loss", &SweepRow::loss},
                           {"predicted_step_seconds", &SweepRow::predicted_step_seconds}};

std::string_view predicted_by(const SweepRow& row) {
  return !row.predicted_step_seconds ? "" : row.estimated ? "estimate" : "profile";
}

std::string quoted(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string result = "\"";
  for (const char c : text) result += c == '"' ? std::string("\"\"") : std::string(1, c);
  return result + "\"";
}

}  // namespace

std::optional<double> rate_of(const SweepRow& row) {
  return row.tokens_per_second ? row.tokens_per_second : row.samples_per_second;
}

std::optional<std::size_t> fastest(const std::vector<SweepRow>& rows) {
  std::optional<std::size_t> best;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].state != State::Done || !rate_of(rows[i])) continue;
    if (!best || *rate_of(rows[i]) > *rate_of(rows[*best])) best = i;
  }
  return best;
}

std::string sweep_table(const std::vector<SweepRow>& rows) {
  if (rows.empty()) return {};
  const bool tokens = std::any_of(rows.begin(), rows.end(), [](const SweepRow& row) { return row.tokens_per_second; });
  std::vector<std::string> header = short_keys(rows);
  for (const char* name :
       {"ranks", "step ms", tokens ? "tokens/s" : "samples/s", "bubble", "peak memory", "loss", "predicted ms", ""}) {
    header.emplace_back(name);
  }
  const std::optional<std::size_t> best = fastest(rows);
  std::vector<std::vector<std::string>> cells;
  std::string reasons;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const SweepRow& row = rows[i];
    std::vector<std::string>& line = cells.emplace_back();
    for (const auto& [key, value] : row.combination) line.push_back(value);
    line.push_back(row.ranks > 0 ? fmt::to_string(row.ranks) : "-");
    line.push_back(cell(row.step_seconds, 1e3, "{:.2f}"));
    line.push_back(rate_of(row) ? fmt::format("{:.0f}", *rate_of(row)) : "-");
    line.push_back(cell(row.bubble, 100, "{:.1f}%"));
    line.push_back(bytes_cell(row.peak_memory));
    line.push_back(cell(row.loss, 1, "{:.5g}"));
    line.push_back(cell(row.predicted_step_seconds, 1e3, "{:.2f}"));
    line.push_back(best == i ? "fastest" : row.state == State::Done ? "" : name_of(row.state));
    if (row.state != State::Failed) continue;
    const auto same = [&](const SweepRow& other) { return other.state == State::Failed && other.reason == row.reason; };
    if (std::any_of(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(i), same)) continue;
    const auto more = std::count_if(rows.begin(), rows.end(), same) - 1;
    reasons += fmt::format("{}{}: {}\n", shown(row), more > 0 ? fmt::format(" and {} more", more) : "", row.reason);
  }
  const bool estimated = std::any_of(rows.begin(), rows.end(), [](const SweepRow& row) { return row.estimated; });
  return format_table(header, cells) +
         (estimated ? "predicted: an estimate where parallel.profile names no profile\n" : "") + reasons;
}

std::string sweep_csv(const std::vector<SweepRow>& rows) {
  std::string text;
  if (!rows.empty()) {
    for (const auto& [key, value] : rows.front().combination) text += quoted(key) + ",";
  }
  text += "state,reason,exit_code,ranks,steps";
  for (const Fact& fact : kFacts) text += fmt::format(",{}", fact.name);
  text += ",predicted_by\r\n";
  for (const SweepRow& row : rows) {
    for (const auto& [key, value] : row.combination) text += quoted(value) + ",";
    text += fmt::format("{},{},{},{},{}", name_of(row.state), quoted(row.reason), row.exit_code, row.ranks, row.steps);
    for (const Fact& fact : kFacts) {
      const std::optional<double>& value = row.*fact.value;
      text += value ? fmt::format(",{}", *value) : ",";
    }
    text += fmt::format(",{}", predicted_by(row));
    text += "\r\n";
  }
  return text;
}

std::string sweep_json(const std::vector<SweepRow>& rows, const std::string& best_command) {
  Json json{{"combinations", Json::array()}};
  for (const SweepRow& row : rows) {
    Json object{{"set", Json::object()}, {"state", name_of(row.state)}};
    for (const auto& [key, value] : row.combination) object["set"][key] = value;
    if (row.state == State::Failed) {
      object["reason"] = row.reason;
      object["exit_code"] = row.exit_code;
    }
    object["ranks"] = row.ranks;
    object["steps"] = row.steps;
    for (const Fact& fact : kFacts) {
      if (const std::optional<double>& value = row.*fact.value) object[fact.name] = *value;
    }
    if (row.predicted_step_seconds) object["predicted_by"] = predicted_by(row);
    json["combinations"].push_back(std::move(object));
  }
  if (const std::optional<std::size_t> best = fastest(rows)) {
    json["fastest"] = *best;
    json["best_command"] = best_command;
  }
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace trainer::observe
