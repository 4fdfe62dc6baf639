// How many of a step's micro-batches each replica takes (parallel.balance "auto"), as measured.
#pragma once

#include <cstdint>
#include <vector>

#include "trainer/comm/communicator.hpp"
#include "trainer/core/action_log.hpp"
#include "trainer/runtime/run_plan.hpp"
#include "trainer/storage/checkpoint.hpp"

namespace trainer::runtime {

/// Shares begin even, or as a checkpoint has them, and change between steps: after the first kFirstLook steps, and
/// every parallel.balance_every steps from then on, each rank says how long it computed a micro-batch (its log's time
/// in forwards and backwards and for reading samples, without waits); a replica takes as long as its slowest rank. All
/// ranks see the same numbers, so all come to the same shares (plan/balance.hpp).
class ReplicaShares {
 public:
  /// `log`: of this rank, and it must outlive this.
  ReplicaShares(const RunPlan& plan, const plan::Coordinates& at, const ActionLog& log);

  /// [replica], at least 1 each; they sum to all_micro_batches.
  const std::vector<std::int64_t>& shares() const { return shares_; }
  std::int64_t mine() const { return shares_[static_cast<std::size_t>(at_.data)]; }
  /// This replica's first micro-batch, counted over all of them.
  std::int64_t first() const;

  /// Whether shares are looked at after this step of the run.
  bool due(std::int64_t step) const;
  /// Before every step: counts it for the times.
  void count_step();
  /// Collective over `world`, after a step that is due and settled. True when the shares have changed.
  bool look(comm::Communicator& world, std::int64_t step);

  /// [replica] seconds of a micro-batch by the last look; empty before.
  const std::vector<double>& seconds() const { return seconds_; }
  std::int64_t changes() const { return changes_; }  // of this run

  /// "optimizer.balance.micro_batches": the shares as floats, from the world's rank 0.
  std::vector<storage::Piece> pieces() const;
  /// Takes these, alike on all ranks.
  void take(std::vector<std::int64_t> shares);
  /// Takes those of a checkpoint where they fit this run; true when they differ from what there was.
  bool load(const storage::CheckpointReader& checkpoint);

  static constexpr std::int64_t kFirstLook = 4;
  static constexpr double kGain = 0.1;  // that a change must promise of a step's time

 private:
  std::int64_t busy() const;

  const RunPlan& plan_;
  const plan::Coordinates at_;
  const ActionLog& log_;
  const std::int64_t every_;
  std::vector<std::int64_t> shares_;
  std::vector<float> saved_;  // shares_, for checkpoints
  std::vector<double> seconds_, of_rank_;
  std::int64_t steps_ = 0;    // of this run, begun
  std::int64_t counted_ = 0;  // since the last look, the run's first step left out
  std::int64_t begin_ = 0;    // busy() then
  std::int64_t changes_ = 0;
};

}  // namespace trainer::runtime
