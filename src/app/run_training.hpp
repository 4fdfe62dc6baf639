// What starting a training takes, for `trainer --config` and for every combination of a sweep.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "trainer/comm/communicator.hpp"
#include "trainer/comm/topology.hpp"
#include "trainer/config/config.hpp"
#include "trainer/plan/cost_model.hpp"
#include "trainer/runtime/run_plan.hpp"
#include "trainer/runtime/train.hpp"
#include "trainer/storage/dataset.hpp"

namespace trainer::app {

/// What one rank reads, on every rank. Collective.
std::string agreed_text(comm::Communicator& world, const std::function<std::string()>& read);

/// Reads the file of a schedule from a file, into the configuration. Collective.
void read_agreed_schedule(comm::Communicator& world, config::Config& config);

struct RunRequest {
  config::Config config;
  std::int64_t ranks = 1;  // to plan for
  int threads = 0;         // a rank; 0: from affinity, quota and the ranks on the node
  std::string kernels;     // "native", "onednn" or "": native
};

/// A run that is planned and whose data are there.
struct PreparedRun {
  comm::NodePlan node;
  std::optional<plan::CostModel> costs;  // of parallel.profile
  runtime::RunPlan plan;
  std::shared_ptr<const storage::Dataset> data;
};

/// What the run's step is predicted by: its profile, or else the speed of the cores, which orders layouts, but may be
/// far from the step's time. `peak_flops`: of all ranks' cores.
plan::CostModel costs_of(const PreparedRun& run, double peak_flops);

/// A data set, kept for the next run that reads the same.
class DataCache {
 public:
  /// As storage::load_dataset.
  std::shared_ptr<const storage::Dataset> load(const config::Config& config, const storage::ModelInput& model);
  /// Bytes of what is kept.
  std::size_t bytes() const { return data_ ? data_->bytes() : 0; }

 private:
  std::string key_;
  std::shared_ptr<const storage::Dataset> data_;
};

/// Plans the run and loads its data; sets how waits behave and who multiplies, for the whole process. Collective over
/// `world`, throws AgreedError.
PreparedRun prepare_run(comm::Communicator& world, RunRequest request, DataCache& cache);

/// Decides training.recompute "auto" for so many ranks on a node and holds the plan to parallel.memory_per_rank.
/// Collective over `world`, throws AgreedError.
void fit_memory(comm::Communicator& world, PreparedRun& run, std::int64_t ranks_here);

/// What a run is told besides its plan, whose memory it fits. Refuses one that the memory of a node cannot hold.
/// Collective over `world` (plan.mesh.size() ranks), throws AgreedError. `base_memory`: resident before the run.
runtime::TrainOptions start_run(comm::Communicator& world, PreparedRun& run, std::int64_t base_memory);

}  // namespace trainer::app
