#include "trainer/runtime/train.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <chrono>
#include <map>
#include <optional>

#include "run_end.hpp"
#include "saver.hpp"
#include "served_run.hpp"
#include "trainer/runtime/pass_table.hpp"
#include "trainer/runtime/time_split.hpp"
#include "trainer/runtime/worker.hpp"

namespace trainer::runtime {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

class Run {
 public:
  Run(comm::Communicator& world, const RunPlan& plan, const storage::Dataset& data, Saver& saver,
      const TrainOptions& options)
      : world_(world),
        plan_(plan),
        data_(data),
        options_(options),
        pool_(options.threads, options.spin),
        log_(options.trace ? trace_log_capacity(plan, world.rank(), *options.trace)
                           : usual_log_capacity(plan, world.rank()),
             plan.training.rank_of_stage.size()),
        worker_(world, plan, data, pool_, true, &log_),
        saver_(saver),
        total_(worker_.total_steps()),
        times_(world, plan, log_) {
    if (options.trace && options.trace->last > 0) log_.keep_steps(options.trace->first, options.trace->last);
  }

  TrainResult go() {
    const auto started = Clock::now();
    // Messages of opening come before the observers that need to know where the run begins.
    PendingMessages pending;
    const std::int64_t done = saver_.open(worker_, options_.resume, pending);
    observer_ = make_observers(world_, options_, saver_, pending, done, total_);
    if (plan_.config.parallel.delayed_gradients) {
      observer_->note(
          "parallel.delayed_gradients: each step applies the gradients of the step before it (staleness 1); those of "
          "the last step are computed, and kept in its checkpoint, but not applied");
    }

    if (worker_.shares() != nullptr) tell_shares(done);
    if (plan_.balances() && plan_.mesh.data > 1 && plan_.training.micro_batches == 1) {
      observer_->warning(
          "parallel.balance is \"auto\", but a replica's share of a batch is one micro-batch, and each keeps one at "
          "least: "
          "nothing can move. More training.micro_batches would let it");
    }

    result_.first_step = done + 1;
    result_.last_step = done;
    const comm::ClockSample clock = comm::measure_clock(world_, plan_.node_of_rank, steady_nanoseconds);
    bool stopped = false;
    for (std::int64_t next = done + 1; next <= total_ && !stopped; ++next) {
      stopped = one_step(next, started);
      const std::int64_t step = result_.last_step;
      if (step < next && !stopped) continue;  // left open, so nothing is due
      // Saved before it is evaluated: a kill during the evaluation loses nothing.
      const bool due = stopped || save_is_due(step);
      if (due) save(step);
      if (step < total_ && (stopped || !evaluation_is_due(step))) continue;
      if (evaluate(step, started)) continue;
      stopped = true;
      if (!due) save(step);
    }
    worker_.finish_exchange();
    finish(stopped && result_.last_step < total_, clock);
    return std::move(result_);
  }

 private:
  bool save_is_due(std::int64_t step) const { return is_due(step, plan_.config.checkpoint.every_steps, total_); }
  bool evaluation_is_due(std::int64_t step) const { return is_due(step, plan_.config.training.eval_every, total_); }

  bool wants_stop(Clock::time_point started) {
    if (options_.stop != nullptr && options_.stop->load(std::memory_order_relaxed)) return true;
    const double limit = plan_.config.training.time_limit;
    limit_reached_ = limit > 0 && world_.rank() == 0 && seconds_since(started) >= limit;
    return limit_reached_;
  }

  bool one_step(std::int64_t step, Clock::time_point started) {
    times_.before_step();
    const std::int64_t before = options_.allocations ? options_.allocations() : 0;
    const bool look = step < total_ && worker_.rebalances_after(step);
    const bool settle = look || save_is_due(step) || evaluation_is_due(step);
    const StepResult done = worker_.step(step, wants_stop(started), settle);
    const std::int64_t after = options_.allocations ? options_.allocations() : 0;
    times_.after_step();
    const double seconds = 1e-9 * static_cast<double>(log_.step_nanoseconds());
    if (done.before || done.now) end_gather();
    const bool made = !done.before || !done.before->stop;
    Spent spent{.seconds = seconds,
                .allocations = after - before,
                .gathers = made && !gathers() && is_logged(step, total_, plan_.config.logging.every_steps),
                .splits = {}};
    if (spent.gathers) times_.begin_gather_step();
    if (made) open_.push_back(std::move(spent));
    result_.seconds += seconds;
    if (done.now) end_gather();
    bool stop = false;
    std::size_t settled = 0;
    if (done.before) stop = report(*done.before, open_[settled++]);
    for (const StepOutcome& outcome : done.round) stop = report(outcome, open_[settled++]);
    if (done.now) stop = report(*done.now, open_[settled++]);
    open_.erase(open_.begin(), open_.begin() + static_cast<std::ptrdiff_t>(settled));
    if (look && done.now && worker_.rebalance(step)) tell_shares(step);
    return stop;
  }

  // Of steps behind this one.
  void tell_shares(std::int64_t step) {
    const ReplicaShares& shares = *worker_.shares();
    observer_->shares({.step = step, .micro_batches = shares.shares(), .seconds = shares.seconds()});
    if (shares.changes() == 0) return;
    std::vector<double> milliseconds;
    for (const double seconds : shares.seconds()) milliseconds.push_back(1e3 * seconds);
    observer_->note(fmt::format("step {}: replicas take {} micro-batches from here on, as one takes them {:.3g} ms",
                                step, fmt::join(shares.shares(), " + "), fmt::join(milliseconds, ", ")));
  }

  // [replica] what each walks; empty: all the plan's own.
  std::vector<const schedule::Schedule*> tables() {
    std::vector<const schedule::Schedule*> tables;
    if (worker_.shares() == nullptr || world_.rank() != 0) return tables;
    for (const std::int64_t count : worker_.shares()->shares()) {
      schedule::Schedule& table = tables_[count];
      if (table.ranks.empty()) table = pass_table(plan_, count).schedule;
      tables.push_back(&table);
    }
    return tables;
  }

  // What a call took, until its step is settled.
  struct Spent {
    double seconds = 0;
    std::int64_t allocations = 0;
    bool gathers = false;  // the ranks' times are on their way; of one open step at most
    std::vector<TimeSplit> splits;
  };

  bool gathers() const {
    return std::any_of(open_.begin(), open_.end(), [](const Spent& spent) { return spent.gathers; });
  }
  // All ranks have come past the step whose times are on their way.
  void end_gather() {
    for (Spent& spent : open_) {
      if (!spent.gathers) continue;
      spent.splits = split_ranks(plan_, times_.end_gather(), tables());
      spent.gathers = false;
    }
  }

  // A step that all ranks have agreed on; returns whether some rank wants to stop.
  bool report(const StepOutcome& outcome, const Spent& spent) {
    result_.loss = outcome.loss;
    result_.last_step = outcome.step;
    result_.exchange_bytes += outcome.sent_bytes;
    if (world_.rank() != 0) return outcome.stop;
    StepReport report;
    report.step = outcome.step;
    report.total_steps = total_;
    report.loss = outcome.loss;
    report.grad_norm = outcome.grad_norm;
    report.learning_rate = outcome.learning_rate;
    report.step_seconds = spent.seconds;
    report.step_samples = plan_.config.training.batch_size;
    report.samples = outcome.step * report.step_samples;
    if (data_.kind().tokens) {
      report.tokens = report.samples * data_.kind().positions;
      report.step_tokens = report.step_samples * data_.kind().positions;
    }
    report.exchange_bytes = outcome.sent_bytes;
    report.flops = step_flops_;
    report.peak_flops = options_.peak_flops;
    if (options_.allocations) report.allocations = spent.allocations;
    report.splits = spent.splits;
    if (worker_.shares() != nullptr) report.micro_batches = worker_.shares()->shares();
    observer_->step(report);
    return outcome.stop;
  }

  void save(std::int64_t step) {
    if (!saver_.enabled()) return;
    const ActivitySpan span(&log_, Activity::Checkpoint, -1, step);
    worker_.finish_exchange();
    saver_.save(worker_, step, *observer_);
  }

  // False when a stop was asked for before the end.
  bool evaluate(std::int64_t step, Clock::time_point started) {
    if (!options_.evaluate || worker_.split().held_out == 0) return true;
    const auto begin = Clock::now();
    std::optional<EvaluationReport> whole;
    {
      const ActivitySpan span(&log_, Activity::Evaluation, -1, step);
      whole = worker_.evaluate(step, [&] { return wants_stop(started); });
    }
    if (!whole) {
      observer_->note(fmt::format("step {}: the evaluation was given up, as a stop was asked for", step));
      return false;
    }
    EvaluationReport& report = *whole;
    report.seconds = seconds_since(begin);
    result_.validation_loss = report.loss;
    result_.accuracy = report.accuracy;
    observer_->evaluation(report);
    return true;
  }

  void finish(bool interrupted, const comm::ClockSample& clock) {
    const std::size_t log_bytes = options_.trace ? log_.bytes() : 0;  // a usual one is in `fixed`
    result_.memory = gather_memory(world_, predict_memory(plan_, world_.rank(), pool_.threads(), data_.bytes()),
                                   log_bytes, options_.base_memory);
    gather_times(world_, plan_, log_, times_, clock, pool_.threads(), options_, result_, tables());
    if (const ReplicaShares* shares = worker_.shares()) {
      result_.micro_batches = shares->shares();
      result_.balance_changes = shares->changes();
    }
    result_.optimistic_updates = worker_.optimism().updates;
    result_.updates_taken_back = worker_.optimism().taken_back;
    conclude(result_, saver_, plan_, total_, interrupted, limit_reached_);
  }

  comm::Communicator& world_;
  const RunPlan& plan_;
  const storage::Dataset& data_;
  const TrainOptions& options_;
  ThreadPool pool_;
  ActionLog log_;
  Worker worker_;
  Saver& saver_;
  const std::int64_t total_;
  StepTimes times_;
  std::map<std::int64_t, schedule::Schedule> tables_;  // [micro-batches]
  const double step_flops_ = step_flops(plan_);
  std::unique_ptr<Observer> observer_;
  bool limit_reached_ = false;
  std::vector<Spent> open_;  // of steps that are not settled, in their order
  TrainResult result_;
};

}  // namespace

TrainResult train(comm::Communicator& world, const RunPlan& plan, const storage::Dataset& data,
                  storage::FileSystem& files, const TrainOptions& options) {
  Saver saver(world, plan, data, files, options.build);
  saver.claim(options.resume, options.overwrite);
  if (plan.servers() > 0) return train_served(world, plan, data, files, saver, options);
  return Run(world, plan, data, saver, options).go();
}

}  // namespace trainer::runtime
