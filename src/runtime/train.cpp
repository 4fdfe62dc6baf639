#include "trainer/runtime/train.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <optional>

#include "saver.hpp"
#include "trainer/comm/topology.hpp"
#include "trainer/runtime/agreement.hpp"
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
        worker_(world, plan, data, pool_, true),
        saver_(saver),
        total_(worker_.total_steps()) {}

  TrainResult go() {
    const auto started = Clock::now();
    observer_ = std::make_unique<Observer>();
    // Messages of opening come before the observers that need to know where the run begins.
    Pending pending;
    const std::int64_t done = saver_.open(worker_, options_.resume, pending);
    agree(world_, [&] {
      if (world_.rank() == 0 && options_.observers) observer_ = options_.observers(done, total_);
    });
    for (const std::string& text : pending.notes) observer_->note(text);
    for (const std::string& text : pending.warnings) observer_->warning(text);
    if (!saver_.enabled()) observer_->note("checkpoint.directory is not set: nothing will be saved");
    if (done > 0) observer_->note(fmt::format("resuming after step {} from {}", done, saver_.last_path()));

    result_.first_step = done + 1;
    result_.last_step = done;
    bool stopped = false;
    for (std::int64_t step = done + 1; step <= total_ && !stopped; ++step) {
      stopped = one_step(step, started);
      // Saved before it is evaluated: a kill during the evaluation loses nothing.
      const std::int64_t every = plan_.config.checkpoint.every_steps;
      const bool due = stopped || step == total_ || (every > 0 && step % every == 0);
      if (due) save(step);
      const std::int64_t eval_every = plan_.config.training.eval_every;
      if (step < total_ && (stopped || eval_every == 0 || step % eval_every != 0)) continue;
      if (evaluate(step, started)) continue;
      stopped = true;
      if (!due) save(step);
    }
    finish(stopped && result_.last_step < total_);
    return std::move(result_);
  }

 private:
  struct Pending : Observer {
    std::vector<std::string> notes, warnings;
    void note(std::string_view text) override { notes.emplace_back(text); }
    void warning(std::string_view text) override { warnings.emplace_back(text); }
  };

  // Waits of steps alone: evaluations wait too.
  void add_waits(const Worker::Waits& before, const Worker::Waits& after) {
    waits_.receive += after.receive - before.receive;
    waits_.send += after.send - before.send;
    waits_.tensor += after.tensor - before.tensor;
    waits_.gradients += after.gradients - before.gradients;
  }

  bool wants_stop(Clock::time_point started) {
    if (options_.stop != nullptr && options_.stop->load(std::memory_order_relaxed)) return true;
    const double limit = plan_.config.training.time_limit;
    limit_reached_ = limit > 0 && world_.rank() == 0 && seconds_since(started) >= limit;
    return limit_reached_;
  }

  bool one_step(std::int64_t step, Clock::time_point started) {
    const auto begin = Clock::now();
    const std::int64_t before = options_.allocations ? options_.allocations() : 0;
    const Worker::Waits waited = worker_.waits();
    const StepOutcome outcome = worker_.step(step, wants_stop(started));
    add_waits(waited, worker_.waits());
    if (result_.seconds == 0) first_pass_ = worker_.pass_times();
    const std::int64_t after = options_.allocations ? options_.allocations() : 0;
    const double seconds = seconds_since(begin);
    result_.loss = outcome.loss;
    result_.last_step = step;
    result_.seconds += seconds;
    if (world_.rank() != 0) return outcome.stop;
    StepReport report;
    report.step = step;
    report.total_steps = total_;
    report.loss = outcome.loss;
    report.grad_norm = outcome.grad_norm;
    report.learning_rate = outcome.learning_rate;
    report.step_seconds = seconds;
    report.step_samples = plan_.config.training.batch_size;
    report.samples = step * report.step_samples;
    if (data_.kind().tokens) {
      report.tokens = report.samples * data_.kind().positions;
      report.step_tokens = report.step_samples * data_.kind().positions;
    }
    report.flops = step_flops_;
    report.peak_flops = options_.peak_flops;
    if (options_.allocations) report.allocations = after - before;
    observer_->step(report);
    return outcome.stop;
  }

  void save(std::int64_t step) {
    if (saver_.enabled()) saver_.save(worker_, step, *observer_);
  }

  // False when a stop was asked for before the end.
  bool evaluate(std::int64_t step, Clock::time_point started) {
    if (worker_.split().held_out == 0) return true;
    const auto begin = Clock::now();
    std::optional<EvaluationReport> whole = worker_.evaluate(step, [&] { return wants_stop(started); });
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

  void finish(bool interrupted) {
    const auto ranks = static_cast<std::size_t>(world_.size());
    const auto mine = static_cast<std::size_t>(world_.rank());
    const auto predicted = predict_memory(plan_, world_.rank(), pool_.threads(), data_.bytes());
    const std::int64_t peak = comm::peak_resident_bytes();
    const std::array<double, 8> own{static_cast<double>(predicted.total()),
                                    static_cast<double>(peak - options_.base_memory),
                                    static_cast<double>(predicted.live_set()),
                                    static_cast<double>(peak),
                                    waits_.receive,
                                    waits_.send,
                                    waits_.tensor,
                                    waits_.gradients};
    std::vector<double> facts(own.size() * ranks, 0.0);
    std::copy(own.begin(), own.end(), facts.begin() + static_cast<std::ptrdiff_t>(own.size() * mine));
    world_.sum(facts);
    for (std::size_t r = 0; r < ranks; ++r) {
      const double* of = facts.data() + own.size() * r;
      result_.memory.push_back({of[0], of[1], of[2], of[3]});
      result_.waits.push_back({of[4], of[5], of[6], of[7]});
    }
    gather_passes();
    result_.checkpoint = saver_.last_path();
    if (saver_.failed()) {
      result_.code = ExitCode::Storage;
      result_.message = "a checkpoint could not be saved: " + saver_.last_failure();
    } else if (interrupted) {
      result_.code = ExitCode::Interrupted;
      const std::string reason =
          limit_reached_ ? fmt::format("training.time_limit of {} s reached: stopped", plan_.config.training.time_limit)
                         : "stopped on request";
      result_.message = fmt::format(
          "{} after step {} of {}; {}", reason, result_.last_step, total_,
          saver_.enabled() ? "continue with --resume" : "nothing was saved, as checkpoint.directory is not set");
    }
  }

  void gather_passes() {
    const auto steps = static_cast<double>(result_.last_step - result_.first_step);  // but the first
    if (steps < 1) return;
    const Worker::PassTimes now = worker_.pass_times();
    const double micro_batches = steps * static_cast<double>(plan_.training.micro_batches);
    // A row a rank: its pass, then three times a stage, as many as the rank with the most stages has.
    std::size_t most = 0;
    for (const auto& stages : plan_.stages_of_rank) most = std::max(most, stages.size());
    const std::size_t width = 1 + 3 * most;
    std::vector<double> all(width * static_cast<std::size_t>(world_.size()), 0.0);
    double* mine = all.data() + width * static_cast<std::size_t>(world_.rank());
    *mine++ = (now.whole - first_pass_.whole) / steps;
    for (std::size_t s = 0; s < now.compute.size(); ++s) {
      const schedule::StageTimes& before = first_pass_.compute[s];
      *mine++ = (now.compute[s].forward - before.forward) / micro_batches;
      *mine++ = (now.compute[s].backward_input - before.backward_input) / micro_batches;
      *mine++ = (now.compute[s].backward_weight - before.backward_weight) / micro_batches;
    }
    world_.sum(all);
    for (std::int64_t r = 0; r < plan_.mesh.size(); ++r) {
      const double* of = all.data() + width * static_cast<std::size_t>(r);
      RankPass pass;
      pass.whole = *of++;
      const std::size_t stages = plan_.stages_of(plan_.mesh.coordinates(r).pipeline).size();
      for (std::size_t s = 0; s < stages; ++s, of += 3) pass.compute.push_back({of[0], of[1], of[2]});
      result_.passes.push_back(std::move(pass));
    }
  }

  comm::Communicator& world_;
  const RunPlan& plan_;
  const storage::Dataset& data_;
  const TrainOptions& options_;
  ThreadPool pool_;
  Worker worker_;
  Saver& saver_;
  const std::int64_t total_;
  const double step_flops_ = step_flops(plan_);
  std::unique_ptr<Observer> observer_;
  Worker::Waits waits_;
  Worker::PassTimes first_pass_;
  bool limit_reached_ = false;
  TrainResult result_;
};

}  // namespace

TrainResult train(comm::Communicator& world, const RunPlan& plan, const storage::Dataset& data,
                  storage::FileSystem& files, const TrainOptions& options) {
  Saver saver(world, plan, data, files, options.build);
  saver.claim(options.resume, options.overwrite);
  return Run(world, plan, data, saver, options).go();
}

}  // namespace trainer::runtime
