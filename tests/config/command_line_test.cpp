// The command line: every command, its values, its help, and the complaints.
#include <doctest/doctest.h>

#include "trainer/config/command_line.hpp"

using namespace trainer;
using namespace trainer::config;

namespace {

Command line(std::vector<const char*> words) {
  words.insert(words.begin(), "/usr/bin/trainer");
  words.push_back(nullptr);
  return parse_command_line(static_cast<int>(words.size()) - 1, words.data());
}

template <class T>
T as(const std::vector<const char*>& words) {
  const Command command = line(words);
  if (const Leave* leave = std::get_if<Leave>(&command); leave && !std::is_same_v<T, Leave>) FAIL(leave->err);
  REQUIRE(std::holds_alternative<T>(command));
  return std::get<T>(command);
}

std::string complaint(const std::vector<const char*>& words) {
  const Leave leave = as<Leave>(words);
  CHECK(leave.code == ExitCode::Usage);
  CHECK(leave.out == "");
  return leave.err.substr(0, leave.err.find('\n'));
}

bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("training") {
  const auto plain = as<TrainCommand>({"--config", "a.json"});
  CHECK(plain.config_path == "a.json");
  CHECK(plain.overrides.empty());
  CHECK(!plain.dry_run);
  CHECK(!plain.resume);
  CHECK(plain.threads == 0);
  CHECK(plain.ranks == 0);
  CHECK(plain.kernels == "");
  const auto full = as<TrainCommand>({"--config=a.json", "--set", "a.b=1", "--dry-run", "--set",
                                      "parallel.partition=[1,3,2]", "--set=data.path=x y", "--print-config",
                                      "--overwrite", "--threads", "3", "--ranks", "8", "--kernels", "onednn"});
  CHECK(full.overrides == std::vector<std::string>{"a.b=1", "parallel.partition=[1,3,2]", "data.path=x y"});
  CHECK(full.dry_run);
  CHECK(full.print_config);
  CHECK(full.overwrite);
  CHECK(full.threads == 3);
  CHECK(full.ranks == 8);
  CHECK(full.kernels == "onednn");
  CHECK(as<TrainCommand>({"--resume", "--config", "a.json"}).resume);
}

TEST_CASE("traces") {
  const auto plain = as<TrainCommand>({"--config", "a.json", "--trace", "t.json"});
  CHECK(plain.trace == "t.json");
  CHECK(plain.first_traced == 0);
  CHECK(plain.last_traced == 0);
  const auto steps = [](const char* text) {
    const auto c = as<TrainCommand>({"--config", "a.json", "--trace", "t.json", "--trace-steps", text});
    return std::pair(c.first_traced, c.last_traced);
  };
  CHECK(steps("20:24") == std::pair<std::int64_t, std::int64_t>(20, 24));
  CHECK(steps("7") == std::pair<std::int64_t, std::int64_t>(7, 7));
  CHECK(steps("20:") == std::pair<std::int64_t, std::int64_t>(20, 0));
  CHECK(steps(":24") == std::pair<std::int64_t, std::int64_t>(0, 24));
  for (const char* text : {"", ":", "0:3", "5:4", "a:b", "1:2:3", "-1:4", "1.5", "99999999999999999999"}) {
    CHECK(complaint({"--config", "a", "--trace", "t", "--trace-steps", text}) ==
          "trainer: --trace-steps is \"" + std::string(text) +
              "\"; expected two steps from 1 up, the first not behind the second, for example 20:24");
  }
  CHECK(complaint({"--config", "a", "--trace-steps", "1:2"}) ==
        "trainer: --trace-steps says which steps --trace FILE is to show; give both");
  CHECK(complaint({"--config", "a", "--trace", ""}) == "trainer: --trace is empty; for example --trace trace.json");
}

TEST_CASE("report") {
  CHECK(as<ReportCommand>({"report", "runs/a"}).directory == "runs/a");
  CHECK(as<ReportCommand>({"report", "runs/a"}).output == "");
  CHECK(as<ReportCommand>({"report", "runs/a", "--output", "-"}).output == "-");
  CHECK(complaint({"report"}) ==
        "trainer report: 0 run directories are given; expected one, for example trainer report runs/gpt");
  CHECK(complaint({"report", "a", "b"}) ==
        "trainer report: 2 run directories are given; expected one, for example trainer report runs/gpt");
  CHECK(complaint({"report", "a", "--outptu", "x"}) ==
        "trainer report: unknown option --outptu; did you mean --output?");
}

TEST_CASE("export") {
  const auto c = as<ExportCommand>({"export", "--checkpoint", "runs/a", "--format", "hf", "--out", "x", "--overwrite"});
  CHECK(c.checkpoint == "runs/a");
  CHECK(c.format == "hf");
  CHECK(c.out == "x");
  CHECK(c.overwrite);
}

TEST_CASE("generate") {
  const auto plain = as<GenerateCommand>({"generate", "--checkpoint", "runs/a"});
  CHECK(plain.prompt == "");
  CHECK(plain.tokens == 200);
  CHECK(plain.temperature == 0.8);
  CHECK(plain.top_k == 0);
  CHECK(plain.seed == 1);
  const auto c =
      as<GenerateCommand>({"generate", "--checkpoint", "runs/a", "--prompt", "--so [a, b] said", "--tokens", "5",
                           "--temperature", "0", "--top-k", "3", "--seed", "18446744073709551615", "--threads", "2"});
  CHECK(c.prompt == "--so [a, b] said");
  CHECK(c.tokens == 5);
  CHECK(c.temperature == 0.0);
  CHECK(c.top_k == 3);
  CHECK(c.seed == 18446744073709551615u);
  CHECK(c.threads == 2);
  for (const char* prompt : {"", "[a,b]", "[]", "{}", "%%", "eval", "a\nb", " ", "\"q\""}) {
    CHECK(as<GenerateCommand>({"generate", "--checkpoint", "r", "--prompt", prompt}).prompt == prompt);
  }
}

TEST_CASE("eval and inspect") {
  const auto e = as<EvalCommand>({"eval", "--checkpoint", "r", "--set", "data.path=o.txt", "--json", "--threads", "1"});
  CHECK(e.overrides == std::vector<std::string>{"data.path=o.txt"});
  CHECK(e.json);
  CHECK(e.threads == 1);
  const auto i = as<InspectCommand>({"inspect", "--checkpoint", "r", "--verify"});
  CHECK(i.checkpoint == "r");
  CHECK(i.verify);
  CHECK(!i.json);
}

TEST_CASE("help and version go to stdout and are no error") {
  for (const std::vector<const char*>& words : std::vector<std::vector<const char*>>{
           {"--help"}, {"export", "--help"}, {"generate", "-h"}, {"eval", "--help"}, {"inspect", "--help"}}) {
    const Leave leave = as<Leave>(words);
    CHECK(leave.code == ExitCode::Done);
    CHECK(leave.err == "");
    CHECK(has(leave.out, "Examples:"));
    CHECK(has(leave.out, "mpiexec"));
    CHECK(has(leave.out, words.size() == 1 ? "--config FILE" : "--checkpoint DIR"));
  }
  CHECK(as<Leave>({"--version"}).out == "trainer " TRAINER_VERSION "\n");
  const Leave keys = as<Leave>({"--help-keys"});
  CHECK(keys.code == ExitCode::Done);
  CHECK(has(keys.out, "micro_batch_size"));
}

TEST_CASE("no arguments: a short usage on stderr") {
  const Leave leave = as<Leave>({});
  CHECK(leave.code == ExitCode::Usage);
  CHECK(leave.out == "");
  CHECK(has(leave.err, "usage: trainer --config FILE"));
}

TEST_CASE("complaints name the nearest word") {
  CHECK(complaint({"genrate", "--checkpoint", "r"}) ==
        "trainer: unknown subcommand \"genrate\"; did you mean generate?");
  CHECK(complaint({"frobnicate"}) ==
        "trainer: unknown subcommand \"frobnicate\"; there are export, generate, eval, inspect, schedule, profile, "
        "plan, report, sweep, status and replay");
  CHECK(complaint({"--confg", "a.json"}) == "trainer: unknown option --confg; did you mean --config?");
  CHECK(complaint({"--config", "a.json", "--dryrun"}) == "trainer: unknown option --dryrun; did you mean --dry-run?");
  CHECK(complaint({"--config", "a.json", "--zzz=4"}) == "trainer: unknown option --zzz");
  CHECK(complaint({"generate", "--checkpoint", "r", "--topk", "4"}) ==
        "trainer generate: unknown option --topk; did you mean --top-k?");
  CHECK(complaint({"a.json"}) == "trainer: unexpected word \"a.json\"; a configuration is given as --config a.json");
  CHECK(complaint({"train", "--config", "a.json"}) == "trainer: training needs no subcommand: trainer --config FILE");
  CHECK(complaint({"eval", "runs/gpt"}) == "trainer eval: unexpected word \"runs/gpt\"");
}

TEST_CASE("a sweep: keys with their values, and how it is run") {
  const auto sweep = as<SweepCommand>({"sweep",
                                       "--config",
                                       "a.json",
                                       "--over",
                                       "parallel.pipeline=1,2",
                                       "--set",
                                       "training.seed=2",
                                       "--over",
                                       "parallel.partition=[3,5],[4,4]",
                                       "--steps",
                                       "7",
                                       "--repeat",
                                       "2",
                                       "--halving",
                                       "--output",
                                       "out",
                                       "--overwrite",
                                       "--threads",
                                       "3",
                                       "--kernels",
                                       "onednn"});
  CHECK(sweep.config_path == "a.json");
  CHECK(sweep.overrides == std::vector<std::string>{"training.seed=2"});
  REQUIRE(sweep.over.size() == 2);
  CHECK(sweep.over[1].key == "parallel.partition");
  CHECK(sweep.over[1].values == std::vector<std::string>{"[3,5]", "[4,4]"});
  CHECK(sweep.steps == 7);
  CHECK(sweep.repeat == 2);
  CHECK(sweep.halving);
  CHECK(sweep.output == "out");
  CHECK(sweep.overwrite);
  CHECK(sweep.threads == 3);
  CHECK(sweep.kernels == "onednn");
  const auto plain = as<SweepCommand>({"sweep", "--config", "a.json", "--over", "training.seed=1"});
  CHECK(plain.steps == 10);
  CHECK(plain.repeat == 1);
  CHECK_FALSE(plain.halving);
}

TEST_CASE("complaints about values say what was expected") {
  CHECK(complaint({"--dry-run"}) == "trainer: --config is missing; for example --config configs/quickstart.json");
  CHECK(complaint({"--config", ""}) == "trainer: --config is empty; for example --config configs/quickstart.json");
  CHECK(complaint({"--config", "a", "--threads", "many"}) ==
        "trainer: --threads is \"many\"; expected an integer from 1 to 1024");
  CHECK(complaint({"--config", "a", "--threads", "0"}) ==
        "trainer: --threads is \"0\"; expected an integer from 1 to 1024");
  CHECK(complaint({"--config", "a", "--threads", "2.5"}) ==
        "trainer: --threads is \"2.5\"; expected an integer from 1 to 1024");
  CHECK(complaint({"--config", "a", "--kernels", "onedn"}) ==
        "trainer: --kernels is \"onedn\"; expected native or onednn; did you mean onednn?");
  CHECK(complaint({"--config", "a", "--resume", "--overwrite"}).find("contradict") != std::string::npos);
  CHECK(complaint({"--config", "a", "--ranks", "4"}) ==
        "trainer: --ranks only goes with --dry-run or --print-config; to train on 4 ranks: mpiexec -n 4 trainer "
        "--config a");
  CHECK(complaint({"export", "--checkpoint", "r", "--format", "gguf", "--out", "x"}) ==
        "trainer export: --format is \"gguf\"; expected safetensors or hf");
  CHECK(complaint({"export", "--format", "hf", "--out", "x"}) ==
        "trainer export: --checkpoint is missing; for example --checkpoint runs/gpt");
  CHECK(complaint({"export", "--checkpoint", "r", "--format", "hf"}) ==
        "trainer export: --out is missing; for example --out gpt-hf");
  for (const char* seed : {"-1", "18446744073709551616", "1e3", "0x10", ""}) {
    CHECK(has(complaint({"generate", "--checkpoint", "r", "--seed", seed}), "--seed is"));
  }
  for (const char* temperature : {"-0.1", "nan", "inf", "1e999", "warm"}) {
    CHECK(has(complaint({"generate", "--checkpoint", "r", "--temperature", temperature}), "--temperature is"));
  }
  CHECK(complaint({"--threads", "2", "eval", "--checkpoint", "r"}) ==
        "trainer eval: --threads stands before the subcommand eval, where it belongs to training");
}

TEST_CASE("complaints of the option splitter are usage errors too") {
  CHECK(has(complaint({"--config"}), "--config"));
  CHECK(has(complaint({"--config", "a", "--config", "b"}), "--config"));
  CHECK(has(complaint({"--config", "a", "--set"}), "--set"));
  CHECK(has(complaint({"--config", "a", "--resume=maybe"}), "trainer: "));
  CHECK(has(complaint({"eval", "export"}), "trainer"));
}
