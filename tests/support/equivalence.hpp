// Trains the same small models in many layouts and holds the results against one rank.
#pragma once

#include <cmath>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "random_table.hpp"
#include "trainer/comm/communicator.hpp"
#include "trainer/runtime/run_plan.hpp"
#include "trainer/runtime/train.hpp"
#include "trainer/runtime/worker.hpp"
#include "trainer/storage/checkpoint.hpp"

namespace trainer::test {

/// What a run leaves: the loss of every step as rank 0 saw it, and every weight.
struct Trained {
  std::vector<double> losses;
  std::map<std::string, std::vector<float>> weights;
};

struct Case {
  std::string model;  // a name of model_json()
  std::int64_t data = 1, pipeline = 1, tensor = 1;
  std::string schedule = "1f1b";  // "random N": a table of that seed, two stages a rank
  int threads = 1;
  std::int64_t micro_batches = 4;  // of one replica
  std::string extra;               // more overrides, separated by ';'
  std::string precision = "float32";

  std::int64_t ranks() const { return data * pipeline * tensor; }
  int random_seed() const { return schedule.starts_with("random ") ? std::stoi(schedule.substr(7)) : -1; }
  /// The one-rank run that it is held against: as many micro-batches in all.
  Case reference() const {
    Case one = *this;
    one.data = one.pipeline = one.tensor = 1;
    one.schedule = "gpipe";
    one.threads = 1;
    one.micro_batches = micro_batches * data;
    one.extra.clear();
    return one;
  }
  std::string name() const {
    return model + " data " + std::to_string(data) + " pipeline " + std::to_string(pipeline) + " tensor " +
           std::to_string(tensor) + " " + schedule + " threads " + std::to_string(threads) + " micro-batches " +
           std::to_string(micro_batches) + (extra.empty() ? "" : " " + extra) +
           (precision == "float32" ? "" : " " + precision);
  }
};

/// Configurations of 20 steps; sizes are odd on purpose.
inline std::string model_json(const std::string& name) {
  const std::string rest =
      R"("data": {"type": "synthetic", "samples": 96},
         "optimizer": {"type": "adamw", "learning_rate": 0.003, "betas": [0.9, 0.95], "eps": 1e-6, "weight_decay": 0.1,
                       "schedule": {"type": "cosine", "warmup_steps": 4, "final_ratio": 0.1}}})";
  const std::string training = R"("training": {"steps": 20, "batch_size": 24, "gradient_clip": 1.0, "seed": 3)";
  if (name == "gpt tied" || name == "gpt untied" || name == "gpt dropout") {
    const std::string tie = name == "gpt untied" ? "false" : "true";
    const std::string dropout = name == "gpt dropout" ? "0.2" : "0.0";
    return R"({"model": {"type": "gpt", "vocab_size": 61, "context_length": 16, "hidden_size": 24, "num_layers": 3, "num_heads": 4,
                         "tie_embeddings": )" +
           tie + R"(, "dropout": )" + dropout + "}, " + training + R"(, "sequence_length": 11}, )" + rest;
  }
  if (name == "sequential") {  // residuals whose first layer is column-parallel, activations kept by their outputs,
                               // dropout in a pair
    return R"({"model": {"type": "sequential", "layers": [
        {"type": "embedding", "vocab_size": 37, "hidden_size": 20}, {"type": "position_embedding", "context_length": 9},
        {"type": "residual", "layers": [{"type": "linear", "output_size": 33}, {"type": "tanh"},
                                        {"type": "dropout", "probability": 0.1}, {"type": "linear", "output_size": 20}]},
        {"type": "sigmoid"},
        {"type": "residual", "layers": [{"type": "causal_self_attention", "num_heads": 4, "dropout": 0.1}]},
        {"type": "layer_norm"}, {"type": "linear", "output_size": 19}, {"type": "relu"},
        {"type": "linear", "output_size": 37, "bias": false}]}, )" +
           training + R"(, "sequence_length": 9}, )" + rest;
  }
  return R"({"model": {"type": "mlp", "input_size": 13, "hidden_sizes": [29, 17, 23], "output_size": 7, "activation": "gelu"}, )" +
         training + "}, " + rest;
}

inline std::vector<std::string> overrides(const Case& c, const std::string& directory) {
  std::vector<std::string> set{"parallel.data=" + std::to_string(c.data),
                               "parallel.pipeline=" + std::to_string(c.pipeline),
                               "parallel.tensor=" + std::to_string(c.tensor),
                               "parallel.schedule=" + (c.random_seed() < 0 ? c.schedule : "file"),
                               "training.micro_batches=" + std::to_string(c.micro_batches),
                               "training.precision=" + c.precision,
                               "checkpoint.directory=" + directory};
  if (c.random_seed() >= 0) set.push_back("parallel.schedule_file=" + c.schedule);
  for (std::size_t begin = 0; begin < c.extra.size();) {
    const std::size_t end = std::min(c.extra.find(';', begin), c.extra.size());
    set.push_back(c.extra.substr(begin, end - begin));
    begin = end + 1;
  }
  return set;
}

class LossKeeper final : public Observer {
 public:
  explicit LossKeeper(std::vector<double>& losses) : losses_(losses) {}
  void step(const StepReport& report) override { losses_.push_back(report.loss); }

 private:
  std::vector<double>& losses_;
};

/// Collective over `world` of c.ranks(); the result is rank 0's. `directory` is made and removed.
inline Trained run(comm::Communicator& world, const Case& c, const std::string& directory) {
  auto config = config::parse(model_json(c.model), "test", overrides(c, directory));
  if (const int seed = c.random_seed(); seed >= 0) {
    config.parallel.schedule_text =
        schedule::to_csv(random_table(c.pipeline, 2 * c.pipeline, c.micro_batches, static_cast<std::uint32_t>(seed)));
  }
  const runtime::RunPlan plan = runtime::make_plan(config, world.size());
  const auto data =
      storage::load_dataset(plan.config.data, runtime::model_input(plan.graph), plan.config.training.seed);
  Trained trained;
  runtime::TrainOptions options;
  options.overwrite = true;
  options.threads = c.threads;
  options.spin = false;
  options.observers = [&](std::int64_t, std::int64_t) { return std::make_unique<LossKeeper>(trained.losses); };
  runtime::train(world, plan, *data, storage::real_file_system(), options);
  if (world.rank() == 0) {
    std::vector<std::string> passed_over;
    const auto checkpoint = storage::find_checkpoint(storage::real_file_system(), directory, passed_over);
    for (const storage::TensorEntry& tensor : checkpoint->tensors()) {
      if (tensor.name.starts_with("optimizer.")) continue;
      auto& weights = trained.weights[tensor.name];
      weights.resize(static_cast<std::size_t>(tensor.shape.elements()));
      checkpoint->read(tensor.name, whole(tensor.shape), weights.data());
    }
    std::filesystem::remove_all(directory);
  }
  world.barrier();
  return trained;
}

struct Distance {
  double loss = 0;    // largest relative difference of a step's loss
  double weight = 0;  // largest absolute difference of a weight
  std::string where;  // the tensor with the largest
  bool same_bits = false;
};

inline Distance distance(const Trained& a, const Trained& b) {
  Distance d;
  d.same_bits = a.losses == b.losses && a.weights == b.weights && !a.losses.empty() && !a.weights.empty();
  if (a.losses.size() != b.losses.size() || a.weights.size() != b.weights.size())
    return {INFINITY, INFINITY, "sizes", false};
  for (std::size_t i = 0; i < a.losses.size(); ++i) {
    d.loss = std::max(d.loss, std::abs(a.losses[i] - b.losses[i]) / std::abs(b.losses[i]));
  }
  for (const auto& [name, values] : a.weights) {
    const auto& others = b.weights.at(name);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double difference = std::abs(static_cast<double>(values[i]) - static_cast<double>(others[i]));
      if (!(difference <= d.weight)) {
        d.weight = difference;
        d.where = name;
      }
    }
  }
  return d;
}

/// The layouts of the promise. Pipeline, schedule and threads alone keep every bit; data and tensor keep a bound.
inline std::vector<Case> layouts(std::int64_t ranks) {
  std::vector<Case> all;
  const auto add = [&](const std::string& model, std::int64_t data, std::int64_t pipeline, std::int64_t tensor,
                       const std::string& schedule, int threads, std::int64_t micro_batches,
                       const std::string& extra = "") {
    if (data * pipeline * tensor == ranks)
      all.push_back({model, data, pipeline, tensor, schedule, threads, micro_batches, extra});
  };
  for (const std::string model : {"gpt tied", "gpt untied", "mlp"}) {
    add(model, 1, 1, 1, "1f1b", 2, 4);
    add(model, 1, 1, 1, "1f1b", 3, 4);
    add(model, 1, 2, 1, "1f1b", 1, 4);
    add(model, 1, 2, 1, "gpipe", 2, 4);
    add(model, 1, 2, 1, "1f1b", 1, 4, "parallel.split_backward=false");
    add(model, 1, 2, 1, "1f1b", 1, 1);
    add(model, 1, 2, 1, "zb-h1", 1, 4);
    add(model, 1, 3, 1, "zb-h1", 2, 6);
    add(model, 1, 4, 1, "zb-h1", 1, 3);
    add(model, 1, 2, 1, "zb-h2", 1, 4);
    add(model, 1, 4, 1, "zb-h2", 1, 2);
    add(model, 1, 1, 1, "interleaved", 1, 3, "parallel.chunks=4");
    add(model, 1, 2, 1, "interleaved", 1, 4);
    add(model, 1, 2, 1, "interleaved", 2, 6, "parallel.split_backward=false;parallel.micro_batch_group=3");
    add(model, 1, 2, 1, "zb-v", 1, 4);
    add(model, 1, 2, 1, "zb-v", 2, 1);
    add(model, 1, 2, 1, "dualpipe-v", 1, 6);
    add(model, 1, 2, 1, "auto", 1, 4, "parallel.chunks=2");
    add(model, 1, 3, 1, "auto", 1, 6);
    add(model, 1, 2, 1, "random 1", 1, 4);
    add(model, 1, 2, 1, "random 2", 2, 3);
    add(model, 1, 3, 1, "1f1b", 1, 4, "parallel.partition=uniform");
    add(model, 1, 3, 1, "gpipe", 1, 2);
    add(model, 1, 4, 1, "1f1b", 2, 6);
    add(model, 1, 4, 1, "1f1b", 1, 2, "parallel.partition=parameters");
    add(model, 1, 4, 1, "gpipe", 1, 3);
    add(model, 1, 1, 2, "1f1b", 1, 4);
    add(model, 1, 1, 3, "1f1b", 1, 4);
    add(model, 1, 1, 4, "1f1b", 1, 2);
    add(model, 2, 1, 1, "1f1b", 1, 2);
    add(model, 3, 1, 1, "1f1b", 1, 2);
    add(model, 4, 1, 1, "1f1b", 1, 1);
    add(model, 1, 2, 2, "1f1b", 1, 4);
    add(model, 2, 2, 1, "gpipe", 1, 2);
    add(model, 2, 1, 2, "1f1b", 1, 3);
    add(model, 1, 2, 3, "1f1b", 1, 4);
    add(model, 3, 2, 1, "1f1b", 1, 2);
    add(model, 2, 2, 2, "1f1b", 1, 2);
    add(model, 2, 2, 2, "zb-h1", 1, 4);
    add(model, 1, 2, 2, "zb-v", 1, 4);
    add(model, 2, 2, 1, "interleaved", 1, 4);
    add(model, 2, 2, 1, "random 3", 1, 3);
    add(model, 2, 2, 2, "dualpipe-v", 1, 3);
    add(model, 1, 4, 2, "1f1b", 1, 4);
    add(model, 2, 4, 1, "1f1b", 1, 3);
    add(model, 2, 4, 2, "1f1b", 1, 3);
    add(model, 4, 2, 2, "1f1b", 1, 1);
  }
  for (const std::string schedule : {"random 4", "random 5", "random 6"}) {
    add("sequential", 1, 3, 1, schedule, 1, 4);
    add("sequential", 1, 4, 1, schedule, 1, 3);
    add("sequential", 2, 3, 1, schedule, 1, 2);
  }
  add("sequential", 1, 4, 1, "interleaved", 1, 4, "parallel.partition=[1,1,1,1,1,1,2,1]");
  add("sequential", 1, 2, 1, "1f1b", 1, 4);
  add("sequential", 1, 3, 1, "gpipe", 2, 2);
  add("sequential", 1, 4, 1, "1f1b", 1, 4, "parallel.partition=uniform");
  add("sequential", 1, 4, 1, "1f1b", 1, 3, "parallel.partition=[3,2,2,2]");
  add("sequential", 1, 1, 2, "1f1b", 1, 4);
  add("sequential", 1, 1, 3, "1f1b", 1, 4);
  add("sequential", 1, 2, 2, "1f1b", 1, 4);
  add("sequential", 2, 1, 1, "1f1b", 2, 2);
  add("sequential", 2, 2, 2, "gpipe", 1, 2, "parallel.partition=[6,3]");
  add("gpt dropout", 1, 2, 1, "1f1b", 1, 4);
  add("gpt dropout", 1, 3, 1, "gpipe", 2, 4);
  add("gpt dropout", 1, 2, 1, "zb-v", 1, 4);
  add("gpt dropout", 1, 1, 2, "1f1b", 1, 4);
  add("gpt dropout", 2, 2, 1, "1f1b", 1, 2);
  const std::string full = "training.recompute=full";
  add("gpt dropout", 1, 1, 1, "1f1b", 1, 4, full);
  add("gpt dropout", 1, 2, 1, "zb-h1", 1, 4, full);
  add("gpt dropout", 1, 2, 1, "1f1b", 2, 4, full + ";parallel.split_backward=false");
  add("gpt dropout", 1, 3, 1, "gpipe", 1, 4, "training.recompute=[\"h.0\",\"h.1.mlp\",\"h.2.attn\",\"head\"]");
  add("gpt dropout", 1, 4, 1, "zb-h1", 1, 6, full + ";parallel.partition=uniform");
  add("gpt dropout", 1, 1, 2, "1f1b", 1, 4, full);
  add("gpt dropout", 2, 1, 1, "1f1b", 1, 2, full);
  add("gpt tied", 2, 2, 2, "zb-h1", 1, 4, full);
  add("sequential", 1, 1, 1, "gpipe", 1, 4, full);
  add("sequential", 1, 3, 1, "zb-h1", 1, 4, full);
  add("sequential", 1, 1, 2, "1f1b", 1, 4, full + ";parallel.split_backward=false");
  add("sequential", 1, 2, 2, "gpipe", 1, 4, full);
  add("mlp", 1, 2, 1, "1f1b", 1, 4, full);
  add("gpt dropout", 1, 2, 1, "zb-v", 1, 4, full);
  add("gpt dropout", 1, 2, 1, "interleaved", 1, 4, full);
  const std::string optimistic = "training.optimistic_step=true";
  add("mlp", 1, 1, 1, "1f1b", 1, 4, optimistic);
  add("gpt untied", 1, 2, 1, "zb-h2", 1, 4, optimistic);
  add("gpt dropout", 1, 4, 1, "zb-h2", 1, 8, optimistic + ";checkpoint.every_steps=7");
  add("gpt tied", 1, 3, 1, "1f1b", 1, 4, optimistic);
  add("gpt untied", 1, 2, 1, "zb-v", 1, 4, optimistic + ";" + full);
  add("sequential", 1, 1, 2, "1f1b", 1, 4, optimistic);
  add("gpt tied", 2, 1, 1, "1f1b", 1, 2, optimistic);
  add("mlp", 3, 2, 1, "1f1b", 1, 2, optimistic);
  add("gpt tied", 2, 2, 2, "zb-h1", 1, 4, optimistic);
  return all;
}

/// The same promise in bfloat16.
inline std::vector<Case> bfloat16_layouts(std::int64_t ranks) {
  std::vector<Case> all;
  const auto add = [&](const std::string& model, std::int64_t data, std::int64_t pipeline, std::int64_t tensor,
                       const std::string& schedule, int threads, std::int64_t micro_batches,
                       const std::string& extra = "") {
    if (data * pipeline * tensor == ranks)
      all.push_back({model, data, pipeline, tensor, schedule, threads, micro_batches, extra, "bfloat16"});
  };
  for (const std::string model : {"gpt tied", "gpt untied", "mlp", "sequential", "gpt dropout"}) {
    add(model, 1, 1, 1, "1f1b", 3, 4);
    add(model, 1, 2, 1, "1f1b", 1, 4);
    add(model, 1, 2, 1, "gpipe", 2, 2, "parallel.split_backward=false");
    add(model, 1, 4, 1, "1f1b", 1, 3, "parallel.partition=parameters");
    add(model, 1, 1, 2, "1f1b", 1, 4);
    add(model, 2, 1, 1, "1f1b", 1, 2);
    add(model, 2, 2, 1, "1f1b", 1, 2);
    add(model, 1, 2, 2, "gpipe", 1, 4);
    add(model, 2, 2, 2, "1f1b", 1, 2);
    add(model, 1, 2, 1, "zb-h1", 1, 4, "training.recompute=full");
    add(model, 1, 2, 1, "interleaved", 1, 4);
  }
  return all;
}

inline bool keeps_bits(const Case& c) { return c.data == 1 && c.tensor == 1; }

}  // namespace trainer::test
