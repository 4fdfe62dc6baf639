// status.json: what a running served job is doing, written by its coordinator about once a second for `trainer status`.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace trainer::observe {

struct RunStatus {
  struct Replica {
    int rank = 0;             // the lead rank of its mesh column
    std::string doing;        // "computing", "waiting", "pausing", "silent"
    std::int64_t first = -1;  // of the batch in hand, in the stream of samples; −1: none
    std::int64_t count = 0;
    std::int64_t task = 0;       // 0: none
    std::int64_t task_left = 0;  // its batches that are not begun
    std::int64_t clock = 0;      // batches that it has pushed
    std::int64_t staleness = 0;  // updates by others since it pulled what it computes with
    std::int64_t batches = 0, samples = 0, dropped = 0, taken = 0;
    double samples_per_second = 0;
    double heard = 0;  // seconds since it was heard, when this was written
  };
  struct Server {
    int rank = 0;
    std::int64_t version = 0;  // updates of its parameters; −1: the coordinator does not know
  };
  std::string state = "running";  // or "done", "interrupted", "failed"
  std::string message;            // of an end that is not Done
  std::int64_t exit_code = 0;
  double written = 0;  // seconds since 1970
  double seconds = 0;  // since the run began
  std::string consistency;
  std::int64_t step = 0, total_steps = 0;
  std::int64_t epoch = 0;  // from 1; 0: not counted
  std::vector<Replica> replicas;
  std::vector<Server> servers;
};

std::string to_json(const RunStatus& status);

/// What to_json has written; unknown keys are passed over. Throws Error(Storage), naming `path`, for anything else.
RunStatus parse_status(std::string_view text, const std::string& path);

/// A running job whose status is older than this has ended without a word, or stands still.
inline constexpr double kStatusStaleSeconds = 10;

/// The table that `trainer status` prints, at `now` (seconds since 1970).
std::string status_text(const RunStatus& status, double now);

}  // namespace trainer::observe
