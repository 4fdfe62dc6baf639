#include "run_record.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <limits>

#include "app.hpp"
#include "trainer/observe/summary.hpp"
#include "trainer/plan/cut.hpp"
#include "trainer/storage/file_system.hpp"

namespace trainer::app {

namespace {

void warn(const Error& error) { note(fmt::format("warning: {}\n", error.what())); }

}  // namespace

const std::string& record_directory(const config::Config& config) {
  return config.logging.directory.empty() ? config.checkpoint.directory : config.logging.directory;
}

void write_run_facts(const runtime::RunPlan& plan, const Expectation& expected, int threads, std::size_t data_bytes,
                     std::int64_t resumed_step, std::int64_t total_steps) {
  const std::string& directory = record_directory(plan.config);
  if (directory.empty()) return;
  observe::RunFacts facts;
  facts.build = version_text();
  facts.started = fmt::format("{:%Y-%m-%d %H:%M:%S}", fmt::localtime(std::time(nullptr)));
  facts.total_steps = total_steps;
  facts.resumed_step = resumed_step;
  facts.data = plan.mesh.data;
  facts.pipeline = plan.mesh.pipeline;
  facts.tensor = plan.mesh.tensor;
  facts.micro_batches = plan.training.micro_batches;
  facts.threads = threads;
  facts.schedule = config::name_of(plan.config.parallel.schedule);
  for (std::int64_t s = 0; s < plan.stages(); ++s) {
    facts.stages.push_back(plan::describe_stage(plan.graph, plan.nodes(StageId(s))));
  }
  for (std::int64_t r = 0; r < plan.mesh.size(); ++r) {
    const runtime::MemoryPrediction m = runtime::predict_memory(plan, r, threads, data_bytes);
    const auto bytes = [](std::size_t value) { return static_cast<double>(value); };
    facts.ranks.push_back({runtime::describe_place(plan, r), bytes(m.weights), bytes(m.gradients), bytes(m.optimizer),
                           bytes(m.activations), bytes(m.communication), bytes(m.data), bytes(m.fixed)});
  }
  facts.step_seconds = expected.step_seconds;
  facts.bubble = expected.bubble;
  facts.config = config::to_json(plan.config);
  // Nobody should take what an earlier run left for this one's end.
  storage::FileSystem& files = storage::real_file_system();
  for (const std::string& old : {directory, plan.config.checkpoint.directory}) {
    if (old.empty()) continue;
    files.remove_all(old + "/summary.json");
    files.remove_all(old + "/actions.json");
    files.remove_all(old + "/status.json");
    if (resumed_step == 0) files.remove_all(old + "/balance.jsonl");
  }
  write_whole(directory + "/run.json", observe::to_json(facts));
}

void write_actions(const runtime::RunPlan& plan, const observe::Timeline& timeline) {
  const std::string& directory = record_directory(plan.config);
  if (directory.empty()) return;
  const std::string path = directory + "/actions.json";
  try {
    if (timeline.typical > 0) {
      write_whole(path, observe::actions_json(timeline, timeline.typical));
    } else {
      storage::real_file_system().remove_all(path);  // of a run before
    }
  } catch (const Error& error) {
    warn(error);
  }
}

std::optional<runtime::TraceWindow> trace_window(const config::TrainCommand& command, std::int64_t total_steps) {
  if (command.trace.empty()) return std::nullopt;
  runtime::TraceWindow window;
  if (command.first_traced == 0 && command.last_traced == 0) return window;
  window.first = std::max<std::int64_t>(1, command.first_traced);
  window.last = command.last_traced == 0 ? total_steps : std::min(command.last_traced, total_steps);
  if (window.first > total_steps) {
    throw Error(ExitCode::Usage,
                fmt::format("--trace-steps begins with step {}, but the run has {} steps", window.first, total_steps));
  }
  return window;
}

void write_trace(const std::string& path, const observe::Timeline& timeline) {
  if (timeline.typical == 0) {
    note(fmt::format("warning: {} is not written: none of the steps asked for was run and kept whole\n", path));
    return;
  }
  try {
    write_whole(path, observe::trace_json(timeline));
    note(fmt::format("trace: {} (open it in https://ui.perfetto.dev or chrome://tracing)\n", path));
  } catch (const Error& error) {
    warn(error);
  }
}

}  // namespace trainer::app
