// `trainer sweep`: short trainings of every combination of some keys' values, one after the other in one MPI job.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "app.hpp"
#include "run_training.hpp"
#include "trainer/config/sweep.hpp"
#include "trainer/observe/sweep_report.hpp"
#include "trainer/plan/halving.hpp"
#include "trainer/runtime/agreement.hpp"
#include "trainer/runtime/predict.hpp"

namespace trainer::app {

namespace {

using observe::SweepRow;
using State = SweepRow::State;

// One combination. Its row's results are rank 0's; its state is the same on every rank.
struct Candidate {
  config::Config config;
  SweepRow row;
  std::vector<double> seconds;  // of measured steps
};

class StepTimes : public Observer {
 public:
  explicit StepTimes(std::vector<double>& seconds) : seconds_(seconds) {}
  void step(const StepReport& report) override { seconds_.push_back(report.step_seconds); }
  void warning(std::string_view message) override { note(fmt::format("warning: {}\n", message)); }

 private:
  std::vector<double>& seconds_;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

std::string quoted(const std::string& word) {
  const auto plain = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 ||
           std::string_view("_-+=.,:/@%").find(c) != std::string::npos;
  };
  if (!word.empty() && std::all_of(word.begin(), word.end(), plain)) return word;
  std::string text = "'";
  for (const char c : word) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return text + "'";
}

// Ranks that a combination takes: what it writes, or all where a size follows.
std::int64_t ranks_of(const config::Config& config, int world) {
  const config::Parallel& p = config.parallel;
  const std::int64_t servers = p.exchange == config::Exchange::Server ? p.server.count : 0;
  return p.data > 0 && p.pipeline > 0 && p.tensor > 0 ? p.data * p.pipeline * p.tensor + servers : world;
}

// Share of the ranks' time in the passes of a step in which they compute nothing; nothing without a pipeline.
std::optional<double> bubble_of(const runtime::RunPlan& plan, const runtime::TrainResult& result) {
  if (plan.mesh.pipeline == 1 || result.passes.empty()) return std::nullopt;
  double computing = 0;
  double whole = 0;
  for (const runtime::RankPass& pass : result.passes) {
    computing += pass.busy;
    whole = std::max(whole, pass.whole);
  }
  return 1 - computing / (whole * static_cast<double>(result.passes.size()));
}

class Sweep {
 public:
  Sweep(Context& context, const config::SweepCommand& command)
      : world_(context.world), program_(context.program), command_(command) {}

  ExitCode go() {
    const std::string text = agreed_text(world_, [&] { return read_config(command_.config_path); });
    runtime::agree(world_, [&] { make_candidates(text); });
    for (Candidate& candidate : candidates_) read_schedule(candidate);
    runtime::agree(world_, [&] {
      if (world_.rank() == 0) claim_output();
    });
    install_signal_handlers();
    for (bool last = false; !last && !stopped_;) {
      const std::vector<std::int64_t> rounds =
          command_.halving ? plan::halving_rounds(alive(), command_.steps) : std::vector<std::int64_t>{command_.steps};
      run_round(rounds.front());
      last = rounds.size() == 1;
      if (!last && alive() > 2) drop_slower_half();
    }
    return finish();
  }

 private:
  std::int64_t alive() const {
    return std::count_if(candidates_.begin(), candidates_.end(),
                         [](const Candidate& c) { return c.row.state == State::Waiting; });
  }

  static void fail(Candidate& candidate, const Error& error) {
    candidate.row.state = State::Failed;
    candidate.row.reason = error.what();
    candidate.row.exit_code = static_cast<int>(error.code());
  }

  std::vector<std::string> overrides_of(const config::Combination& combination) const {
    std::vector<std::string> overrides = command_.overrides;
    for (const auto& more : {config::as_overrides(combination), config::sweep_overrides(command_.steps)}) {
      overrides.insert(overrides.end(), more.begin(), more.end());
    }
    return overrides;
  }

  // A combination that the configuration refuses is a row; a value that is wrong by itself is a mistake, and so is a
  // configuration that refuses all of them.
  void make_candidates(const std::string& text) {
    for (const config::Combination& combination : config::combinations(command_.over, command_.overrides)) {
      Candidate& candidate = candidates_.emplace_back();
      candidate.row.combination = combination;
      try {
        candidate.config = config::parse(text, command_.config_path, overrides_of(combination));
      } catch (const Error& error) {
        fail(candidate, error);
      }
    }
    for (const config::Over& over : command_.over) {
      for (const std::string& value : over.values) refuse_hopeless(text, {over.key, value});
    }
    if (alive() == 0) throw Error(ExitCode::Usage, as_over(candidates_.front().row));
  }

  // The row's reason, in the words of this command line.
  static std::string as_over(const SweepRow& row) {
    std::string reason = row.reason;
    for (const auto& [key, value] : row.combination) {
      if (reason.rfind(fmt::format("--set {}=", key), 0) == 0) reason.replace(0, 5, "--over");
    }
    return reason;
  }

  void refuse_hopeless(const std::string& text, const std::pair<std::string, std::string>& setting) const {
    const Candidate* first = nullptr;
    for (const Candidate& candidate : candidates_) {
      const auto& combination = candidate.row.combination;
      if (std::find(combination.begin(), combination.end(), setting) == combination.end()) continue;
      if (candidate.row.state != State::Failed) return;
      if (first == nullptr) first = &candidate;
    }
    try {
      config::check_keys(text, command_.config_path, overrides_of(first->row.combination));
    } catch (const Error&) {
      throw Error(ExitCode::Usage, as_over(first->row));
    }
  }

  void read_schedule(Candidate& candidate) {
    if (candidate.row.state != State::Waiting) return;
    try {
      read_agreed_schedule(world_, candidate.config);
    } catch (const runtime::AgreedError& error) {
      fail(candidate, error);
    }
  }

  void claim_output() const {
    if (command_.output.empty()) return;
    storage::FileSystem& files = storage::real_file_system();
    for (const char* name : {"sweep.csv", "sweep.json"}) {
      const std::string path = fmt::format("{}/{}", command_.output, name);
      if (files.exists(path) && !command_.overwrite) {
        throw Error(ExitCode::Usage, fmt::format("--output {}: {} is there already; --overwrite replaces it, or give "
                                                 "another directory",
                                                 command_.output, path));
      }
    }
    files.make_directories(command_.output);
  }

  void run_round(std::int64_t steps) {
    ++rounds_;
    for (Candidate& candidate : candidates_) candidate.seconds.clear();
    for (std::int64_t repeat = 1; repeat <= command_.repeat && !stopped_; ++repeat) {
      const std::int64_t all = alive();
      std::int64_t number = 0;
      for (Candidate& candidate : candidates_) {
        if (candidate.row.state != State::Waiting || stopped_) continue;
        std::string where = fmt::format("{}/{}", ++number, all);
        if (command_.halving) where += fmt::format(", round {}", rounds_);
        if (command_.repeat > 1) where += fmt::format(", repeat {}", repeat);
        run(candidate, steps, where);
      }
    }
  }

  // On the ranks that it takes; the others wait, asleep.
  void run(Candidate& candidate, std::int64_t steps, const std::string& where) {
    const std::int64_t needed = ranks_of(candidate.config, world_.size());
    candidate.row.ranks = static_cast<int>(std::min<std::int64_t>(needed, 1 << 30));
    if (needed > world_.size()) {
      fail(candidate,
           Error(ExitCode::Usage, fmt::format("needs {} ranks, but {} were started", needed, world_.size())));
    } else if (needed == world_.size()) {
      train_on(world_, candidate, steps);
    } else {
      const bool active = world_.rank() < needed;
      const auto group = world_.split(active ? 0 : 1, world_.rank());
      if (active) {
        train_on(*group, candidate, steps);
      } else {
        comm::set_wait_policy({.yield = true, .hang_seconds = 0, .progress = {}});
      }
    }
    share_outcome(candidate);
    if (world_.rank() != 0) return;
    const SweepRow& row = candidate.row;
    std::string setting;
    for (const auto& [key, value] : row.combination) setting += fmt::format(" {}={}", key, value);
    note(fmt::format("[{}]{}: {}\n", where, setting,
                     row.state == State::Failed ? row.reason
                     : row.step_seconds         ? fmt::format("{:.2f} ms a step", 1e3 * *row.step_seconds)
                                                : std::string("interrupted")));
    write_files();
  }

  // What rank 0 saw, to those that did not take part; and whether anyone was asked to stop.
  void share_outcome(Candidate& candidate) {
    double facts[3] = {stop_requested().load() ? 1.0 : 0.0, 0, 0};
    if (world_.rank() == 0) {
      facts[1] = static_cast<double>(candidate.row.state);
      facts[2] = candidate.row.exit_code;
    }
    world_.max(facts);
    candidate.row.state = static_cast<State>(static_cast<int>(facts[1]));
    candidate.row.exit_code = static_cast<int>(facts[2]);
    stopped_ = stopped_ || facts[0] > 0 || candidate.row.state == State::Interrupted;
  }

  void train_on(comm::Communicator& ranks, Candidate& candidate, std::int64_t steps) {
    try {
      train_agreed(ranks, candidate, steps);
    } catch (const runtime::AgreedError& error) {
      fail(candidate, error);
    }
  }

  void train_agreed(comm::Communicator& ranks, Candidate& candidate, std::int64_t steps) {
    // What a combination takes counts from what the one before it has left.
    double unknown[1] = {0};
    const long long resident = comm::restart_peak_resident_bytes();
    unknown[0] = resident == 0 ? 1 : 0;
    ranks.max(unknown);
    const auto kept = static_cast<long long>(cache_.bytes());
    RunRequest request{candidate.config, ranks.size(), command_.threads, command_.kernels};
    request.config.training.steps = steps;
    PreparedRun run = prepare_run(ranks, std::move(request), cache_);
    runtime::TrainOptions options = start_run(ranks, run, std::max(0LL, resident - kept));
    options.evaluate = false;
    std::vector<double> seconds;
    options.observers = [&seconds](std::int64_t, std::int64_t) { return std::make_unique<StepTimes>(seconds); };
    const runtime::TrainResult result =
        runtime::train(ranks, run.plan, *run.data, storage::real_file_system(), options);
    if (ranks.rank() != 0) return;
    if (result.code == ExitCode::Interrupted) candidate.row.state = State::Interrupted;
    if (seconds.size() < 2) return;
    candidate.seconds.insert(candidate.seconds.end(), seconds.begin() + 1, seconds.end());
    fill_row(candidate, run, result, costs_of(run, options.peak_flops));
    if (unknown[0] > 0) candidate.row.peak_memory.reset();
  }

  static void fill_row(Candidate& candidate, const PreparedRun& run, const runtime::TrainResult& result,
                       const plan::CostModel& costs) {
    SweepRow& row = candidate.row;
    const config::Config& config = run.plan.config;
    row.steps = static_cast<std::int64_t>(candidate.seconds.size());
    row.step_seconds = median(candidate.seconds);
    row.samples_per_second = static_cast<double>(config.training.batch_size) / *row.step_seconds;
    const storage::SampleKind& kind = run.data->kind();
    if (kind.tokens) row.tokens_per_second = *row.samples_per_second * static_cast<double>(kind.positions);
    row.bubble = bubble_of(run.plan, result);
    row.loss = result.loss;
    row.predicted_step_seconds = runtime::predict(run.plan, costs).step_seconds;
    row.estimated = !run.costs;
    const auto most = std::max_element(result.memory.begin(), result.memory.end(),
                                       [](const auto& a, const auto& b) { return a.measured < b.measured; });
    if (most == result.memory.end()) return;
    row.peak_memory = most->measured;
    row.predicted_memory = most->predicted;
  }

  // Rank 0's rates decide.
  void drop_slower_half() {
    if (stopped_) return;
    std::vector<double> rates(candidates_.size(), 0.0);
    for (std::size_t i = 0; i < candidates_.size(); ++i) {
      if (world_.rank() == 0) rates[i] = observe::rate_of(candidates_[i].row).value_or(0);
    }
    world_.max(rates);
    std::vector<Candidate*> running;
    std::vector<double> theirs;
    for (std::size_t i = 0; i < candidates_.size(); ++i) {
      if (candidates_[i].row.state != State::Waiting) continue;
      running.push_back(&candidates_[i]);
      theirs.push_back(rates[i]);
    }
    const std::vector<std::size_t> kept = plan::faster_half(theirs);
    for (Candidate* candidate : running) candidate->row.state = State::Dropped;
    for (const std::size_t i : kept) running[i]->row.state = State::Waiting;
    if (world_.rank() == 0) {
      note(fmt::format("{} of {} go on\n", kept.size(), running.size()));
    }
  }

  std::vector<SweepRow> rows() const {
    std::vector<SweepRow> all;
    for (const Candidate& candidate : candidates_) {
      all.push_back(candidate.row);
      if (all.back().state == State::Waiting && all.back().step_seconds) all.back().state = State::Done;
    }
    return all;
  }

  std::string best_command(const std::vector<SweepRow>& rows) const {
    const std::optional<std::size_t> best = observe::fastest(rows);
    if (!best) return {};
    std::string text = rows[*best].ranks > 1 ? fmt::format("mpiexec -n {} ", rows[*best].ranks) : "";
    text += fmt::format("{} --config {}", quoted(program_), quoted(command_.config_path));
    std::vector<std::string> overrides = command_.overrides;
    for (std::string& one : config::as_overrides(rows[*best].combination)) overrides.push_back(std::move(one));
    for (const std::string& one : overrides) text += " --set " + quoted(one);
    if (command_.threads > 0) text += fmt::format(" --threads {}", command_.threads);
    if (!command_.kernels.empty()) text += " --kernels " + command_.kernels;
    return text;
  }

  // Whether they are whole: a sweep goes on without, and says so at its end.
  bool write_files() const {
    if (command_.output.empty()) return true;
    const std::vector<SweepRow> all = rows();
    try {
      for (const auto& [name, text] : {std::pair{"sweep.csv", observe::sweep_csv(all)},
                                       std::pair{"sweep.json", observe::sweep_json(all, best_command(all))}}) {
        write_whole(fmt::format("{}/{}", command_.output, name), text);
      }
    } catch (const Error& error) {
      note(fmt::format("warning: {}\n", error.what()));
      return false;
    }
    return true;
  }

  ExitCode finish() {
    const std::vector<SweepRow> all = rows();
    double facts[2] = {observe::fastest(all) ? 1.0 : 0.0, 0};
    if (world_.rank() == 0) facts[1] = write_files() ? 0 : 1;
    world_.max(facts);
    const bool found = facts[0] > 0;
    if (world_.rank() == 0) {
      std::string text = observe::sweep_table(all);
      if (found) text += fmt::format("fastest:\n  {}\n", best_command(all));
      print(text);
      if (stopped_) say("stopped on request; what had been measured is above");
    }
    if (stopped_) return ExitCode::Interrupted;
    if (facts[1] > 0) return ExitCode::Storage;
    return found ? ExitCode::Done : static_cast<ExitCode>(candidates_.front().row.exit_code);
  }

  comm::Communicator& world_;
  const std::string program_;
  const config::SweepCommand& command_;
  std::vector<Candidate> candidates_;
  DataCache cache_;
  std::int64_t rounds_ = 0;
  bool stopped_ = false;
};

}  // namespace

ExitCode sweep(Context& context, const config::SweepCommand& command) { return Sweep(context, command).go(); }

}  // namespace trainer::app
