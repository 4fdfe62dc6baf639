// Local SGD and DiLoCo (parallel.exchange "local"): replicas train by themselves for a round of steps, then make one
// model of theirs.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "trainer/comm/communicator.hpp"
#include "trainer/core/action_log.hpp"
#include "trainer/core/tensor.hpp"
#include "trainer/optim/optimizer.hpp"
#include "trainer/runtime/parameters.hpp"
#include "trainer/runtime/run_plan.hpp"
#include "trainer/storage/checkpoint.hpp"

namespace trainer::runtime {

/// One replica's part of a step of a round, as all ranks of the replica know it.
struct LocalStep {
  std::int64_t step = 0;
  double loss = 0;  // sum over its targets
  double grad_norm = 0;
};

/// A step over all replicas.
struct RoundStep {
  std::int64_t step = 0;
  double loss = 0;       // sum over the targets of the global batch
  double grad_norm = 0;  // mean over replicas of their own gradients' norms
};

/// What replicas share, and what of a round is not shared yet.
///
/// θ is the model at the end of the last round; every replica holds it, and u, the momentum of the outer optimizer
/// (optim/outer_step.hpp), beside its own weights, which equal θ between rounds. Rounds end at multiples of
/// parallel.local.steps and with the last step of the run. Nothing passes between replicas within a round, so what
/// their steps gave is kept here until all ranks meet: at the end of the round, or earlier where something is due (a
/// save, an evaluation), which changes no bit.
///
/// In checkpoints the usual names hold θ and replica 0's optimizer state: a whole model for every layout and exchange.
/// "optimizer.local.outer_momentum.NAME" is u, "optimizer.local.R.STATE.NAME" the state of replica R > 0, and within a
/// round "optimizer.local.R.weight.NAME" are the weights of replica R.
class LocalRounds {
 public:
  /// Collective over `data`. `world`: all ranks. What is referred to must outlive it. `log` may be null.
  LocalRounds(const RunPlan& plan, const plan::Coordinates& at, Parameters& parameters,
              const optim::Optimizer& optimizer, ThreadPool& pool, comm::Communicator& world, comm::Communicator& data,
              std::int64_t total_steps, ActionLog* log = nullptr);

  /// The weights, alike on all replicas, are where rounds begin.
  void begin();
  /// After the usual names have been read: what else a checkpoint has. Replicas go on where they were when there are as
  /// many as there were, else all begin a round with θ and replica 0's optimizer state.
  void load(const storage::CheckpointReader& checkpoint);
  /// This rank's pieces of a checkpoint; they point into the memory of this and of the parameters.
  std::vector<storage::Piece> pieces() const;

  bool ends_round(std::int64_t step) const { return step % round_ == 0 || step == total_steps_; }
  /// Within a round: this replica's weights are not θ.
  bool apart() const { return apart_; }
  /// While it lives, the weights are θ; for evaluation within a round.
  class Shown {
   public:
    explicit Shown(LocalRounds& rounds) : rounds_(rounds) { rounds_.exchange_weights(); }
    ~Shown() { rounds_.exchange_weights(); }
    Shown(const Shown&) = delete;
    Shown& operator=(const Shown&) = delete;

   private:
    LocalRounds& rounds_;
  };

  /// Whether this replica has met a loss or gradient that is not finite: it makes no step until all meet.
  bool failed() const { return failed_; }
  /// After each step of the replica, with zeros after one that was not finite (which is to be added too).
  void add(const LocalStep& step, bool stop);

  /// All ranks are to meet after this step even where nothing else is due.
  bool meets_after(std::int64_t step) const { return ends_round(step) || mine_.size() == kMostSteps; }
  struct Meeting {
    std::span<const RoundStep> steps;     // since the last one; valid until the next add
    std::optional<std::size_t> diverged;  // index of the first of them with a value that is not finite: nothing else
                                          // has happened then
    std::int64_t replica = -1;            // then: the first replica that had it
    bool stop = false;                    // some rank wants to
    double sent_bytes = 0;                // by all ranks since the last one
  };
  /// Collective over all ranks, after the same step on each; ends the round where that step does.
  Meeting meet(std::int64_t step);
  /// Steps between two meetings at most, however long a round is.
  static constexpr std::size_t kMostSteps = 1024;

 private:
  void exchange_weights();
  void end_round(std::int64_t step);
  std::int64_t first_replica_with(std::size_t step);
  template <class Visit>
  void for_each_box(const Visit& visit) const;
  float* theta() { return theta_.f32(); }
  bool has_momentum() const { return momentum_.size() > 0; }

  const RunPlan& plan_;
  const plan::Coordinates at_;
  Parameters& parameters_;
  const optim::Optimizer& optimizer_;
  ThreadPool& pool_;
  comm::Communicator& world_;
  ActionLog* log_;
  const std::int64_t round_, total_steps_;
  const int replicas_;
  const bool speaks_;  // of its replica's ranks: the one whose numbers count in a meeting
  Buffer theta_, momentum_;
  std::unique_ptr<comm::AllReduce> sum_;  // of the weights, in place
  std::int64_t sum_bytes_ = 0;            // that this rank sends for it
  bool apart_ = false, failed_ = false, stop_ = false;
  std::vector<LocalStep> mine_;  // since the last meeting
  std::vector<RoundStep> agreed_;
  std::vector<double> numbers_;  // of a meeting: two a step, then stop and bytes
};

/// Bytes that rounds take on one rank beside the weights: θ and u; and for the sum over replicas.
struct RoundsMemory {
  std::size_t models = 0;
  std::size_t messages = 0;
};
RoundsMemory rounds_memory(const RunPlan& plan, const ParameterLayout& parameters);

/// What a run that goes on from this checkpoint leaves behind in it, as a sentence; "" when nothing.
std::string lost_of_rounds(const storage::CheckpointReader& checkpoint, const config::Config& saved,
                           const config::Config& now);

}  // namespace trainer::runtime
