#include "trainer/app/app.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <exception>
#include <fstream>
#include <sstream>
#include <thread>

#include "app.hpp"
#include "trainer/comm/topology.hpp"
#include "trainer/ops/matmul.hpp"

namespace trainer::app {

namespace {

std::atomic<bool> stop_flag{false};

void on_signal(int signal) {
  if (signal == SIGINT && stop_flag.load(std::memory_order_relaxed)) _exit(130);
  stop_flag.store(true, std::memory_order_relaxed);
}

void say(const std::string& message) { fmt::print(stderr, "trainer: {}\n", message); }

// Subcommands that compute on one rank.
ExitCode run_alone(const config::Command& command) {
  if (const auto* c = std::get_if<config::ExportCommand>(&command)) return export_weights(*c);
  if (const auto* c = std::get_if<config::GenerateCommand>(&command)) return generate(*c);
  return inspect(std::get<config::InspectCommand>(command));
}

bool uses_mpi(const config::Command& command) {
  const auto* train = std::get_if<config::TrainCommand>(&command);
  return train != nullptr || std::holds_alternative<config::EvalCommand>(command);
}

// MPICH's launcher forgets the status of ranks that end at the same moment after a signal to it; a rank that ends later
// is heard.
void leave_one_after_another(int rank) {
  std::this_thread::sleep_for(std::chrono::milliseconds(100 * std::min(rank, 8)));
}

// Every rank comes here with the same Error where it was agreed (rank 0 speaks), or alone with one of its own: then it
// speaks, and ends all others.
int run_with_mpi(int argc, char** argv, const config::Command& command, int& rank) {
  comm::MpiSession mpi(&argc, &argv);
  const auto world = mpi.world();
  rank = world->rank();
  try {
    if (const auto message = comm::wrong_launcher_message(world->size())) throw Error(ExitCode::Usage, *message);
    Context context{mpi, *world, comm::peak_resident_bytes()};
    const auto* train_command = std::get_if<config::TrainCommand>(&command);
    const ExitCode code = train_command != nullptr ? train(context, *train_command)
                                                   : evaluate(context, std::get<config::EvalCommand>(command));
    return static_cast<int>(code);
  } catch (const Error& error) {
    const bool agreed = error.code() != ExitCode::Internal && error.code() != ExitCode::Hang;
    if (agreed) {
      if (world->rank() == 0) say(error.what());
      std::fflush(nullptr);
      return static_cast<int>(error.code());
    }
    say(world->size() > 1 ? fmt::format("rank {}: {}", world->rank(), error.what()) : error.what());
    if (world->size() > 1) mpi.abort(static_cast<int>(error.code()));
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    say(fmt::format("rank {}: internal error: {}", world->rank(), error.what()));
    if (world->size() > 1) mpi.abort(static_cast<int>(ExitCode::Internal));
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
}

std::string read_config(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (!file || !(text << file.rdbuf())) {
    throw Error(ExitCode::Usage, fmt::format("{}: cannot be read; --config takes the path of a JSON file", path));
  }
  return text.str();
}

std::string version_text() {
  return fmt::format("trainer {} ({}, {})", TRAINER_VERSION, ops::describe_matmul(), comm::mpi_version());
}

int run(int argc, char** argv) {
  const config::Command command = config::parse_command_line(argc, argv);
  if (const auto* leave = std::get_if<config::Leave>(&command)) {
    const bool version = leave->out.starts_with("trainer " TRAINER_VERSION);
    fmt::print(stdout, "{}", version ? version_text() + "\n" : leave->out);
    fmt::print(stderr, "{}", leave->err);
    return static_cast<int>(leave->code);
  }
  ops::flush_denormals();
  if (uses_mpi(command)) {
    int rank = 0;
    const int code = run_with_mpi(argc, argv, command, rank);
    if (code == static_cast<int>(ExitCode::Interrupted)) leave_one_after_another(rank);
    return code;
  }
  try {
    return static_cast<int>(run_alone(command));
  } catch (const Error& error) {
    say(error.what());
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    say(fmt::format("internal error: {}", error.what()));
    return static_cast<int>(ExitCode::Internal);
  }
}

}  // namespace trainer::app
