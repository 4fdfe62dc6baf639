// What a run's files say, read without trusting them.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "trainer/core/time_split.hpp"
#include "trainer/observe/report.hpp"

namespace trainer::observe {

struct StepPoint {
  double step = 0;
  std::optional<double> loss, grad_norm, learning_rate, step_seconds, samples_per_second, tokens_per_second;
};
struct EvaluationPoint {
  double step = 0, loss = 0;
  std::optional<double> accuracy;
};

/// One thing of actions.json.
struct ActionSpan {
  std::string name;  // "2F0", "agreement"
  double begin = 0, end = 0;
};
struct ActionRow {
  std::int64_t rank = 0;
  std::string place;
  std::vector<ActionSpan> spans;
};

inline constexpr std::array<const char*, 7> kMemoryParts{"weights",       "gradients", "optimizer", "activations",
                                                         "communication", "data",      "process"};
struct RankMemoryFacts {
  std::string place;
  std::array<double, kMemoryParts.size()> predicted{};  // bytes by kMemoryParts
  std::optional<double> measured;
};

struct PredictionRow {
  std::string what, source;
  double predicted = 0, measured = 0;
};

struct RunData {
  std::string name;
  std::vector<StepPoint> steps;              // ascending
  std::vector<EvaluationPoint> evaluations;  // ascending
  std::vector<TimeSplit> splits;             // [rank]; of summary.json, or the mean of the logged steps
  bool splits_of_run = false;                // of summary.json
  std::vector<RankMemoryFacts> memory;       // [rank]
  std::vector<PredictionRow> predictions;
  double action_step = 0, action_seconds = 0;  // of actions.json
  std::vector<ActionRow> actions;
  std::vector<std::string> places;  // [rank]
  // Of run.json; empty or 0: not known.
  std::string build, started, schedule, config;
  std::vector<std::string> stages;
  double data = 0, pipeline = 0, tensor = 0, micro_batches = 0, threads = 0, total_steps = 0;
  // Of summary.json.
  bool ended = false;
  std::optional<double> exit_code, seconds, loss, validation_loss, accuracy, first_step, last_step;

  std::vector<std::string> notices;
};

RunData read_run(const RunFiles& files);

}  // namespace trainer::observe
