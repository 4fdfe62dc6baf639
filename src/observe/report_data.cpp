#include "report_data.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace trainer::observe {

namespace {

using Json = nlohmann::json;

constexpr double kMost = 1e300;  // differences of what is drawn must be finite

std::optional<double> number(const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number()) return std::nullopt;
  const double value = found->get<double>();
  return std::abs(value) <= kMost ? std::optional(value) : std::nullopt;
}

double number_or_0(const Json& object, const char* key) { return number(object, key).value_or(0); }

std::string text(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

/// The objects of an array; what is none of them is left out.
std::vector<const Json*> objects(const Json& object, const char* key) {
  std::vector<const Json*> all;
  const auto found = object.find(key);
  if (found == object.end() || !found->is_array()) return all;
  for (const Json& entry : *found) {
    if (entry.is_object()) all.push_back(&entry);
  }
  return all;
}

/// Nothing, with a notice, for what is no JSON object.
std::optional<Json> parse(const std::optional<std::string>& file, const char* name, std::vector<std::string>& notices) {
  if (!file) return std::nullopt;
  Json json = Json::parse(*file, nullptr, /*allow_exceptions=*/false);
  if (json.is_object()) return json;
  notices.push_back(fmt::format("{} is no JSON object and is left out.", name));
  return std::nullopt;
}

/// Adds the splits of a step, {"forward": [seconds of rank 0, …], …}.
void add_splits(const Json& time, std::vector<TimeSplit>& sums) {
  for (std::size_t p = 0; p < kStepParts; ++p) {
    const auto part = time.find(std::string(kTimeParts[p].name));
    if (part == time.end() || !part->is_array()) continue;
    sums.resize(std::max(sums.size(), part->size()));
    for (std::size_t r = 0; r < part->size(); ++r) {
      const double seconds = (*part)[r].is_number() ? (*part)[r].get<double>() : 0.0;
      if (std::abs(seconds) <= kMost) sums[r].*kTimeParts[p].seconds += seconds;
    }
  }
}

void read_metrics(const std::string& file, RunData& run) {
  std::vector<TimeSplit> sums;
  double split_steps = 0;
  std::int64_t line_number = 0, broken = 0, first_broken = 0;
  for (std::size_t begin = 0; begin < file.size();) {
    const std::size_t end = std::min(file.find('\n', begin), file.size());
    const std::string line = file.substr(begin, end - begin);
    begin = end + 1;
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    const std::optional<double> step = json.is_object() ? number(json, "step") : std::nullopt;
    if (!step) {
      if (++broken == 1) first_broken = line_number;
      continue;
    }
    if (json.contains("validation_loss")) {
      if (const auto loss = number(json, "validation_loss")) {
        run.evaluations.push_back({*step, *loss, number(json, "accuracy")});
      }
      continue;
    }
    run.steps.push_back({*step, number(json, "loss"), number(json, "grad_norm"), number(json, "learning_rate"),
                         number(json, "step_seconds"), number(json, "samples_per_second"),
                         number(json, "tokens_per_second")});
    const auto time = json.find("time");
    if (time != json.end() && time->is_object() && *step > 1) {
      add_splits(*time, sums);
      ++split_steps;
    }
  }
  if (broken > 0) {
    run.notices.push_back(
        fmt::format("metrics.jsonl: {} of {} lines {} no JSON object with a step and {} left out, line {} first.",
                    broken, line_number, broken == 1 ? "is" : "are", broken == 1 ? "is" : "are", first_broken));
  }
  const auto by_step = [](const auto& a, const auto& b) { return a.step < b.step; };
  std::stable_sort(run.steps.begin(), run.steps.end(), by_step);
  std::stable_sort(run.evaluations.begin(), run.evaluations.end(), by_step);
  for (TimeSplit& split : sums) {
    for (std::size_t p = 0; p < kStepParts; ++p) split.*kTimeParts[p].seconds /= split_steps;
  }
  run.splits = std::move(sums);
}

void read_facts(const Json& json, RunData& run) {
  run.build = text(json, "build");
  run.started = text(json, "started");
  run.schedule = text(json, "schedule");
  run.data = number_or_0(json, "data");
  run.pipeline = number_or_0(json, "pipeline");
  run.tensor = number_or_0(json, "tensor");
  run.micro_batches = number_or_0(json, "micro_batches");
  run.threads = number_or_0(json, "threads");
  run.total_steps = number_or_0(json, "total_steps");
  if (const auto stages = json.find("stages"); stages != json.end() && stages->is_array()) {
    for (const Json& stage : *stages) run.stages.push_back(stage.is_string() ? stage.get<std::string>() : "?");
  }
  for (const Json* rank : objects(json, "memory")) {
    RankMemoryFacts memory;
    memory.place = text(*rank, "place");
    for (std::size_t p = 0; p < kMemoryParts.size(); ++p) memory.predicted[p] = number_or_0(*rank, kMemoryParts[p]);
    run.places.push_back(memory.place);
    run.memory.push_back(std::move(memory));
  }
  const auto config = json.find("config");
  if (config != json.end()) {
    run.config = nlohmann::ordered_json::parse(config->dump(), nullptr, false)
                     .dump(2, ' ', false, Json::error_handler_t::replace);
  }
}

void read_summary(const Json& json, RunData& run) {
  run.ended = true;
  run.exit_code = number(json, "exit_code");
  run.seconds = number(json, "seconds");
  run.loss = number(json, "loss");
  run.validation_loss = number(json, "validation_loss");
  run.accuracy = number(json, "accuracy");
  run.first_step = number(json, "first_step");
  run.last_step = number(json, "last_step");
  std::vector<TimeSplit> splits;
  for (const Json* rank : objects(json, "time")) {
    TimeSplit split;
    for (const TimePart& part : kTimeParts) split.*part.seconds = number_or_0(*rank, std::string(part.name).c_str());
    splits.push_back(split);
  }
  if (!splits.empty()) {
    run.splits = std::move(splits);
    run.splits_of_run = true;
  }
  std::size_t r = 0;
  for (const Json* rank : objects(json, "peak_memory")) {
    if (r == run.memory.size()) run.memory.emplace_back();
    run.memory[r++].measured = number(*rank, "measured");
  }
  for (const Json* row : objects(json, "predictions")) {
    run.predictions.push_back(
        {text(*row, "what"), text(*row, "source"), number_or_0(*row, "predicted"), number_or_0(*row, "measured")});
  }
}

void read_actions(const Json& json, RunData& run) {
  run.action_step = number_or_0(json, "step");
  run.action_seconds = number_or_0(json, "seconds");
  for (const Json* rank : objects(json, "ranks")) {
    ActionRow row;
    row.rank = static_cast<std::int64_t>(number_or_0(*rank, "rank"));
    row.place = text(*rank, "place");
    const auto spans = rank->find("spans");
    if (spans == rank->end() || !spans->is_array()) continue;
    for (const Json& span : *spans) {
      const bool whole =
          span.is_array() && span.size() == 3 && span[0].is_string() && span[1].is_number() && span[2].is_number();
      if (!whole) continue;
      const ActionSpan read{span[0].get<std::string>(), span[1].get<double>(), span[2].get<double>()};
      if (std::abs(read.begin) <= kMost && std::abs(read.end) <= kMost && read.end >= read.begin)
        row.spans.push_back(read);
    }
    run.actions.push_back(std::move(row));
  }
}

}  // namespace

RunData read_run(const RunFiles& files) {
  RunData run;
  run.name = files.name;
  if (files.metrics) {
    read_metrics(*files.metrics, run);
  } else {
    run.notices.push_back("There is no metrics.jsonl: no curves.");
  }
  if (const auto json = parse(files.run, "run.json", run.notices)) read_facts(*json, run);
  if (const auto json = parse(files.summary, "summary.json", run.notices)) read_summary(*json, run);
  if (const auto json = parse(files.actions, "actions.json", run.notices)) read_actions(*json, run);
  if (!files.run) run.notices.push_back("There is no run.json: configuration and predicted memory are not known.");
  if (!files.summary) {
    run.notices.push_back(
        "There is no summary.json: the run goes on, or was killed. What is here comes from the steps it logged.");
  }
  return run;
}

}  // namespace trainer::observe
