// One rank of a run: its stages, memory, groups and messages, made once; then steps and evaluations.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "trainer/comm/communicator.hpp"
#include "trainer/core/observer.hpp"
#include "trainer/runtime/delayed_gradients.hpp"
#include "trainer/runtime/executor.hpp"
#include "trainer/runtime/local_rounds.hpp"
#include "trainer/runtime/optimistic_step.hpp"
#include "trainer/runtime/replica_shares.hpp"
#include "trainer/runtime/run_plan.hpp"
#include "trainer/runtime/saved_state.hpp"
#include "trainer/storage/checkpoint.hpp"
#include "trainer/storage/dataset.hpp"

namespace trainer::runtime {

/// What all ranks know after a step.
struct StepOutcome {
  std::int64_t step = 0;
  double loss = 0;
  double grad_norm = 0;
  double learning_rate = 0;
  double sent_bytes = 0;  // of gradients, between replicas, by all ranks
  bool stop = false;      // some rank asked to stop
};

/// What one call of Worker::step has settled, in this order.
struct StepResult {
  std::optional<StepOutcome> before;        // of the step before, which was left open
  std::span<const StepOutcome> round = {};  // of a round's steps, which were left open; valid until the next call
  std::optional<StepOutcome> now;           // nothing: the step is open; or it was not made, as `before` says to stop
};

class Worker : public SavedState {
 public:
  /// Collective. The plan and the data set must outlive the worker. `training` false: evaluation only, no gradients.
  /// `log` (may be null) gets what this rank does when.
  Worker(comm::Communicator& world, const RunPlan& plan, const storage::Dataset& data, ThreadPool& pool, bool training,
         ActionLog* log = nullptr);
  ~Worker() override;

  void initialise() override;
  bool load(const storage::CheckpointReader& checkpoint) override;
  std::vector<storage::Piece> pieces() const override;

  /// One optimizer step (from 1). `stop` from any rank reaches all. Collective; throws Error(Diverged) on every rank
  /// when loss or gradient is not finite, before any weight has changed. With training.optimistic_step, a step that
  /// need not be settled may stay open, its weights updated but not agreed on, until the next call settles it: nothing
  /// else may be asked of the worker meanwhile. Weights and outcomes are the same bits either way. With
  /// parallel.exchange "local" steps within a round stay open until its end, or until one must be settled; a stop and a
  /// divergence are noticed then.
  StepResult step(std::int64_t step, bool stop, bool settle);
  /// A settled step.
  StepOutcome step(std::int64_t step, bool stop) { return *this->step(step, stop, true).now; }
  /// With parallel.balance "auto": whether shares of micro-batches are looked at after this step, which must be settled
  /// then; and the look itself, collective, between steps. True when the shares have changed.
  bool rebalances_after(std::int64_t step) const { return shares_ && shares_->due(step); }
  bool rebalance(std::int64_t step);
  /// Takes these shares [replica], alike on all ranks, between steps.
  void take_shares(std::vector<std::int64_t> shares);
  /// Null: they are even.
  const ReplicaShares* shares() const { return shares_.get(); }

  /// Optimistic updates so far, and how many of them were taken back.
  struct Optimism {
    std::int64_t updates = 0, taken_back = 0;
  };
  const Optimism& optimism() const { return optimism_; }
  /// With parallel.delayed_gradients, before pieces() and at the end of a run: waits for the sum of the last pass's
  /// gradients, so that it can be saved. Changes no bit of what follows. Collective; nothing where gradients are not
  /// delayed.
  void finish_exchange();
  /// Mean loss (and accuracy for classes) over the held-out samples. Collective. With `stop`,
  /// nothing when it returned true on any rank before the last batch. Within a round of local steps it is that of the
  /// model with which the round began.
  std::optional<EvaluationReport> evaluate(std::int64_t step, const std::function<bool()>& stop = {});

  // For runs whose replicas are apart, each with batches and gradients of its own (plan.servers() > 0).

  /// Gradients of one batch of this replica by itself, each use of a parameter in its own place; with `add_uses` those
  /// of tied ones are added, as after step(). `batch`: the replica's own positions of the stream; `scale`: of the
  /// loss's gradient. Returns the sum of the losses as far as this rank has it. Collective over the replica.
  double compute_gradients(const GlobalBatch& batch, double scale, bool add_uses);
  /// After it with `add_uses`: Σ g² of the parameters that this rank speaks for, in their global order.
  double gradient_squares();
  /// What the loss of a batch is divided by: its targets that count (for real targets, their values).
  double targets_of(const GlobalBatch& batch) const;
  GlobalBatch training_batch(std::int64_t step) const;
  /// Positions of the stream from here on are padding.
  std::int64_t sample_limit() const { return sample_limit_; }

  /// Throws Error(Diverged) on every rank, having looked for where it began in what was computed last. `who` (" in
  /// replica 1") and `since`, what did not happen, are alike on all ranks. Collective.
  [[noreturn]] void diverge(std::int64_t step, double loss, double grad_norm, const std::string& who = "",
                            const std::string& since = "No weight was changed in this step");

  const storage::Split& split() const { return split_; }
  std::int64_t total_steps() const { return total_steps_; }
  const plan::Coordinates& coordinates() const { return at_; }
  /// Weights, and after a step the gradients it summed (before clipping).
  Parameters& parameters() { return *parameters_; }

 private:
  struct Program;  // layouts, their runners and executor
  void make_runners(Program& program);
  void wire(Program& program, const schedule::Schedule& schedule, const std::vector<schedule::StageSlots>& slots,
            int channel);
  /// Makes the training program walk the table of this replica's share.
  void take_share();
  /// What this rank's loss and gradient are means over: the global batch, or the replica's share of it.
  GlobalBatch batch_of_means(std::int64_t step) const;
  /// [stage] world ranks of this replica and tensor place.
  std::vector<int> stage_ranks() const;
  void measure_norms();
  /// This rank's terms beside the norms.
  void agree_on(const PassResult& pass, bool stop, double sent_bytes);
  StepResult delayed_step(std::int64_t step, bool stop);
  void load_delayed(const storage::CheckpointReader& checkpoint);
  void add_delayed_pieces(std::vector<storage::Piece>& pieces) const;
  PassResult pass(std::int64_t step, const std::function<bool()>& go_on = {});
  /// From the sums of all ranks, in agreement_.
  StepOutcome outcome_of(std::int64_t step) const;
  float clip_scale_of(const StepOutcome& outcome) const;
  void update(const StepOutcome& outcome, float scale, bool keep_before = false);
  /// Whether the open step stands as it is and the pass behind it is wanted.
  bool confirm();
  /// After a pass that was given up: brings the weights to where the plain way has them.
  void repair(const StepOutcome& outcome);
  // Rounds of local steps.
  StepResult local_step(std::int64_t step, bool stop, bool settle);
  LocalStep train_alone(std::int64_t step);
  void tell_round(const LocalRounds::Meeting& meeting, StepResult& result);
  std::optional<EvaluationReport> evaluate_weights(std::int64_t step, const std::function<bool()>& stop);

  const RunPlan& plan_;
  const storage::Dataset& data_;
  ThreadPool& pool_;
  comm::Communicator& world_;
  ActionLog* log_;
  std::unique_ptr<ActionLog> own_log_;  // where nobody gave one and times are needed
  plan::Coordinates at_;
  plan::LocalGraph local_;
  storage::Split split_;
  std::int64_t total_steps_ = 0;
  std::int64_t sample_limit_ = 0;
  double sample_delay_ = 0;  // of this replica
  std::unique_ptr<comm::Communicator> tensor_ranks_, data_ranks_, pipeline_ranks_;
  std::unique_ptr<comm::Communicator> replica_ranks_;  // only with rounds_
  std::unique_ptr<TensorGroup> tensor_;
  std::unique_ptr<Parameters> parameters_;
  std::unique_ptr<optim::Optimizer> optimizer_;
  Buffer arena_;
  std::unique_ptr<StageMessages> messages_;
  std::unique_ptr<Program> training_, forward_only_;
  std::unique_ptr<GradientSync> sync_;         // null where gradients are delayed
  std::unique_ptr<DelayedGradients> delayed_;  // null where they are not
  std::unique_ptr<BatchSource> batches_;
  std::optional<BatchSource> own_batches_;      // where replicas are apart
  std::unique_ptr<OptimisticStep> optimistic_;  // null: the plain way
  std::optional<comm::WaitProgress> wait_progress_;
  StepOutcome confirmed_;  // by the last confirm()
  std::unique_ptr<ReplicaShares> shares_;
  std::unique_ptr<LocalRounds> rounds_;  // null: replicas exchange gradients
  std::vector<StepOutcome> round_outcomes_;
  Optimism optimism_;
  std::vector<double> agreement_;  // [parameters] squared norms, then loss, stop, bytes sent
  std::vector<double> norm_scratch_;
};

/// The number of steps that `training` asks for over this many training samples.
std::int64_t total_steps(const config::Training& training, std::int64_t training_samples);
/// The samples of the stream that count, at least one; those behind them are padding of the last step.
std::int64_t sample_limit(const config::Training& training, std::int64_t training_samples);

/// Samples that are not held out.
std::int64_t training_samples(const RunPlan& plan, const storage::Dataset& data);

/// Throws Error(Data) when there are too few samples to train or to hold out.
void check_samples(const RunPlan& plan, const storage::Dataset& data);

/// What the model wants from the data.
storage::ModelInput model_input(const model::Graph& graph);

}  // namespace trainer::runtime
