#include "trainer/runtime/exchange_recording.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "trainer/core/error.hpp"

namespace trainer::runtime {

namespace {

std::vector<ExchangePosition> positions_of(const storage::CheckpointReader& checkpoint) {
  std::vector<ExchangePosition> positions = exchange_positions(checkpoint);
  if (positions.empty()) {
    throw Error(ExitCode::Usage,
                fmt::format("{}: was not saved by parameter servers (\"exchange\": \"server\"), so there is no log to "
                            "replay",
                            checkpoint.path()));
  }
  return positions;
}

std::vector<ExchangeLog> read_logs(const storage::FileSystem& files, const std::vector<std::string>& paths) {
  std::vector<ExchangeLog> logs;
  for (const std::string& path : paths) {
    if (!files.exists(path)) {
      throw Error(ExitCode::Storage,
                  fmt::format("{}: is missing; the logs of all {} servers are needed", path, paths.size()));
    }
    logs.push_back(read_exchange_log(files, path));
  }
  return logs;
}

void require_beginning(const storage::CheckpointReader* start, const ExchangeHeader& header, const std::string& path) {
  if (start != nullptr || header.after == 0) return;
  throw Error(
      ExitCode::Usage,
      fmt::format("{}: begins behind step {}, where the run was resumed in another form; give the checkpoint of "
                  "that step (or a later one) as --checkpoint",
                  path, header.after));
}

// What each server did between the two checkpoints.
std::vector<ReplayPart> parts_of(const storage::CheckpointReader* start, const storage::CheckpointReader& end,
                                 const std::vector<ExchangePosition>& ends, const std::vector<ExchangeLog>& logs) {
  std::vector<ReplayPart> parts;
  for (std::size_t s = 0; s < ends.size(); ++s) parts.push_back({0, ends[s].sequence, 0});
  if (start == nullptr) return parts;
  const std::vector<ExchangePosition> starts = exchange_positions(*start);
  for (std::size_t s = 0; s < ends.size(); ++s) {
    // A checkpoint behind which a log begins has positions in another log, or none.
    const bool begins = start->record().step == logs[s].header.after;
    if (begins) {
      parts[s].version = ends[s].version;  // less what this log did, found below
      for (std::int64_t i = 0; i < std::min<std::int64_t>(ends[s].sequence, std::ssize(logs[s].records)); ++i) {
        const ExchangeRecord& record = logs[s].records[static_cast<std::size_t>(i)];
        const bool together = logs[s].header.consistency == "bsp";
        parts[s].version -= record.kind == (together ? ExchangeKind::Apply : ExchangeKind::Push);
      }
      continue;
    }
    if (starts.size() != ends.size() || starts[s].after != ends[s].after || starts[s].sequence > ends[s].sequence) {
      throw Error(ExitCode::Usage,
                  fmt::format("--checkpoint: {} is no checkpoint on the way to {}", start->path(), end.path()));
    }
    parts[s].from = starts[s].sequence;
    parts[s].version = starts[s].version;
  }
  return parts;
}

}  // namespace

ExchangeRecording read_recording(const storage::FileSystem& files, const std::string& directory,
                                 const storage::CheckpointReader* start, const storage::CheckpointReader& end) {
  ExchangeRecording recording;
  const std::vector<ExchangePosition> ends = positions_of(end);
  recording.config = config::parse(end.record().config, end.path());
  const auto servers = static_cast<std::int64_t>(ends.size());
  std::vector<std::string> paths;
  for (int s = 0; s < static_cast<int>(servers); ++s) paths.push_back(exchange_log_path(directory, s));
  const std::vector<ExchangeLog> logs = read_logs(files, paths);
  require_one_run(logs, paths);
  const ExchangeHeader& header = logs.front().header;
  if (header.run != exchange_identity(recording.config)) {
    throw Error(ExitCode::Storage,
                fmt::format("{}: is the log of run {}, but {} is of run {}: another run has written here since, or the "
                            "checkpoint was copied from elsewhere",
                            paths.front(), header.run, end.path(), exchange_identity(recording.config)));
  }
  for (std::size_t s = 0; s < ends.size(); ++s) {
    if (ends[s].after == header.after) continue;
    throw Error(ExitCode::Storage,
                fmt::format("{}: begins behind step {}, but {} is of a log that begins behind step {}", paths[s],
                            header.after, end.path(), ends[s].after));
  }
  require_beginning(start, header, paths.front());
  recording.actions = serial_order(logs, parts_of(start, end, ends, logs), paths);
  recording.updates_less = ends.front().version - ends.front().updates;
  for (std::size_t s = 0; s < ends.size(); ++s) {
    recording.left_out += static_cast<std::int64_t>(logs[s].records.size()) - ends[s].sequence;
  }
  return recording;
}

}  // namespace trainer::runtime
