#include "served_run.hpp"

#include <fmt/format.h>

#include <chrono>
#include <optional>

#include "coordinator.hpp"
#include "parameter_server.hpp"
#include "run_end.hpp"
#include "served_replica.hpp"
#include "served_state.hpp"
#include "served_status.hpp"
#include "trainer/core/error.hpp"
#include "trainer/runtime/agreement.hpp"
#include "trainer/runtime/task_book.hpp"

namespace trainer::runtime {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

template <class T>
std::span<std::byte> bytes_of(T& value) {
  return std::as_writable_bytes(std::span(&value, 1));
}

// What ranks of the mesh have in a checkpoint: nothing, as they pull before they compute.
struct NothingSaved : SavedState {
  explicit NothingSaved(const RunPlan& plan) : plan(plan) {}
  void initialise() override {}
  // Servers load; the answer is for everybody's messages.
  bool load(const storage::CheckpointReader& checkpoint) override {
    const auto optimizer = optim::make_optimizer(plan.config.optimizer);
    for (const model::Parameter& parameter : plan.graph.parameters) {
      for (int s = 0; s < optimizer->state_count(); ++s) {
        if (!checkpoint.has(fmt::format("optimizer.{}.{}", optimizer->state_name(s), parameter.name))) return false;
      }
    }
    return true;
  }
  std::vector<storage::Piece> pieces() const override { return {}; }

  const RunPlan& plan;
};

// What both sides know and do alike.
struct Run {
  comm::Communicator& world;
  const RunPlan& plan;
  const storage::Dataset& data;
  storage::FileSystem& files;
  Saver& saver;
  const TrainOptions& options;
  const std::unique_ptr<comm::Communicator> ranks = world.split(0, world.rank());  // messages of the exchange
  const std::unique_ptr<comm::Communicator> side =                                 // the mesh, or the servers
      world.split(world.rank() < plan.mesh.size() ? 0 : 1, world.rank());
  const storage::Split split = storage::split(data.size(), plan.config.data.validation_fraction);
  const std::int64_t total = total_steps(plan.config.training, split.training);
  const ServerPlan servers = make_server_plan(plan);

  int coordinator() const { return static_cast<int>(plan.mesh.size()); }
  bool evaluates() const { return options.evaluate && split.held_out > 0; }

  /// All ranks meet; the coordinator's word holds. Records that it has still to tell go to `records`.
  Point meet(Point point, std::vector<StepRecord>& records) {
    world.broadcast(bytes_of(point), coordinator());
    records.resize(static_cast<std::size_t>(point.records));
    world.broadcast(std::as_writable_bytes(std::span(records)), coordinator());
    return point;
  }

  void save(const SavedState& state, std::int64_t step, Observer& observer) {
    if (saver.enabled()) saver.save(state, step, observer);
  }

  /// Collective: what some rank has to say is said on rank 0.
  void tell(const std::string& warning, Observer& observer) {
    for (const std::string& text : world.gather_strings(warning)) {
      if (!text.empty()) observer.warning(text);
    }
  }

  [[noreturn]] void diverge(const std::string& where) {
    const std::string text = world.gather_strings(where).front();
    throw AgreedError(ExitCode::Diverged, text);
  }
};

// ---- ranks of the mesh
// -----------------------------------------------------------------------------------------------

class MeshSide {
 public:
  explicit MeshSide(Run& run)
      : run_(run),
        mesh_(*run.side),
        pool_(run.options.threads, run.options.spin),
        log_(run.options.trace ? trace_log_capacity(run.plan, mesh_.rank(), *run.options.trace)
                               : usual_log_capacity(run.plan, mesh_.rank()),
             run.plan.training.rank_of_stage.size()),
        worker_(mesh_, run.plan, run.data, pool_, true, &log_),
        times_(mesh_, run.plan, log_),
        replica_(*run.ranks, mesh_, run.plan, run.servers, worker_, times_, log_, run.options.stop) {
    if (run.options.trace && run.options.trace->last > 0) {
      log_.keep_steps(run.options.trace->first, run.options.trace->last);
    }
  }

  TrainResult go() {
    started_ = Clock::now();
    NothingSaved state(run_.plan);
    PendingMessages pending;
    const std::int64_t done = run_.saver.open(state, run_.options.resume, pending);
    observer_ = make_observers(run_.world, run_.options, run_.saver, pending, done, run_.total);
    result_.first_step = done + 1;
    result_.last_step = done;
    agree(run_.world, [] {});  // servers open their logs
    run_.tell("", *observer_);
    const comm::ClockSample clock = comm::measure_clock(mesh_, run_.plan.node_of_rank, steady_nanoseconds);
    std::vector<StepRecord> records;
    Point point = run_.meet({}, records);
    while (point.finish == 0) {
      replica_.work([this](const StepRecord& record) { tell(record); });
      point = run_.meet({}, records);
      for (const StepRecord& record : records) tell(record);
      result_.last_step = point.step;
      if (point.diverged != 0) diverge(point);
      if (point.save != 0) save(state, point.step);
      if (point.evaluate != 0) evaluate(point.step);
    }
    result_.memory =
        gather_memory(run_.world, predict_memory(run_.plan, run_.world.rank(), pool_.threads(), run_.data.bytes()),
                      run_.options.trace ? log_.bytes() : 0, run_.options.base_memory);
    gather_times(mesh_, run_.plan, log_, times_, clock, pool_.threads(), run_.options, result_);
    conclude(result_, run_.saver, run_.plan, run_.total, point.interrupted != 0, point.limit_reached != 0);
    return std::move(result_);
  }

 private:
  void tell(const StepRecord& record) {
    result_.loss = record.loss;
    result_.seconds += record.seconds;
    result_.exchange_bytes += record.sent_bytes;
    StepReport report;
    report.step = record.step;
    report.total_steps = run_.total;
    report.loss = record.loss;
    report.grad_norm = record.grad_norm;
    report.learning_rate = record.learning_rate;
    report.step_seconds = record.seconds;
    report.step_samples = run_.plan.config.training.batch_size;
    report.samples = record.step * report.step_samples;
    if (run_.data.kind().tokens) {
      report.tokens = report.samples * run_.data.kind().positions;
      report.step_tokens = report.step_samples * run_.data.kind().positions;
    }
    report.exchange_bytes = record.sent_bytes;
    report.flops = step_flops_;
    report.peak_flops = run_.options.peak_flops;
    observer_->step(report);
  }

  void save(const SavedState& state, std::int64_t step) {
    const ActivitySpan span(&log_, Activity::Checkpoint, -1, step);
    run_.tell("", *observer_);  // servers may have lost their logs
    run_.save(state, step, *observer_);
  }

  bool wants_stop() const {
    const TrainOptions& options = run_.options;
    if (options.stop != nullptr && options.stop->load(std::memory_order_relaxed)) return true;
    const double limit = run_.plan.config.training.time_limit;
    return limit > 0 && mesh_.rank() == 0 && seconds_since(started_) >= limit;
  }

  void evaluate(std::int64_t step) {
    const auto begin = Clock::now();
    replica_.read();
    std::optional<EvaluationReport> report;
    {
      const ActivitySpan span(&log_, Activity::Evaluation, -1, step);
      report = worker_.evaluate(step, [this] { return wants_stop(); });
    }
    replica_.pause();
    if (!report) {
      observer_->note(fmt::format("step {}: the evaluation was given up, as a stop was asked for", step));
      return;
    }
    report->seconds = seconds_since(begin);
    result_.validation_loss = report->loss;
    result_.accuracy = report->accuracy;
    observer_->evaluation(*report);
  }

  [[noreturn]] void diverge(const Point& point) {
    std::string text;
    try {
      if (point.replica < 0) worker_.diverge(point.step + 1, point.loss, point.grad_norm);
      worker_.diverge(point.step + 1, point.loss, point.grad_norm, fmt::format(" in replica {}", point.replica),
                      "This gradient changed no weight");
    } catch (const AgreedError& error) {
      text = error.what();
    }
    run_.diverge(text);
  }

  Run& run_;
  comm::Communicator& mesh_;
  ThreadPool pool_;
  ActionLog log_;
  Worker worker_;
  StepTimes times_;
  ServedReplica replica_;
  const double step_flops_ = step_flops(run_.plan);
  std::unique_ptr<Observer> observer_;
  Clock::time_point started_;
  TrainResult result_;
};

// ---- servers
// ---------------------------------------------------------------------------------------------------------

class ServerSide {
 public:
  explicit ServerSide(Run& run)
      : run_(run),
        pool_(run.options.threads, run.options.spin),
        store_(run.plan, run.servers, run.side->rank(), pool_),
        book_(make_book(run)),
        state_(run.plan, run.servers, run.side->rank(), store_, book_.get()),
        server_(*run.ranks, run.plan, run.servers, run.side->rank(), store_, run.total) {
    if (!book_) return;
    status_ = std::make_unique<ServedStatus>(run.plan, run.files, server_, dynamic_cast<const TaskBook*>(book_.get()),
                                             run.total);
    coordinator_ =
        std::make_unique<Coordinator>(*run.ranks, run.plan, *book_, run.total, run.options.stop, status_->watch());
    server_.stepped = [this](const StepRecord& record) { coordinator_->stepped(record); };
    server_.diverged = [this](const StepRecord& record) { coordinator_->diverged(record); };
  }

  TrainResult go() {
    if (!status_) return run();
    try {
      TrainResult result = run();
      const bool done = result.code == ExitCode::Done;
      const bool stopped = result.code == ExitCode::Interrupted;
      status_->end(done ? "done" : stopped ? "interrupted" : "failed", result.code, result.message, result.last_step);
      return result;
    } catch (const Error& error) {
      status_->end("failed", error.code(), error.what(), coordinator_->step());
      throw;
    }
  }

 private:
  TrainResult run() {
    PendingMessages pending;
    const std::int64_t done = run_.saver.open(state_, run_.options.resume, pending);
    make_observers(run_.world, run_.options, run_.saver, pending, done, run_.total);
    result_.first_step = done + 1;
    saved_ = done;
    restore(done);
    std::vector<StepRecord> records;
    Point point{.step = done, .finish = done >= run_.total ? 1 : 0};
    point = run_.meet(point, records);
    while (point.finish == 0) point = one_phase(point.step);
    result_.last_step = point.step;
    result_.memory =
        gather_memory(run_.world, predict_memory(run_.plan, run_.world.rank(), pool_.threads(), run_.data.bytes()), 0,
                      run_.options.base_memory);
    conclude(result_, run_.saver, run_.plan, run_.total, point.interrupted != 0, point.limit_reached != 0);
    return std::move(result_);
  }

  static std::unique_ptr<BatchBook> make_book(const Run& run) {
    if (run.side->rank() != 0) return nullptr;
    const config::Parallel& parallel = run.plan.config.parallel;
    const auto replicas = static_cast<int>(parallel.data);
    const std::int64_t size = run.plan.config.training.batch_size / parallel.data;
    if (parallel.tasks) {
      return std::make_unique<TaskBook>(TaskSettings{.replicas = parallel.data,
                                                     .batch_samples = size,
                                                     .task_batches = parallel.task_batches,
                                                     .epoch_samples = run.split.training});
    }
    return parallel.server.consistency == config::Consistency::Bsp
               ? make_step_book(replicas, static_cast<int>(parallel.server.backup), size,
                                sample_limit(run.plan.config.training, run.split.training))
               : make_stream_book(replicas, size);
  }

  void see(const ExchangeRecord& record) {
    if (log_) log_->append(record);
    if (!status_ || record.replica < 0) return;
    const auto replica = static_cast<int>(record.replica);
    if (record.kind == ExchangeKind::Pull) {
      status_->watch().pulled(replica, record.version, coordinator_->now());
    } else {
      status_->watch().heard(replica, coordinator_->now());
    }
  }

  void restore(std::int64_t done) {
    const ServerClocks clocks = state_.clocks(done);
    server_.restore(clocks);
    if (coordinator_) coordinator_->restore(done, clocks.replicas);
    agree(run_.world, [&] {
      state_.restore_book(done);
      if (run_.saver.enabled() && done < run_.total) {
        log_ = state_.open_log(run_.files, run_.plan.config.checkpoint.directory, done);
      }
    });
    server_.done = [this](const ExchangeRecord& record) { see(record); };
    run_.tell(log_ && log_->anew() && !run_.options.overwrite
                  ? fmt::format("{} begins behind step {}: what came before was not of this run's layout",
                                exchange_log_path(run_.plan.config.checkpoint.directory, run_.side->rank()), done)
                  : "",
              nobody_);
  }

  // The first step behind `step` at which something is due.
  std::int64_t next_point(std::int64_t step) const {
    std::int64_t next = run_.total;
    for (const std::int64_t every : {run_.plan.config.checkpoint.every_steps, run_.plan.config.training.eval_every}) {
      if (every > 0) next = std::min(next, (step / every + 1) * every);
    }
    return next;
  }

  Point one_phase(std::int64_t done) {
    Point point;
    std::vector<StepRecord> records;
    if (coordinator_) {
      coordinator_->open_until(next_point(done));
      server_.serve([this] {
        const bool moved = coordinator_->poll();
        status_->look(coordinator_->step(), coordinator_->now());
        return moved;
      });
      point = coordinator_->point();
      decide(point);
      records = coordinator_->take_records();
    } else {
      server_.serve();
    }
    point = run_.meet(point, records);
    if (point.diverged != 0) run_.diverge("");
    if (point.save != 0) save(point.step);
    if (point.evaluate != 0) server_.serve();  // weights to evaluate with
    return point;
  }

  void save(std::int64_t step) {
    if (log_) log_->sync();
    tell_of_log();
    state_.set(server_.clocks(), log_.get());
    run_.save(state_, step, nobody_);
    saved_ = step;
  }

  // Collective: a log that could not be written is told of once; the run goes on without.
  void tell_of_log() {
    const bool lost = log_ && !log_->failure().empty() && !told_of_log_;
    told_of_log_ = told_of_log_ || lost;
    run_.tell(lost ? fmt::format("{}; the training goes on, but trainer replay cannot repeat what this log lacks",
                                 log_->failure())
                   : "",
              nobody_);
  }

  void decide(Point& point) const {
    const std::int64_t step = point.step;
    const bool whole = step == run_.total;
    const bool stops = point.interrupted != 0 && !whole;
    point.interrupted = stops ? 1 : 0;
    point.finish = whole || stops ? 1 : 0;
    point.save = step > saved_ && (stops || is_due(step, run_.plan.config.checkpoint.every_steps, run_.total)) ? 1 : 0;
    point.evaluate =
        run_.evaluates() && !stops && is_due(step, run_.plan.config.training.eval_every, run_.total) ? 1 : 0;
  }

  Run& run_;
  ThreadPool pool_;
  ServerStore store_;
  std::unique_ptr<BatchBook> book_;  // of the coordinator, beside the first server
  ServedState state_;
  ParameterServer server_;
  // Beside the first server.
  std::unique_ptr<ServedStatus> status_;
  std::unique_ptr<Coordinator> coordinator_;
  std::unique_ptr<ExchangeLogWriter> log_;
  Observer nobody_;
  bool told_of_log_ = false;
  std::int64_t saved_ = 0;  // step
  TrainResult result_;
};

}  // namespace

TrainResult train_served(comm::Communicator& world, const RunPlan& plan, const storage::Dataset& data,
                         storage::FileSystem& files, Saver& saver, const TrainOptions& options) {
  Run run{world, plan, data, files, saver, options};
  if (world.rank() < plan.mesh.size()) return MeshSide(run).go();
  return ServerSide(run).go();
}

}  // namespace trainer::runtime
