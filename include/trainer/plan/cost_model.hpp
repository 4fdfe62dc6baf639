// What each part of a run costs: measured by `trainer profile`, or estimated from the speed of a core. Values and pure
// functions; seconds, elements and bytes throughout.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "trainer/core/shape.hpp"
#include "trainer/model/graph.hpp"
#include "trainer/plan/layouts.hpp"
#include "trainer/plan/mesh.hpp"
#include "trainer/plan/shard.hpp"
#include "trainer/schedule/schedule.hpp"

namespace trainer::plan {

/// Seconds by size, at the sizes that were measured. Between two sizes they are joined by a line, below the smallest
/// seconds stay what they are there, beyond the largest they grow in proportion. Empty: 0.
struct Curve {
  std::vector<std::pair<double, double>> points;  // (size, seconds), sizes ascending and > 0
  double at(double size) const;
  bool operator==(const Curve&) const = default;
};

/// Seconds that a message takes: latency + bytes / bandwidth.
struct Link {
  double latency = 2e-6;
  double bandwidth = 8e9;  // bytes a second
  double seconds(double bytes) const { return latency + bytes / bandwidth; }
  bool operator==(const Link&) const = default;
};

/// Seconds of one pass of one micro-batch over nodes, on one rank.
struct PassSeconds {
  double forward = 0;
  double backward_input = 0, backward_weight = 0;  // as separate actions
  double backward = 0;                             // as one action, I and W of each node in turn
  double sums = 0;                                 // of these, over tensor ranks: of a forward and a backward together
  PassSeconds& operator+=(const PassSeconds& other);
  PassSeconds operator*(double factor) const;
  bool operator==(const PassSeconds&) const = default;
};

/// A measured piece of a model. `samples` is a micro-batch's, `tensor` how many ranks divide the piece, `pipeline` how
/// many stages the model was cut into: smaller stages lie in caches.
struct MeasuredPiece {
  std::string piece;  // signature()
  std::int64_t tensor = 1;
  std::int64_t pipeline = 1;
  std::int64_t samples = 1;
  PassSeconds seconds;
  bool operator==(const MeasuredPiece&) const = default;
};

/// Where a profile was taken: times hold for nothing else.
struct Machine {
  std::string cpu;           // "AMD EPYC"
  std::string instructions;  // "native avx512"
  std::string libraries;     // trainer's and MPI's versions
  std::string precision;     // "float32"
  std::int64_t cores = 1;    // of the node, that ranks may use
  std::int64_t ranks = 1;    // that measured at the same time, on one node
  std::int64_t threads = 1;  // a rank
  bool operator==(const Machine&) const = default;
};

struct CostModel {
  Machine machine;
  bool measured = false;                // false: estimated from the numbers below alone
  double core_flops = 50e9;             // multiply-adds in registers, of one core, a second
  double memory_bandwidth = 10e9;       // of one core, bytes a second
  std::vector<MeasuredPiece> pieces{};  // sorted by (piece, tensor, pipeline, samples)
  Curve optimizer{};                    // elements updated
  Curve norm{};                         // elements squared
  Curve sum{};                          // elements read and written in adding what ranks have computed in parts
  Curve agreement{};                    // doubles summed over all ranks
  /// Ranks that wait for each other wait for the one that the machine has held up: how much longer it takes at a time
  /// than the mean of them, 1: no longer. What tensor ranks have measured together has it in it.
  double unevenness = 1;
  double action = 0;        // of an action, besides its pieces
  double step = 0;          // of a step, besides all of the above
  Link within{};            // between ranks of a node
  Link between{2e-5, 1e9};  // between nodes

  /// Floating-point operations a second of one rank.
  double rank_flops() const { return core_flops * static_cast<double>(machine.threads); }
  bool operator==(const CostModel&) const = default;
};

/// A model without measurements for ranks of `threads` cores.
CostModel estimated_costs(double core_flops, std::int64_t threads);

/// What a piece computes, as text: "128: norm(384) linear(384,1152) …", positions first. Pieces of one signature take
/// the same time.
std::string signature(const model::Graph& graph, const model::Unit& piece);

/// Estimated seconds of nodes on one of `local`'s tensor ranks, without sums over them.
PassSeconds estimated_seconds(const CostModel& costs, const model::Graph& graph, const LocalGraph& local, Range nodes,
                              std::int64_t samples, bool bfloat16);

/// Seconds of a sum of `elements` that `ranks` have computed in parts; every one of them gets it.
double sum_seconds(const CostModel& costs, double elements, std::int64_t ranks, bool one_node);

/// What the sums over tensor ranks add to a forward and a backward of nodes.
PassSeconds tensor_sums(const CostModel& costs, const model::Graph& graph, const LocalGraph& local, Range nodes,
                        std::int64_t samples, std::int64_t tensor, bool one_node);

/// The pieces of a graph for one size of micro-batch and one number of tensor ranks, so that a stage is a lookup.
class PieceCosts {
 public:
  /// Measured where the model has the piece at this number of tensor ranks (in stages of the nearest size; between
  /// measured numbers of samples by a line), else estimated. `tensor_on_one_node`: how the tensor ranks lie.
  PieceCosts(const CostModel& costs, const model::Graph& graph, const PieceSize& size, bool tensor_on_one_node,
             bool bfloat16);

  /// Of a stage's nodes (whole pieces), with what its messages cost the rank that copies them.
  PassSeconds stage(Range nodes) const;
  const std::vector<PassSeconds>& pieces() const { return pieces_; }
  /// Seconds of the forwards of those of `some` (ascending) that are among `nodes`: of a piece's, the share that they
  /// have by estimate.
  double forward_of(Range nodes, const std::vector<NodeId>& some) const;
  /// Bytes that cross the boundary before a node, one way.
  double boundary_bytes(std::int64_t node) const;
  /// Share of the pieces' time that was measured.
  double measured_share() const { return measured_share_; }

 private:
  PassSeconds estimate(const CostModel& costs, const LocalGraph& undivided, const model::Unit& piece,
                       bool tensor_on_one_node, bool bfloat16) const;

  const model::Graph& graph_;
  LocalGraph local_;
  const PieceSize size_;
  double copy_bandwidth_ = 0, action_ = 0;
  std::vector<double> crossing_;     // [node] elements of a sample that cross the boundary before it
  std::vector<PassSeconds> pieces_;  // [piece]
  std::vector<double> forward_;      // [node] its share of its piece's
  std::vector<PassSeconds> prefix_;  // [piece] of the pieces before it
  double measured_share_ = 0;
};

/// Per-stage times as the simulator takes them. A stage whose backward is one action in `table` has its whole time
/// in I and W together.
std::vector<schedule::StageTimes> simulator_times(const schedule::Schedule& table,
                                                  const std::vector<PassSeconds>& stages);

}  // namespace trainer::plan
