// `trainer schedule`: a pipeline schedule by name or from a file, printed, verified, drawn, timed.
#include "trainer/schedule/schedule.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <iterator>

#include "app.hpp"

namespace trainer::app {

namespace {

using schedule::Action;
using schedule::Schedule;

std::string names() {
  std::string all;
  for (const schedule::Generator& generator : schedule::generators()) {
    all += fmt::format("{}{}", all.empty() ? "" : ", ", generator.name);
  }
  return all;
}

[[noreturn]] void refuse(const std::string& what) { throw Error(ExitCode::Usage, "schedule: " + what); }

/// Stages a rank.
std::int64_t chunks_of(const schedule::Generator& generator, const config::ScheduleCommand& command) {
  const std::int64_t natural = generator.chunks > 0 ? generator.chunks : 2;
  const std::int64_t ranks = command.ranks > 0 ? command.ranks : command.stages / natural;
  if (ranks < 1 || command.stages % ranks != 0 || (command.ranks == 0 && ranks * natural != command.stages)) {
    refuse(fmt::format("--stages is {}{}; {} needs a multiple of {}", command.stages,
                       command.ranks > 0 ? fmt::format(" on {} ranks", ranks) : "", generator.name,
                       command.ranks > 0 ? ranks : natural));
  }
  const std::int64_t chunks = command.stages / ranks;
  if (generator.chunks > 0 && chunks != generator.chunks) {
    refuse(fmt::format("--stages is {} on {} ranks; {} has {} a rank: --stages {}", command.stages, ranks,
                       generator.name, generator.chunks == 1 ? "one stage" : "two stages", ranks * generator.chunks));
  }
  return chunks;
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

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file.is_open() || file.bad()) {
    throw Error(ExitCode::Usage, fmt::format("{}: cannot be read; --file takes the path of a schedule in CSV", path));
  }
  return text;
}

bool has_messages(const Schedule& table) {
  for (const std::vector<Action>& row : table.ranks) {
    for (const Action& action : row) {
      if (action.kind >= schedule::ActionKind::SendForward && action.kind <= schedule::ActionKind::RecvBackward) {
        return true;
      }
    }
  }
  return false;
}

Schedule lowered(const Schedule& table) { return has_messages(table) ? table : schedule::add_communication(table); }

/// "row 2, cell 5" of a file for what the verifier found; "" where it has no place.
std::string place(const schedule::CsvTable& read, const Schedule& verified, const schedule::Violation& violation) {
  if (violation.rank < 0) return "";
  const auto rank = static_cast<std::size_t>(violation.rank);
  if (violation.position < 0) return fmt::format("row {}: ", rank + 1);
  // The verified row has messages between the file's actions: the same action, the same time that it occurs.
  const std::vector<Action>& row = verified.ranks[rank];
  const auto end = row.begin() + violation.position + 1;
  const std::vector<Action>& written = read.schedule.ranks[rank];
  auto wanted = std::count(row.begin(), end, *(end - 1));
  for (std::size_t i = 0; i < written.size(); ++i) {
    if (written[i] == *(end - 1) && --wanted == 0) {
      return fmt::format("row {}, cell {}: ", rank + 1, read.cells[rank][i]);
    }
  }
  return fmt::format("row {}: ", rank + 1);
}

/// Throws what the verifier has against it.
void require_valid(const Schedule& table, const schedule::CsvTable* read, const std::string& name) {
  const Schedule full = lowered(table);
  const std::optional<schedule::Violation> violation = schedule::verify(full);
  if (!violation) return;
  const bool deadlock = violation->message.starts_with("deadlock");  // has a place on every rank that it names
  std::string message = (read != nullptr && !deadlock ? place(*read, full, *violation) : "") + violation->message;
  if (deadlock) {
    message += "\n" + schedule::draw(full, std::vector<schedule::StageTimes>(static_cast<std::size_t>(full.stages)));
    message.pop_back();
  }
  throw Error(ExitCode::Usage, fmt::format("{}: {}", name, message));
}

std::string counts(const Schedule& table) {
  std::size_t compute = 0;
  for (const std::vector<Action>& row : table.ranks) compute += row.size();
  std::size_t all = 0;
  for (const std::vector<Action>& row : lowered(table).ranks) all += row.size();
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

ExitCode print_schedule(const config::ScheduleCommand& command) {
  schedule::CsvTable read;
  const bool from_file = !command.file.empty();
  if (from_file) {
    try {
      read = schedule::parse_csv(read_file(command.file));
    } catch (const Error& error) {
      const std::string what = error.what();
      throw Error(error.code(), what.starts_with(command.file) ? what : fmt::format("{}: {}", command.file, what));
    }
  }
  const Schedule table = from_file ? read.schedule : made(command);
  const std::vector<schedule::StageTimes> times = times_of(command, table.stages);
  if (from_file || command.verify) {
    require_valid(table, from_file ? &read : nullptr, from_file ? command.file : command.name);
  }
  std::string text;
  if (command.verify) text += counts(table);
  if (command.draw) text += schedule::draw(table, times);
  if (command.timed) {
    const schedule::Timing timing = schedule::simulate(table, times, command.transfer);
    text += fmt::format("step {:.10g}, bubble {:.2f}%\n", timing.step, 100 * timing.bubble());
  }
  print(text.empty() ? schedule::to_step_csv(table) : text);
  return ExitCode::Done;
}

}  // namespace trainer::app
