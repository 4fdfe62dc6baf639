// Everything decided before the first step: mesh, stages, schedules, and what each rank will hold. Made without MPI.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/config/config.hpp"
#include "trainer/model/graph.hpp"
#include "trainer/plan/cost_model.hpp"
#include "trainer/plan/mesh.hpp"
#include "trainer/plan/shard.hpp"
#include "trainer/runtime/stage_layout.hpp"
#include "trainer/schedule/schedule.hpp"

namespace trainer::runtime {

/// One use of a parameter by a node, and the stage that holds it.
struct ParameterUse {
  NodeId node;
  StageId stage;
};

struct RunPlan {
  config::Config config;  // with parallel resolved
  model::Graph graph;
  plan::Mesh mesh;
  std::vector<Range> stage_nodes;                        // [stage]
  std::vector<std::vector<StageId>> stages_of_rank;      // [pipeline rank]
  schedule::Schedule training;                           // with communication and reductions
  schedule::Schedule forward_only;                       // with communication
  std::string schedule_origin;                           // of `auto`: what it was found as; else empty
  std::vector<schedule::StageSlots> training_slots;      // [stage]
  std::vector<schedule::StageSlots> forward_only_slots;  // [stage]
  /// [stage] what a replica's memory is for: training_slots, or where replicas' shares may change those of the largest.
  std::vector<schedule::StageSlots> booked_slots;
  std::int64_t micro_batch_samples = 0;
  /// [parameter] all uses over all stages in the order of nodes; more than one: tied.
  std::vector<std::vector<ParameterUse>> parameter_uses;

  /// Ranges of nodes that keep only their inputs (see recompute.hpp). Empty for "auto" until fit_recompute.
  std::vector<Range> recompute;

  /// [rank] which node it is on; empty: all are on one.
  std::vector<int> node_of_rank;

  std::int64_t stages() const { return static_cast<std::int64_t>(stage_nodes.size()); }
  /// Those of a pipeline rank, ascending; and the pipeline rank of one.
  const std::vector<StageId>& stages_of(std::int64_t pipeline_rank) const {
    return stages_of_rank[static_cast<std::size_t>(pipeline_rank)];
  }
  std::int64_t rank_of(StageId stage) const { return training.rank_of_stage[stage.index()]; }
  Range nodes(StageId stage) const { return stage_nodes[stage.index()]; }
  /// Ranks beside the mesh that hold the parameters; and all ranks of the run: those of the mesh, then the servers.
  std::int64_t servers() const {
    return config.parallel.exchange == config::Exchange::Server ? config.parallel.server.count : 0;
  }
  std::int64_t ranks() const { return mesh.size() + servers(); }
  /// Whether replicas on one node may hold one copy of the weights: their gradients are added before each update, in
  /// place, and nothing asks for messages.
  bool shares_weights() const;
  /// Whether replicas train by themselves for rounds of steps: gradients, norms and updates are each replica's own.
  bool local_steps() const { return config.parallel.exchange == config::Exchange::Local; }
  /// Whether replicas take micro-batches by their speed. Where there is but one, it takes all.
  bool balances() const { return config.parallel.balance == config::Balance::Auto && mesh.data > 1; }
  bool compresses() const { return config.parallel.compression.type != config::CompressionType::None; }
  const std::vector<ParameterUse>& uses(ParameterId p) const { return parameter_uses[p.index()]; }
};

/// The machines under a plan, as far as they differ from the one that the costs are of.
struct Machines {
  std::vector<int> node_of_rank;  // [rank]; empty: all are on one node
  std::vector<double> speed;      // [rank] relative to the rank that the costs are of; empty: 1
};
/// What a plan may be made for: "partition": "profile" goes by it.
struct PlanCosts {
  const plan::CostModel* model = nullptr;  // null: estimated, alike on all machines
  Machines machines;
  double share_of_search = 1;  // of what a search for a cut or a schedule may take
};

/// Resolves, builds, cuts and schedules for `ranks`; verifies the schedules. Throws Error(Usage).
RunPlan make_plan(config::Config config, std::int64_t ranks, const PlanCosts& costs = {});

/// What the operators of a run multiply in.
ops::MatmulPrecision matmul_precision(const config::Config& config);

/// Throws Error(Usage) where training.precision asks for bfloat16, the CPU has no instructions for it, and emulation
/// was not asked for. For training and its dry run; evaluation and generation emulate without asking.
void require_precision(const config::Config& config);

/// Which of a rank's groups lie on one node, so that they share memory.
struct SharedGroups {
  bool data = true, pipeline = true, tensor = true;
};
SharedGroups on_one_node(const RunPlan& plan, const plan::Coordinates& at);

/// Whether the table has I and W apart for this stage.
bool splits_backward(const schedule::Schedule& schedule, StageId stage);

/// Element counts of the sums over tensor ranks that the stages of a pipeline rank ask for.
std::vector<std::int64_t> reduction_sizes(const RunPlan& plan, const plan::LocalGraph& local,
                                          std::int64_t pipeline_rank);

/// "stage 2, replica 0, tensor 1"; "stages 0+7, …" where a rank has several.
std::string describe_place(const RunPlan& plan, std::int64_t rank);

/// Bytes that one rank will hold, by purpose.
struct MemoryPrediction {
  std::size_t weights = 0;
  std::size_t gradients = 0;
  std::size_t optimizer = 0;
  std::size_t before = 0;         // weights and optimizer state as they were before an optimistic step
  std::size_t activations = 0;    // slots, rings and scratch of the stages
  std::size_t communication = 0;  // staging of reductions, what is read of neighbours' gradients, remote tied gradients
  std::size_t data = 0;
  std::size_t fixed = 0;  // the process itself after MPI has started
  /// What the run computes with; the rest of total() is what running it costs.
  std::size_t live_set() const { return weights + gradients + optimizer + activations; }
  /// What is resident in this process. `elsewhere` of it is memory that another rank of the node has taken and counts
  /// too: of a node's ranks the sum of own() is what they take together.
  std::size_t total() const { return live_set() + before + communication + data + fixed; }
  std::size_t elsewhere = 0;
  std::size_t own() const { return total() - elsewhere; }
};
MemoryPrediction predict_memory(const RunPlan& plan, std::int64_t rank, int threads, std::size_t data_bytes);

/// Floating-point operations of one step over all replicas; tensor ranks share them.
double step_flops(const RunPlan& plan);

/// The layouts of a stage.
StageLayout training_layout(const RunPlan& plan, const plan::LocalGraph& local, StageId stage, int threads);
StageLayout forward_only_layout(const RunPlan& plan, const plan::LocalGraph& local, StageId stage, int threads);

/// All stages of a pipeline rank and how they share its arena, for training or forward only.
struct RankLayouts {
  std::vector<StageLayout> stages;  // as plan.stages_of
  RankArena arena;
};
RankLayouts rank_layouts(const RunPlan& plan, const plan::LocalGraph& local, std::int64_t pipeline_rank, int threads,
                         bool training);

}  // namespace trainer::runtime
