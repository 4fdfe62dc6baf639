#include "trainer/app/app.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <new>
#include <thread>

#include "app.hpp"
#include "trainer/comm/topology.hpp"
#include "trainer/ops/matmul.hpp"
#include "trainer/runtime/agreement.hpp"
#include "trainer/storage/file_system.hpp"

namespace trainer::app {

namespace {

std::atomic<bool> stop_flag{false};

void on_signal(int signal) {
  if (signal == SIGINT && stop_flag.load(std::memory_order_relaxed)) _exit(130);
  stop_flag.store(true, std::memory_order_relaxed);
}

// Subcommands that compute on one rank.
ExitCode run_alone(const config::Command& command) {
  if (const auto* c = std::get_if<config::ExportCommand>(&command)) return export_weights(*c);
  if (const auto* c = std::get_if<config::GenerateCommand>(&command)) return generate(*c);
  if (const auto* c = std::get_if<config::ScheduleCommand>(&command)) return print_schedule(*c);
  if (const auto* c = std::get_if<config::PlanCommand>(&command)) return plan_layouts(*c);
  if (const auto* c = std::get_if<config::ReportCommand>(&command)) return report(*c);
  if (const auto* c = std::get_if<config::StatusCommand>(&command)) return status(*c);
  return inspect(std::get<config::InspectCommand>(command));
}

ExitCode run_on_all(Context& context, const config::Command& command) {
  if (const auto* c = std::get_if<config::TrainCommand>(&command)) return train(context, *c);
  if (const auto* c = std::get_if<config::SweepCommand>(&command)) return sweep(context, *c);
  if (const auto* c = std::get_if<config::ProfileCommand>(&command)) return profile(context, *c);
  if (const auto* c = std::get_if<config::ReplayCommand>(&command)) return replay(context, *c);
  return evaluate(context, std::get<config::EvalCommand>(command));
}

bool uses_mpi(const config::Command& command) {
  const auto* train = std::get_if<config::TrainCommand>(&command);
  return train != nullptr || std::holds_alternative<config::EvalCommand>(command) ||
         std::holds_alternative<config::SweepCommand>(command) ||
         std::holds_alternative<config::ReplayCommand>(command) ||
         std::holds_alternative<config::ProfileCommand>(command);
}

// The code of an error, after saying it: rank 0 speaks for all where all have it; a rank with one of its own speaks
// itself and ends the others.
int end_with(comm::MpiSession& mpi, const comm::Communicator& world, ExitCode code, const std::string& what,
             bool agreed) {
  if (agreed || world.size() == 1) {
    if (world.rank() == 0) say(what);
    return static_cast<int>(code);
  }
  // Ranks that wait for a dead one give up at about the same time: the first ends the others before they speak. What it
  // says must have left the launcher before that ends too.
  using std::chrono::milliseconds;
  std::this_thread::sleep_for(milliseconds(300) * std::min(world.rank(), 8));
  say(fmt::format("rank {}: {}", world.rank(), what));
  std::this_thread::sleep_for(milliseconds(150));
  mpi.abort(static_cast<int>(code));
}

int run_with_mpi(int argc, char** argv, const config::Command& command) {
  comm::MpiSession mpi(&argc, &argv);
  const auto world = mpi.world();
  try {
    if (const auto message = comm::wrong_launcher_message(world->size())) {
      if (comm::launched_rank() > 0) return static_cast<int>(ExitCode::Usage);  // the first one says it
      throw Error(ExitCode::Usage, *message);
    }
    Context context{mpi, *world, comm::peak_resident_bytes(), argv[0]};
    return static_cast<int>(run_on_all(context, command));
  } catch (const runtime::AgreedError& error) {
    return end_with(mpi, *world, error.code(), error.what(), true);
  } catch (const Error& error) {
    return end_with(mpi, *world, error.code(), error.what(), dynamic_cast<const OutputError*>(&error) != nullptr);
  } catch (const std::bad_alloc&) {
    return end_with(mpi, *world, ExitCode::Usage, kOutOfMemory, false);
  } catch (const std::exception& error) {
    return end_with(mpi, *world, ExitCode::Internal, fmt::format("internal error: {}", error.what()), false);
  }
}

// Under mpiexec every rank comes here; the first one speaks and works for all.
int run_without_mpi(const config::Command& command) {
  if (comm::launched_rank() > 0) {
    const auto* leave = std::get_if<config::Leave>(&command);
    return leave != nullptr ? static_cast<int>(leave->code) : 0;
  }
  try {
    if (const auto* leave = std::get_if<config::Leave>(&command)) {
      const bool version = leave->out.starts_with("trainer " TRAINER_VERSION);
      note(leave->err);
      print(version ? version_text() + "\n" : leave->out);
      return static_cast<int>(leave->code);
    }
    return static_cast<int>(run_alone(command));
  } catch (const Error& error) {
    say(error.what());
    return static_cast<int>(error.code());
  } catch (const std::bad_alloc&) {
    say(kOutOfMemory);
    return static_cast<int>(ExitCode::Usage);
  } catch (const std::exception& error) {
    say(fmt::format("internal error: {}", error.what()));
    return static_cast<int>(ExitCode::Internal);
  }
}

}  // namespace

const std::atomic<bool>& stop_requested() { return stop_flag; }

void install_signal_handlers() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);  // a reader that goes does not take the run with it
}

// Who parses refuses less than `most`; that ends reading /dev/zero.
std::string read_file(const std::string& path, const char* hint, std::size_t most) {
  std::ifstream file(path, std::ios::binary);
  std::string text;
  char chunk[1 << 16];
  while (text.size() < most && (file.read(chunk, sizeof(chunk)) || file.gcount() > 0)) {
    text.append(chunk, static_cast<std::size_t>(file.gcount()));
  }
  if (!file.is_open() || file.bad()) {
    throw Error(ExitCode::Usage, fmt::format("{}: cannot be read; {}", path, hint));
  }
  return text;
}

std::string read_config(const std::string& path) { return read_file(path, "--config takes the path of a JSON file"); }

void require_writable(const std::string& path) {
  if (std::filesystem::is_directory(path)) {
    throw Error(ExitCode::Storage, fmt::format("{}: is a directory; the path of a file is needed here", path));
  }
  storage::FileSystem& files = storage::real_file_system();
  const std::string partial = path + ".partial";
  files.write_text(partial, "");
  files.remove_all(partial);
}

void write_whole(const std::string& path, const std::string& text) {
  storage::FileSystem& files = storage::real_file_system();
  const std::string partial = path + ".partial";
  try {
    files.write_text(partial, text);
    files.rename(partial, path);
  } catch (const Error&) {
    try {
      files.remove_all(partial);
    } catch (const Error&) {  // what came first is the one to tell
    }
    throw;
  }
}

std::string version_text() {
  return fmt::format("trainer {} ({}, {})", TRAINER_VERSION, ops::describe_matmul(), comm::mpi_version());
}

int run(int argc, char** argv) {
  const config::Command command = config::parse_command_line(argc, argv);
  std::signal(SIGXFSZ, SIG_IGN);  // a file that grows past its limit is an error of a write
  ops::flush_denormals();
  if (!uses_mpi(command)) return run_without_mpi(command);
  const int code = run_with_mpi(argc, argv, command);
  if (code != 0 && stop_requested().load()) comm::let_launcher_see_exit();
  return code;
}

}  // namespace trainer::app
