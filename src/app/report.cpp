// `trainer report RUNDIR`: a run's directory as one HTML page.
#include <fmt/format.h>

#include <filesystem>
#include <optional>

#include "app.hpp"
#include "trainer/observe/report.hpp"
#include "trainer/storage/file_system.hpp"

namespace trainer::app {

namespace {

constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 30;

std::optional<std::string> text_of(const std::string& directory, const char* name) {
  const std::string path = directory + "/" + name;
  const storage::FileSystem& files = storage::real_file_system();
  if (!files.exists(path)) return std::nullopt;
  return files.read_text(path, kMostBytes);
}

std::string name_of_directory(const std::string& directory) {
  const std::filesystem::path path = std::filesystem::path(directory).lexically_normal();
  const std::string name = (path.has_filename() ? path : path.parent_path()).filename().string();
  return name.empty() || name == "." || name == ".." ? directory : name;
}

}  // namespace

ExitCode report(const config::ReportCommand& command) {
  const std::string& directory = command.directory;
  observe::RunFiles files;
  files.name = name_of_directory(directory);
  files.metrics = text_of(directory, "metrics.jsonl");
  files.run = text_of(directory, "run.json");
  files.summary = text_of(directory, "summary.json");
  files.actions = text_of(directory, "actions.json");
  if (!files.metrics && !files.run && !files.summary) {
    throw Error(
        ExitCode::Storage,
        fmt::format("{}: {}; give the directory of a run: its logging.directory, or checkpoint.directory where "
                    "that was not set",
                    directory,
                    std::filesystem::is_directory(directory) ? "holds no metrics.jsonl, run.json or summary.json"
                                                             : "is no directory"));
  }
  const observe::ReportPage page = observe::report_page(files);
  for (const std::string& notice : page.notices) note(fmt::format("warning: {}: {}\n", directory, notice));
  if (command.output == "-") {
    print(page.html);
    return ExitCode::Done;
  }
  const std::string path = command.output.empty() ? directory + "/report.html" : command.output;
  write_whole(path, page.html);
  print(fmt::format("{}\n", path));
  return ExitCode::Done;
}

}  // namespace trainer::app
