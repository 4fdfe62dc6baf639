// Configurations of small models that train in rounds of local steps, and what their runs leave.
#pragma once

#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "equivalence.hpp"

namespace trainer::test {

inline std::string rounds_of(std::int64_t steps, double rate = 0.7, double momentum = 0.9, bool nesterov = true) {
  return "parallel.exchange=local;parallel.local.steps=" + std::to_string(steps) +
         ";parallel.local.outer_learning_rate=" + std::to_string(rate) +
         ";parallel.local.outer_momentum=" + std::to_string(momentum) +
         ";parallel.local.nesterov=" + (nesterov ? "true" : "false");
}

inline Case local_case(const std::string& model, std::int64_t data, std::int64_t pipeline, std::int64_t tensor,
                       const std::string& extra) {
  Case c;
  c.model = model;
  c.data = data;
  c.pipeline = pipeline;
  c.tensor = tensor;
  c.micro_batches = 2;
  c.extra = extra;
  return c;
}

struct Folder {
  std::string path;
  explicit Folder(const std::string& name)
      : path((std::filesystem::temp_directory_path() / ("trainer-" + name + "-" + std::to_string(getpid()))).string()) {
    std::filesystem::remove_all(path);
  }
  ~Folder() { std::filesystem::remove_all(path); }
};

/// What rank 0 heard of a run.
struct Heard {
  std::vector<StepReport> steps;
  std::vector<double> losses;
  std::map<std::int64_t, double> validation;  // [step]
  std::vector<std::string> warnings, notes;
  std::vector<std::pair<std::int64_t, std::vector<std::int64_t>>> shares;  // the last step before they held
  runtime::TrainResult result;
};

struct Journey {
  std::int64_t stop_at = 0;  // a stop is asked for when rank 0 hears of this step; 0: never
  bool resume = false;
  int ranks_per_node = 0;  // 0: all on one node
};

class Listener final : public Observer {
 public:
  Listener(Heard& heard, std::atomic<bool>& stop, std::int64_t at) : heard_(heard), stop_(stop), at_(at) {}
  void step(const StepReport& report) override {
    heard_.steps.push_back(report);
    heard_.steps.back().splits = {};
    heard_.steps.back().micro_batches = {};
    heard_.losses.push_back(report.loss);
    if (report.step == at_) stop_ = true;
  }
  void evaluation(const EvaluationReport& report) override { heard_.validation[report.step] = report.loss; }
  void shares(const ShareReport& report) override {
    heard_.shares.emplace_back(report.step,
                               std::vector<std::int64_t>(report.micro_batches.begin(), report.micro_batches.end()));
  }
  void warning(std::string_view text) override { heard_.warnings.emplace_back(text); }
  void note(std::string_view text) override { heard_.notes.emplace_back(text); }

 private:
  Heard& heard_;
  std::atomic<bool>& stop_;
  const std::int64_t at_;
};

/// Trains with ranks as threads. Throws what the run throws.
inline Heard travel(const Folder& folder, const Case& c, const Journey& journey = {}) {
  const auto config = config::parse(model_json(c.model), "test", overrides(c, folder.path));
  runtime::RunPlan plan = runtime::make_plan(config, c.ranks());
  if (journey.ranks_per_node > 0) {
    for (int r = 0; r < c.ranks(); ++r) plan.node_of_rank.push_back(r / journey.ranks_per_node);
  }
  const auto data =
      storage::load_dataset(plan.config.data, runtime::model_input(plan.graph), plan.config.training.seed);
  Heard heard;
  std::atomic<bool> stop{false};
  comm::run_in_process(
      static_cast<int>(c.ranks()),
      [&](comm::Communicator& world) {
        runtime::TrainOptions options;
        options.overwrite = !journey.resume;
        options.resume = journey.resume;
        options.threads = c.threads;
        options.spin = false;
        options.stop = &stop;
        options.observers = [&](std::int64_t, std::int64_t) {
          return std::make_unique<Listener>(heard, stop, journey.stop_at);
        };
        runtime::TrainResult result = runtime::train(world, plan, *data, storage::real_file_system(), options);
        if (world.rank() == 0) heard.result = std::move(result);
      },
      comm::SendMode::Eager, journey.ranks_per_node);
  return heard;
}

using Tensors = std::map<std::string, std::vector<float>>;

/// All of a checkpoint: `step` 0: the newest.
inline Tensors tensors_of(const Folder& folder, std::int64_t step = 0) {
  std::vector<std::string> passed_over;
  const std::string path = step == 0 ? folder.path : storage::final_path(folder.path, step);
  const auto checkpoint = storage::find_checkpoint(storage::real_file_system(), path, passed_over);
  Tensors tensors;
  for (const storage::TensorEntry& tensor : checkpoint->tensors()) {
    auto& values = tensors[tensor.name];
    values.resize(static_cast<std::size_t>(tensor.shape.elements()));
    checkpoint->read(tensor.name, whole(tensor.shape), values.data());
  }
  return tensors;
}

}  // namespace trainer::test
