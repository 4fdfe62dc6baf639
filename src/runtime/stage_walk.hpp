// A stretch of a model that computes micro-batches again and again, with the time of each piece taken.
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "trainer/runtime/batch_source.hpp"
#include "trainer/runtime/run_plan.hpp"
#include "trainer/runtime/stage_runner.hpp"

namespace trainer::runtime {

/// Seconds of each visit to each piece of the stretch, in the order of visits: [piece][visit].
struct PieceVisits {
  std::vector<std::vector<double>> forward, backward_input, backward_weight, backward;
};

class StageWalk {
 public:
  /// Nodes of `shape.graph` as tensor rank `tensor_rank` of shape.mesh.tensor; `tensor_ranks` (one rank: its sums are
  /// left out) and all else must outlive it. Takes the memory of such a stage with two micro-batches in flight.
  StageWalk(const RunPlan& shape, std::int64_t tensor_rank, comm::Communicator& tensor_ranks,
            const storage::Dataset& data, ThreadPool& pool);

  /// Two forwards, then a backward in two halves and one joined: each piece meets others' data in the caches, as in a
  /// run. Collective over the tensor ranks. Visits are kept in visits() unless this is a warm-up.
  void round(bool keep);
  /// [piece of the stretch].
  const PieceVisits& visits() const { return visits_; }
  /// The first piece of the stretch in the graph's list.
  std::size_t first_piece() const { return first_piece_; }

 private:
  static constexpr std::int32_t kSlots = 2;
  using Clock = std::chrono::steady_clock;

  void make_memory();
  Frame frame_of(std::int32_t slot);
  void mark() { marks_.push_back(Clock::now()); }
  void forward(std::int32_t slot);
  /// Adds up the marks of a pass: `per_node` marks each, nodes in the order of the pass.
  void collect(std::vector<std::vector<double>>& visits, bool reversed, std::size_t per_node, bool keep);

  const RunPlan& shape_;
  plan::LocalGraph local_;
  TensorGroup tensor_;
  StageLayout layout_;
  ArenaLayout arena_layout_;
  Parameters parameters_;
  StageRunner runner_;
  Buffer arena_, messages_;
  BatchSource batches_;
  std::vector<std::uint8_t> valid_;
  std::vector<std::size_t> piece_of_;  // [node of the layout] piece of the stretch
  std::size_t first_piece_ = 0;
  std::vector<Clock::time_point> marks_;
  PieceVisits visits_;
};

/// A plan for one stage of these nodes alone, without a schedule: what StageWalk is made for.
RunPlan stretch_of(const RunPlan& whole, Range nodes, std::int64_t samples, std::int64_t tensor);

}  // namespace trainer::runtime
