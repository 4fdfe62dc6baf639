// The command line as one validated value. The only user of CLI11 is its implementation.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "trainer/config/sweep.hpp"
#include "trainer/core/error.hpp"

namespace trainer::config {

struct TrainCommand {
  std::string config_path;
  std::vector<std::string> overrides;  // --set, in order
  bool dry_run = false;
  bool print_config = false;
  bool resume = false;
  bool overwrite = false;
  int threads = 0;      // a rank; 0: from affinity, quota and the ranks on the node
  int ranks = 0;        // --ranks N with --dry-run: plan for N ranks without starting them; 0: as started
  std::string kernels;  // "--kernels native|onednn": who multiplies matrices; "": native
  std::string trace;    // --trace FILE; "": none
  // --trace-steps A:B, from 1; an end that was left out is 0. Both 0: the newest ones.
  std::int64_t first_traced = 0, last_traced = 0;
};
struct ExportCommand {
  std::string checkpoint;
  std::string format;  // "safetensors" | "hf"
  std::string out;
  bool overwrite = false;
};
struct GenerateCommand {
  std::string checkpoint;
  std::string prompt;
  std::int64_t tokens = 200;
  double temperature = 0.8;  // 0: the most likely token
  std::int64_t top_k = 0;    // 0: all
  std::uint64_t seed = 1;
  int threads = 0;
};
struct EvalCommand {
  std::string checkpoint;
  std::vector<std::string> overrides;  // for example --set data.path=other.txt
  int threads = 0;
  bool json = false;
  std::vector<std::int64_t> tokens;  // --tokens 1,2,3 with --logits FILE: their logits instead of the held-out loss
  std::string logits;
};
struct InspectCommand {
  std::string checkpoint;
  bool verify = false;  // read everything and check the sums
  bool json = false;
};
/// Either a schedule by name or one from a file; what the numbers mean is checked against the schedule.
struct ScheduleCommand {
  std::string name;
  std::string file;
  std::int64_t ranks = 0;  // 0: the schedule's natural share of the stages
  std::int64_t stages = 0;
  std::int64_t micro_batches = 0;
  std::int64_t group = 0;      // 0: as many as ranks
  std::int64_t most_held = 0;  // auto: (stage, micro-batch) pairs a rank may hold; 0: any number
  bool split_backward = false;
  bool verify = false;
  bool draw = false;
  // Times of a stage; one for all or one a stage; empty: not given, all 1.
  std::vector<double> forward, backward_input, backward_weight;
  double transfer = 0;  // of a message, in the same unit
  bool timed = false;   // any of these was given
};
struct SweepCommand {
  std::string config_path;
  std::vector<std::string> overrides;  // --set, in order
  std::vector<Over> over;
  std::int64_t steps = 10;  // of each run; the first is not measured
  std::int64_t repeat = 1;  // runs of each combination, in turns
  bool halving = false;
  std::string output;  // directory of sweep.csv and sweep.json; "": none
  bool overwrite = false;
  int threads = 0;
  std::string kernels;
};
struct ProfileCommand {
  std::string config_path;
  std::vector<std::string> overrides;
  std::string output = "profile.json";
  double seconds = 20;  // about how long measuring may take
  int ranks = 0;        // whose layouts are to be predicted; 0: as started
  int threads = 0;      // a rank; 0: from affinity, quota and the ranks on the node
};
struct PlanCommand {
  std::string config_path;
  std::vector<std::string> overrides;
  int ranks = 0;
  std::string profile;          // "": costs are estimated
  std::string cluster;          // "": the machine of the profile, or this one
  std::string memory_per_rank;  // "8GiB"; "": any
  std::int64_t top = 10;        // rows of the table; 0: all
  std::string best;             // where the winner's configuration goes; "": nowhere
  bool json = false;
  int threads = 0;  // a rank, without profile and cluster; 0: 1
};
/// A page of what a run left in its directory.
struct ReportCommand {
  std::string directory;
  std::string output;  // "": report.html in the directory; "-": stdout
};
/// What a served run is doing.
struct StatusCommand {
  std::string directory;
  bool watch = false;  // again every second, until the run ends
};
/// Does again, on one replica, what the servers of a run did.
struct ReplayCommand {
  std::string directory;
  std::string checkpoint;  // where to begin; "": at the beginning
  std::string output;      // directory of the checkpoint to write
  bool overwrite = false;
  int threads = 0;
};
/// --help, --version or a usage error: what to print and where, and the code to leave with.
struct Leave {
  ExitCode code = ExitCode::Done;
  std::string out;  // to stdout
  std::string err;  // to stderr
};

using Command =
    std::variant<TrainCommand, ExportCommand, GenerateCommand, EvalCommand, InspectCommand, ScheduleCommand,
                 ProfileCommand, PlanCommand, ReportCommand, SweepCommand, StatusCommand, ReplayCommand, Leave>;

/// Never throws for bad input: that is a Leave with code Usage.
Command parse_command_line(int argc, const char* const* argv);

}  // namespace trainer::config
