// `trainer status RUNDIR`: who does what in a served run, how fast and how stale.
#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <thread>

#include "app.hpp"
#include "trainer/observe/status.hpp"
#include "trainer/storage/file_system.hpp"

namespace trainer::app {

namespace {

constexpr std::uint64_t kMostBytes = std::uint64_t{64} << 20;
constexpr const char* kToBegin = "\x1b[H\x1b[J";  // the cursor to the first line, and nothing below it

double seconds_since_1970() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

[[noreturn]] void nothing_there(const std::string& directory) {
  const storage::FileSystem& files = storage::real_file_system();
  if (!std::filesystem::is_directory(directory)) {
    throw Error(ExitCode::Storage,
                fmt::format("{}: is no directory; give that of a run: its logging.directory, or checkpoint.directory "
                            "where that was not set",
                            directory));
  }
  if (files.exists(directory + "/run.json") || files.exists(directory + "/metrics.jsonl")) {
    throw Error(ExitCode::Storage,
                fmt::format("{0}: has no status.json: only runs with \"exchange\": \"server\" write one; the last line "
                            "of {0}/metrics.jsonl says how far this one is, `trainer report {0}` shows it",
                            directory));
  }
  throw Error(ExitCode::Storage,
              fmt::format("{}: holds no run; give the directory of one: its logging.directory, or checkpoint.directory "
                          "where that was not set",
                          directory));
}

}  // namespace

ExitCode status(const config::StatusCommand& command) {
  const std::string path = command.directory + "/status.json";
  const storage::FileSystem& files = storage::real_file_system();
  const bool terminal = isatty(STDOUT_FILENO) != 0;
  for (;;) {
    if (!files.exists(path)) nothing_there(command.directory);
    const observe::RunStatus status = observe::parse_status(files.read_text(path, kMostBytes), path);
    const std::string text = observe::status_text(status, seconds_since_1970());
    print((command.watch && terminal ? kToBegin : "") + text + (command.watch && !terminal ? "\n" : ""));
    if (!command.watch || status.state != "running") return ExitCode::Done;
    std::this_thread::sleep_for(std::chrono::seconds(1));
  }
}

}  // namespace trainer::app
