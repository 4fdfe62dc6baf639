// Runs with parameter servers, and the same runs with all_reduce.
#pragma once

#include <unistd.h>

#include <atomic>
#include <string>

#include "equivalence.hpp"
#include "trainer/runtime/exchange_log.hpp"

namespace trainer::test {

struct ServedCase {
  Case c;  // of the mesh
  std::int64_t servers = 1;
  std::string keys;  // "parallel.consistency=ssp;…"

  std::int64_t ranks() const { return c.ranks() + servers; }
  Case served() const {
    Case with = c;
    with.extra += (with.extra.empty() ? "" : ";") + std::string("parallel.exchange=server;parallel.servers=") +
                  std::to_string(servers) + (keys.empty() ? "" : ";") + keys;
    return with;
  }
  std::string name() const { return c.name() + " servers " + std::to_string(servers) + " " + keys; }
};

inline Case mesh_case(const std::string& model, std::int64_t data, std::int64_t pipeline, std::int64_t tensor,
                      const std::string& extra = "") {
  Case c;
  c.model = model;
  c.data = data;
  c.pipeline = pipeline;
  c.tensor = tensor;
  c.micro_batches = 2;
  c.extra = extra;
  return c;
}

/// A run directory of one test, removed with it.
struct RunDirectory {
  std::string path;
  explicit RunDirectory(const std::string& name)
      : path((std::filesystem::temp_directory_path() / ("trainer-" + name + "-" + std::to_string(getpid()))).string()) {
    std::filesystem::remove_all(path);
  }
  ~RunDirectory() { std::filesystem::remove_all(path); }
  RunDirectory(const RunDirectory&) = delete;
  RunDirectory& operator=(const RunDirectory&) = delete;
};

/// How the messages of a run travel, and when it is asked to stop.
struct Conditions {
  comm::SendMode mode = comm::SendMode::Eager;
  std::uint64_t fault_seed = 0;  // 0: none
  double most_delay = 0.0005;    // seconds
  int faulty_rank = -1;          // only its messages are late; −1: all ranks'
  bool resume = false;
  std::int64_t stop_at = 0;  // rank 0 asks when it hears of this step; 0: never
};

struct Kept {
  runtime::TrainResult result;        // of rank 0
  std::vector<StepReport> steps;      // as rank 0 heard of them
  std::vector<std::string> warnings;  // and notes
};

class StepKeeper final : public Observer {
 public:
  StepKeeper(Kept& kept, std::int64_t stop_at, std::atomic<bool>& stop) : kept_(kept), stop_at_(stop_at), stop_(stop) {}
  void step(const StepReport& report) override {
    kept_.steps.push_back(report);
    if (report.step == stop_at_) stop_ = true;
  }
  void note(std::string_view text) override { kept_.warnings.emplace_back(text); }
  void warning(std::string_view text) override { kept_.warnings.emplace_back(text); }

 private:
  Kept& kept_;
  const std::int64_t stop_at_;
  std::atomic<bool>& stop_;
};

/// A run over ranks as threads that leaves its directory. Throws what the run throws.
inline Kept run_in(const std::string& directory, const Case& c, std::int64_t ranks, const Conditions& how = {}) {
  Kept kept;
  std::atomic<bool> stop{false};
  comm::run_in_process(
      static_cast<int>(ranks),
      [&](comm::Communicator& inner) {
        const bool is_faulty = how.fault_seed != 0 && (how.faulty_rank < 0 || how.faulty_rank == inner.rank());
        const auto faulty = is_faulty ? comm::make_faulty(inner, how.fault_seed, how.most_delay) : nullptr;
        comm::Communicator& world = faulty ? *faulty : inner;
        const runtime::RunPlan plan =
            runtime::make_plan(config::parse(model_json(c.model), "test", overrides(c, directory)), world.size());
        const auto data =
            storage::load_dataset(plan.config.data, runtime::model_input(plan.graph), plan.config.training.seed);
        runtime::TrainOptions options;
        options.resume = how.resume;
        options.overwrite = !how.resume;
        options.threads = c.threads;
        options.spin = false;
        options.stop = &stop;
        options.observers = [&](std::int64_t, std::int64_t) {
          return std::make_unique<StepKeeper>(kept, how.stop_at, stop);
        };
        auto result = runtime::train(world, plan, *data, storage::real_file_system(), options);
        if (inner.rank() == 0) kept.result = std::move(result);
      },
      how.mode);
  return kept;
}

/// Every tensor of a checkpoint's weights and, with `states`, of its optimizer.
inline std::map<std::string, std::vector<float>> tensors_of(const std::string& path, bool states) {
  std::map<std::string, std::vector<float>> all;
  const auto checkpoint = storage::open_checkpoint(storage::real_file_system(), path);
  for (const storage::TensorEntry& tensor : checkpoint->tensors()) {
    if (tensor.type != DType::F32 || (!states && tensor.name.starts_with("optimizer."))) continue;
    auto& values = all[tensor.name];
    values.resize(static_cast<std::size_t>(tensor.shape.elements()));
    checkpoint->read(tensor.name, whole(tensor.shape), values.data());
  }
  return all;
}

inline runtime::ExchangeLog log_of(const std::string& directory, int server) {
  return runtime::read_exchange_log(storage::real_file_system(), runtime::exchange_log_path(directory, server));
}

}  // namespace trainer::test
