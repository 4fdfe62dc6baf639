// `trainer schedule`: a pipeline schedule by name or from a file, printed, verified, drawn, timed.
#include "trainer/schedule/schedule.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "app.hpp"
#include "trainer/schedule/automatic.hpp"
#include "trainer/schedule/table_file.hpp"

namespace trainer::app {

namespace {

using schedule::Action;
using schedule::Schedule;

std::string names() {
  std::string all;
  for (const schedule::Generator& generator : schedule::generators()) {
    all += fmt::format("{}{}", all.empty() ? "" : ", ", generator.name);
  }
  return all + " or auto";
}

[[noreturn]] void refuse(const std::string& what) { throw Error(ExitCode::Usage, "schedule: " + what); }

/// Stages a rank.
std::int64_t chunks_of(const schedule::Generator& generator, const config::ScheduleCommand& command) {
  const std::int64_t natural = generator.chunks > 0 ? generator.chunks : 2;
  const std::int64_t ranks = command.ranks > 0 ? command.ranks : command.stages / natural;
  if (ranks < 1 || command.stages % ranks != 0 || (command.ranks == 0 && ranks * natural != command.stages)) {
    refuse(fmt::format("--stages is {}{}; {} needs a multiple of {}", command.stages,
                       command.ranks > 0 ? fmt::format(" on {} ranks", ranks) : "", generator.name,
                       command.ranks > 0 && generator.chunks > 0 ? ranks * generator.chunks
                       : command.ranks > 0                       ? ranks
                                                                 : natural));
  }
  const std::int64_t chunks = command.stages / ranks;
  if (generator.chunks > 0 && chunks != generator.chunks) {
    refuse(fmt::format("--stages is {} on {} ranks; {} has {} a rank: --stages {}", command.stages, ranks,
                       generator.name, generator.chunks == 1 ? "one stage" : "two stages", ranks * generator.chunks));
  }
  return chunks;
}

/// Searches as long as tables of this size can be tried in a few seconds.
schedule::Automatic made_for_times(const config::ScheduleCommand& command,
                                   const std::vector<schedule::StageTimes>& times) {
  constexpr std::int64_t kMost = std::int64_t{1} << 16;
  constexpr std::int64_t kWork = 40'000'000;
  schedule::AutomaticOptions options;
  options.ranks = command.ranks > 0 ? command.ranks : command.stages;
  options.micro_batches = command.micro_batches;
  options.transfer = command.transfer;
  options.most_held = command.most_held;
  const std::int64_t forwards = command.stages * command.micro_batches;
  if (command.stages % options.ranks != 0) {
    refuse(fmt::format("--stages is {}; auto needs a multiple of the {} ranks", command.stages, options.ranks));
  }
  if (forwards > kMost) refuse(fmt::format("auto is for at most {} forwards; these are {}", kMost, forwards));
  if (command.group > 0) refuse("--group does not go with auto");
  options.tries = std::min(options.tries, kWork / (forwards * options.ranks));
  return schedule::automatic(times, options);
}

Schedule made(const config::ScheduleCommand& command) {
  const schedule::Generator* generator = schedule::find_generator(command.name);
  if (generator == nullptr) refuse(fmt::format("--name is \"{}\"; expected one of {}", command.name, names()));
  constexpr std::int64_t kMost = std::int64_t{1} << 26;
  if (command.stages * command.micro_batches > kMost) {
    refuse(fmt::format("{} stages × {} micro-batches are more than {} forwards", command.stages, command.micro_batches,
                       kMost));
  }
  schedule::PipelineShape shape{command.stages, command.micro_batches};
  shape.split_backward = command.split_backward || generator->always_splits;
  shape.chunks = chunks_of(*generator, command);
  if (command.group > 0 && generator->chunks != 0) refuse(fmt::format("--group does not go with {}", command.name));
  if (command.group > 0 && command.group < shape.ranks()) {
    refuse(fmt::format("--group is {}; a group keeps all ranks busy and has at least {} micro-batches", command.group,
                       shape.ranks()));
  }
  shape.group = command.group;
  return generator->make(shape);
}

std::string counts(const Schedule& table) {
  std::size_t compute = 0;
  for (const std::vector<Action>& row : table.ranks) compute += row.size();
  std::size_t all = 0;
  for (const std::vector<Action>& row : schedule::lowered(table).ranks) all += row.size();
  return fmt::format("valid: {} ranks, {} stages, {} micro-batches, {} actions, {} with communication\n",
                     table.ranks.size(), table.stages, table.micro_batches, compute, all);
}

std::vector<schedule::StageTimes> times_of(const config::ScheduleCommand& command, std::int64_t stages) {
  std::vector<schedule::StageTimes> times(static_cast<std::size_t>(stages));
  const auto fill = [&](const std::vector<double>& given, const char* option, double schedule::StageTimes::*member) {
    if (given.empty()) return;
    if (given.size() != 1 && given.size() != times.size()) {
      refuse(
          fmt::format("{} has {} times; expected one, or one for each of the {} stages", option, given.size(), stages));
    }
    for (std::size_t s = 0; s < times.size(); ++s) times[s].*member = given.size() == 1 ? given[0] : given[s];
  };
  fill(command.forward, "--forward", &schedule::StageTimes::forward);
  fill(command.backward_input, "--backward-input", &schedule::StageTimes::backward_input);
  fill(command.backward_weight, "--backward-weight", &schedule::StageTimes::backward_weight);
  return times;
}

}  // namespace

std::string read_schedule_file(const std::string& path) {
  constexpr std::size_t kMost = std::size_t{1} << 30;  // 1,024 ranks of 8,192 micro-batches take a quarter
  std::string text = read_file(path, "expected the path of a schedule in CSV", kMost);
  if (text.size() >= kMost)
    throw Error(ExitCode::Usage, fmt::format("{}: is larger than 1 GiB, a schedule's most", path));
  return text;
}

ExitCode print_schedule(const config::ScheduleCommand& command) {
  schedule::CsvTable read;
  const bool from_file = !command.file.empty();
  if (from_file) read = schedule::parse_csv_of(command.file, read_schedule_file(command.file));
  const std::vector<schedule::StageTimes> times = times_of(command, from_file ? read.schedule.stages : command.stages);
  if (command.most_held > 0 && command.name != "auto" && !command.verify) {
    refuse("--most-held goes with --name auto or --verify");
  }
  std::optional<schedule::Automatic> automatic;
  if (command.name == "auto") automatic = made_for_times(command, times);
  const Schedule table = from_file ? read.schedule : automatic ? automatic->schedule : made(command);
  if (from_file || command.verify) {
    schedule::require_valid(table, from_file ? &read : nullptr, from_file ? command.file : command.name);
  }
  if (command.verify && command.most_held > 0) {
    if (const auto over = schedule::over_cap(table, command.most_held)) {
      throw Error(ExitCode::Usage, fmt::format("{}: {}", from_file ? command.file : command.name, over->message));
    }
  }
  std::string text;
  if (command.verify) text += counts(table);
  if (command.draw) text += schedule::draw(table, times);
  if (command.timed) {
    const schedule::Timing timing = schedule::simulate(table, times, command.transfer);
    text += fmt::format("step {:.10g}, bubble {:.2f}%\n", timing.step, 100 * timing.bubble());
    if (automatic) {
      text += fmt::format("found as: {}; no schedule takes less than {:.10g} (gap {:.2f}%)\n", automatic->origin,
                          automatic->lower_bound, 100 * automatic->gap());
    }
  }
  print(text.empty() ? schedule::to_step_csv(table) : text);
  return ExitCode::Done;
}

}  // namespace trainer::app
