// What the subcommands share.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "trainer/comm/mpi.hpp"
#include "trainer/config/command_line.hpp"
#include "trainer/config/config.hpp"
#include "trainer/core/error.hpp"
#include "trainer/core/thread_pool.hpp"
#include "trainer/storage/checkpoint.hpp"

namespace trainer::app {

/// What main knows about the process.
struct Context {
  comm::MpiSession& mpi;
  comm::Communicator& world;
  std::int64_t base_memory = 0;     // VmHWM after MPI had started, bytes
  std::string program = "trainer";  // as it was called
};

ExitCode train(Context& context, const config::TrainCommand& command);
ExitCode sweep(Context& context, const config::SweepCommand& command);
ExitCode evaluate(Context& context, const config::EvalCommand& command);
ExitCode profile(Context& context, const config::ProfileCommand& command);
ExitCode replay(Context& context, const config::ReplayCommand& command);

// These run on one rank and need no MPI.
ExitCode export_weights(const config::ExportCommand& command);
ExitCode generate(const config::GenerateCommand& command);
ExitCode inspect(const config::InspectCommand& command);
ExitCode print_schedule(const config::ScheduleCommand& command);
ExitCode plan_layouts(const config::PlanCommand& command);
ExitCode report(const config::ReportCommand& command);
ExitCode status(const config::StatusCommand& command);

/// stdout that cannot be written. Only the rank that prints meets it, when the others have nothing left to do.
class OutputError : public Error {
 public:
  using Error::Error;
};
/// Results, to stdout. Throws OutputError.
void print(const std::string& text);
/// Text for people, to stderr; where that is closed, nobody wants it.
void note(const std::string& text);
/// "trainer: MESSAGE": what ends the program.
void say(const std::string& message);

/// Opens one checkpoint or the newest whole one of a directory; says on stderr which were passed over.
/// `passed_any` (may be null) becomes whether a newer one was damaged.
std::unique_ptr<storage::CheckpointReader> open_checkpoint(const std::string& path, bool* passed_any = nullptr);

/// Contents of a configuration file. Throws Error(Usage) when it cannot be read.
std::string read_config(const std::string& path);

/// The contents of a file, at most `most` bytes of it. Throws Error(Usage) when it cannot be read, ending with `hint`.
std::string read_file(const std::string& path, const char* hint, std::size_t most = std::size_t{64} << 20);
/// Where something goes that takes long to make: tried before. Throws Error(Storage).
void require_writable(const std::string& path);
/// Makes `path` hold `text`, whole or not at all; leaves nothing beside it. Throws Error(Storage).
void write_whole(const std::string& path, const std::string& text);
/// Contents of a file with a schedule. Throws Error(Usage) when it cannot be read.
std::string read_schedule_file(const std::string& path);

/// Name, version and libraries, one line.
std::string version_text();

/// Set by SIGTERM, SIGINT (the first one); a second SIGINT ends the process.
const std::atomic<bool>& stop_requested();
void install_signal_handlers();

/// Calls of operator new of this process so far.
std::int64_t allocation_count();

}  // namespace trainer::app
