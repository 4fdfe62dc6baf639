// The command line: CLI11 splits it, this file reads the values, checks them and words the complaints.
#include "trainer/config/command_line.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <cmath>
#include <limits>
#include <tuple>

#include "trainer/config/config.hpp"

namespace trainer::config {

namespace {

constexpr const char* kUsage =
    "usage: trainer --config FILE [--set KEY=VALUE]... [--dry-run] [--resume | --overwrite]\n"
    "       mpiexec -n RANKS trainer --config FILE\n"
    "       trainer export|generate|eval|inspect --checkpoint DIR ...\n"
    "       trainer profile|plan --config FILE ...\n"
    "`trainer --help` says more.\n";

constexpr const char* kTrainExamples =
    "Examples:\n"
    "  trainer --config model.json                            train on one rank\n"
    "  mpiexec -n 4 trainer --config model.json               train on four ranks\n"
    "  mpiexec -n 4 trainer --config model.json \\\n"
    "      --set parallel.pipeline=2 --set parallel.tensor=2   two stages, each over two ranks\n"
    "  trainer --config model.json --dry-run --ranks 4        show the plan for four ranks, start nothing\n"
    "  trainer --config model.json --print-config             show every key with its value\n"
    "  mpiexec -n 4 trainer --config model.json --resume      go on from the newest checkpoint\n"
    "\n"
    "A --set wins over the file, the file over the defaults. `trainer --help-keys` lists every key.\n"
    "`trainer SUBCOMMAND --help` explains the others. They need no mpiexec.\n"
    "\n"
    "Exit codes: 0 done, 1 internal error, 2 usage or configuration, 3 data, 4 checkpoint or storage,\n"
    "5 diverged, 6 hang, 75 interrupted and resumable.";
constexpr const char* kExportExamples =
    "Examples:\n"
    "  trainer export --checkpoint runs/gpt --format safetensors --out gpt\n"
    "  trainer export --checkpoint runs/gpt --format hf --out gpt-hf\n";
constexpr const char* kWithoutMpiexec =
    "\nRuns by itself, without mpiexec, also on what `mpiexec -n 4 trainer --config FILE` has saved.";
constexpr const char* kGenerateExamples =
    "Examples:\n"
    "  trainer generate --checkpoint runs/gpt --prompt \"To be\" --tokens 100\n"
    "  trainer generate --checkpoint runs/gpt --prompt \"To be\" --temperature 0\n";
constexpr const char* kEvalExamples =
    "Examples:\n"
    "  trainer eval --checkpoint runs/gpt\n"
    "  trainer eval --checkpoint runs/gpt --set data.path=other.txt --json\n";
constexpr const char* kInspectExamples =
    "Examples:\n"
    "  trainer inspect --checkpoint runs/gpt\n"
    "  trainer inspect --checkpoint runs/gpt --verify\n";
constexpr const char* kScheduleExamples =
    "Examples:\n"
    "  trainer schedule --name interleaved --ranks 4 --stages 8 --micro-batches 8\n"
    "  trainer schedule --name zb-v --stages 8 --micro-batches 16 --draw\n"
    "  trainer schedule --name 1f1b --stages 4 --micro-batches 8 --forward 2 --backward-input 3 --transfer 0.1\n"
    "  trainer schedule --name auto --stages 4 --micro-batches 8 --forward 1,2,2,3 --backward-input 1,2,2,3 --draw\n"
    "  trainer schedule --file schedule.csv --verify\n"
    "\nRuns by itself, without mpiexec. Columns of the printed table are steps; --file takes it back, and so does "
    "PyTorch.";

constexpr const char* kProfileExamples =
    "Examples:\n"
    "  mpiexec -n 2 trainer profile --config model.json --output profile.json\n"
    "  trainer plan --config model.json --ranks 2 --profile profile.json\n"
    "\nMeasure with as many ranks as will train, on an idle machine: what ranks take from each other is measured "
    "too.\n";
constexpr const char* kPlanExamples =
    "Examples:\n"
    "  trainer plan --config model.json --ranks 2 --profile profile.json --best best.json\n"
    "  trainer plan --config model.json --ranks 64 --cluster cluster.json --memory-per-rank 8GiB\n"
    "  trainer plan --config model.json --ranks 2 --profile profile.json --top 0 --json\n"
    "\nRuns by itself, without mpiexec. The batch is the configuration's; its parallel section and micro-batches are\n"
    "what is searched. docs/plan.md says what is predicted and how, and what a cluster file holds.\n";

/// A command line that cannot be followed; `where` is "" or the subcommand.
struct Misuse {
  std::string where;
  std::string message;
};

/// What CLI11 fills: texts, so that every value is checked here and in one way.
struct Texts {
  std::string config, threads, ranks, kernels, checkpoint, format, out, prompt, tokens, temperature, top_k, seed;
  std::vector<std::string> overrides;
  std::vector<std::int64_t> token_list;
  std::string logits;
  std::string name, file, stages, micro_batches, group, most_held, forward, backward_input, backward_weight, transfer;
  std::string output, seconds, profile, cluster, memory_per_rank, top, best;
  bool split_backward = false, draw = false;
  bool dry_run = false, print_config = false, resume = false, overwrite = false, verify = false, json = false;
  bool help_keys = false;
};

std::string where(const CLI::App& app) { return app.get_parent() ? app.get_name() : ""; }

template <class T>
T number(const CLI::App& app, const char* option, const std::string& text, T fallback, T least, T most) {
  if (app.count(option) == 0) return fallback;
  T value{};
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = problem == std::errc{} && end == text.data() + text.size() && !text.empty();
  if (!whole || !(value >= least && value <= most)) {
    constexpr const char* kKind = std::is_integral_v<T> ? "an integer" : "a number";
    throw Misuse{where(app), fmt::format("{} is \"{}\"; expected {} from {} to {}", option, text, kKind, least, most)};
  }
  return value;
}

void add_text(CLI::App* app, const char* name, std::string& target, const char* help, const char* value_name) {
  app->add_option(name, target, help)->type_name(value_name)->allow_extra_args(false);
}

void add_overrides(CLI::App* app, Texts& t) {
  app->add_option("--set", t.overrides, "A key of the configuration, e.g. training.steps=100; may be repeated")
      ->type_name("KEY=VALUE")
      ->take_all()
      ->allow_extra_args(false);
}

void add_train(CLI::App& app, Texts& t) {
  add_text(&app, "--config", t.config, "The model description, a JSON file", "FILE");
  add_overrides(&app, t);
  app.add_flag("--dry-run", t.dry_run, "Check everything, print the plan and stop");
  app.add_flag("--print-config", t.print_config, "Print the whole configuration as JSON and stop");
  app.add_flag("--resume", t.resume, "Go on from the newest checkpoint in checkpoint.directory, if there is one");
  app.add_flag("--overwrite", t.overwrite, "Replace the run in checkpoint.directory");
  add_text(&app, "--threads", t.threads, "Threads of a rank; left out: the cores it may use", "N");
  add_text(&app, "--ranks", t.ranks, "With --dry-run or --print-config: as if N ranks were started", "N");
  add_text(&app, "--kernels", t.kernels, "Who multiplies matrices: native (default) or onednn", "NAME");
  app.add_flag("--help-keys", t.help_keys, "Print every key of the configuration and leave");
}

void add_checkpoint(CLI::App* app, Texts& t) {
  add_text(app, "--checkpoint", t.checkpoint, "One checkpoint, or the directory that holds them (the newest)", "DIR");
}

struct Subcommands {
  CLI::App *export_, *generate, *eval, *inspect, *schedule, *profile, *plan;
};

CLI::App* add_profile(CLI::App& app, Texts& t) {
  CLI::App* s = app.add_subcommand("profile", "Measure what a model's layers, sums and messages cost here");
  add_text(s, "--config", t.config, "The model description, a JSON file", "FILE");
  add_overrides(s, t);
  add_text(s, "--output", t.output, "The file to write (default profile.json)", "FILE");
  add_text(s, "--seconds", t.seconds, "How long measuring may take, about (default 20)", "X");
  add_text(s, "--ranks", t.ranks, "Measure what layouts of N ranks need; left out: as many as are started", "N");
  add_text(s, "--threads", t.threads, "Threads of a rank; left out: the cores it may use", "N");
  s->footer(kProfileExamples);
  return s;
}

CLI::App* add_plan(CLI::App& app, Texts& t) {
  CLI::App* s = app.add_subcommand("plan", "Predict every layout of a model over ranks, fastest first");
  add_text(s, "--config", t.config, "The model description, a JSON file", "FILE");
  add_overrides(s, t);
  add_text(s, "--ranks", t.ranks, "Ranks to plan for", "N");
  add_text(s, "--profile", t.profile, "What `trainer profile` has measured; left out: times are estimated", "FILE");
  add_text(s, "--cluster", t.cluster, "Machines that are not these: a JSON file", "FILE");
  add_text(s, "--memory-per-rank", t.memory_per_rank, "Layouts that need more are left out, e.g. 8GiB", "SIZE");
  add_text(s, "--top", t.top, "Rows of the table; 0: all (default 10)", "N");
  add_text(s, "--best", t.best, "Write the configuration of the fastest layout that fits", "FILE");
  add_text(s, "--threads", t.threads, "Threads of a rank where neither profile nor cluster says (default 1)", "N");
  s->add_flag("--json", t.json, "Print one JSON object");
  s->footer(kPlanExamples);
  return s;
}

CLI::App* add_schedule(CLI::App& app, Texts& t) {
  CLI::App* s = app.add_subcommand("schedule", "Print, check, draw and time a pipeline schedule");
  add_text(s, "--name", t.name, "gpipe, 1f1b, interleaved, zb-h1, zb-h2, zb-v, dualpipe-v or auto (for the times)",
           "NAME");
  add_text(s, "--file", t.file, "Or read one: CSV, a row a rank, cells 0F0 0B0 0I0 0W0 (PyTorch's format)", "FILE");
  add_text(s, "--stages", t.stages, "Pipeline stages, of all ranks together", "N");
  add_text(s, "--ranks", t.ranks, "Pipeline ranks; left out: the schedule's natural share of the stages", "N");
  add_text(s, "--micro-batches", t.micro_batches, "Micro-batches of a step", "N");
  add_text(s, "--group", t.group, "interleaved: micro-batches a stage takes in turn (default: ranks)", "N");
  add_text(s, "--most-held", t.most_held,
           "(stage, micro-batch) pairs that a rank may hold: for auto and --verify (default: any)", "N");
  s->add_flag("--split-backward", t.split_backward, "I and W in place of B where the schedule leaves it open");
  s->add_flag("--verify", t.verify, "Prove that it can run with finite buffers, or show why not");
  s->add_flag("--draw", t.draw, "Draw it over time");
  add_text(s, "--forward", t.forward, "Time of F of a stage, or a list with one for each; then time the step", "X");
  add_text(s, "--backward-input", t.backward_input, "Time of I (default 1)", "X");
  add_text(s, "--backward-weight", t.backward_weight, "Time of W (default 1)", "X");
  add_text(s, "--transfer", t.transfer, "Time of a message (default 0)", "X");
  s->footer(kScheduleExamples);
  return s;
}

Subcommands add_subcommands(CLI::App& app, Texts& t) {
  Subcommands s;
  s.export_ = app.add_subcommand("export", "Write the weights of a checkpoint for other programs");
  add_checkpoint(s.export_, t);
  add_text(s.export_, "--format", t.format, "safetensors (model.safetensors, our names) or hf (for Hugging Face)",
           "NAME");
  add_text(s.export_, "--out", t.out, "The folder to make", "DIR");
  s.export_->add_flag("--overwrite", t.overwrite, "Replace what is there");
  s.export_->footer(std::string(kExportExamples) + kWithoutMpiexec);

  s.generate = app.add_subcommand("generate", "Continue a text with a trained language model");
  add_checkpoint(s.generate, t);
  add_text(s.generate, "--prompt", t.prompt, "The text to continue", "TEXT");
  add_text(s.generate, "--tokens", t.tokens, "Tokens to add (default 200)", "N");
  add_text(s.generate, "--temperature", t.temperature, "0: always the most likely token (default 0.8)", "X");
  add_text(s.generate, "--top-k", t.top_k, "Choose among the K most likely; 0: all (default)", "K");
  add_text(s.generate, "--seed", t.seed, "Of the choices (default 1)", "N");
  add_text(s.generate, "--threads", t.threads, "Threads; left out: the cores it may use", "N");
  s.generate->footer(std::string(kGenerateExamples) + kWithoutMpiexec);

  s.eval = app.add_subcommand("eval", "Measure the loss of a checkpoint on held-out data");
  add_checkpoint(s.eval, t);
  add_overrides(s.eval, t);
  add_text(s.eval, "--threads", t.threads, "Threads; left out: the cores it may use", "N");
  s.eval->add_flag("--json", t.json, "Print one JSON object");
  s.eval->add_option("--tokens", t.token_list, "Tokens, \"1,2,3\": write their logits instead")
      ->delimiter(',')
      ->type_name("LIST");
  s.eval->add_option("--logits", t.logits, "Where --tokens writes them: a safetensors file")->type_name("FILE");
  s.eval->footer(std::string(kEvalExamples) + kWithoutMpiexec);

  s.inspect = app.add_subcommand("inspect", "Say what a checkpoint holds");
  add_checkpoint(s.inspect, t);
  s.inspect->add_flag("--verify", t.verify, "Read everything and check the sums");
  s.inspect->add_flag("--json", t.json, "Print one JSON object");
  s.inspect->footer(std::string(kInspectExamples) + kWithoutMpiexec);
  s.schedule = add_schedule(app, t);
  s.profile = add_profile(app, t);
  s.plan = add_plan(app, t);
  return s;
}

std::vector<std::string> long_options(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

/// Complains about the first word that nobody asked for.
void refuse_unknown(const CLI::App& app, const CLI::App& main) {
  const std::vector<std::string> rest = app.remaining();
  if (rest.empty()) return;
  const std::string word = rest.front().substr(0, rest.front().find('='));
  const bool is_main = &app == &main;
  if (word.rfind("-", 0) == 0) {
    std::string hint;
    if (const std::string near = nearest_word(word.substr(0, 100), long_options(app)); !near.empty()) {
      hint = fmt::format("; did you mean {}?", near);
    }
    throw Misuse{where(app), fmt::format("unknown option {}{}", word, hint)};
  }
  if (!is_main) throw Misuse{where(app), fmt::format("unexpected word \"{}\"", rest.front())};
  std::vector<std::string> names;
  for (const CLI::App* subcommand : main.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(subcommand->get_name());
  }
  if (const std::string near = nearest_word(word.substr(0, 100), names); !near.empty()) {
    throw Misuse{"", fmt::format("unknown subcommand \"{}\"; did you mean {}?", word, near)};
  }
  if (word == "train") throw Misuse{"", "training needs no subcommand: trainer --config FILE"};
  if (word.size() > 5 && word.substr(word.size() - 5) == ".json") {
    throw Misuse{"", fmt::format("unexpected word \"{0}\"; a configuration is given as --config {0}", word)};
  }
  throw Misuse{
      "", fmt::format("unknown subcommand \"{}\"; there are export, generate, eval, inspect, schedule, profile and "
                      "plan",
                      word)};
}

void require(const CLI::App& app, const char* option, const std::string& text, const char* example) {
  if (!text.empty()) return;
  throw Misuse{where(app), fmt::format("{} is {}; for example {} {}", option,
                                       app.count(option) == 0 ? "missing" : "empty", option, example)};
}

void require_one_of(const CLI::App& app, const char* option, const std::string& text,
                    const std::vector<std::string>& words) {
  std::string all;
  for (const std::string& word : words) {
    if (word == text) return;
    all += (all.empty() ? "" : " or ") + word;
  }
  const std::string near = nearest_word(text.substr(0, 100), words);
  throw Misuse{where(app), fmt::format("{} is \"{}\"; expected {}{}", option, text, all,
                                       near.empty() ? "" : fmt::format("; did you mean {}?", near))};
}

constexpr int kMostThreads = 1024;

Command train_command(const CLI::App& app, Texts& t) {
  require(app, "--config", t.config, "configs/quickstart.json");
  if (app.count("--kernels") > 0) require_one_of(app, "--kernels", t.kernels, {"native", "onednn"});
  if (t.resume && t.overwrite) {
    throw Misuse{"", "--resume and --overwrite contradict each other: the first keeps the run, the second replaces it"};
  }
  if (app.count("--ranks") > 0 && !t.dry_run && !t.print_config) {
    throw Misuse{
        "", fmt::format("--ranks only goes with --dry-run or --print-config; to train on {0} ranks: mpiexec -n {0} "
                        "trainer --config {1}",
                        t.ranks, t.config)};
  }
  TrainCommand c;
  c.config_path = t.config;
  c.overrides = std::move(t.overrides);
  c.dry_run = t.dry_run;
  c.print_config = t.print_config;
  c.resume = t.resume;
  c.overwrite = t.overwrite;
  c.threads = number(app, "--threads", t.threads, 0, 1, kMostThreads);
  c.ranks = number(app, "--ranks", t.ranks, 0, 1, 100'000);
  c.kernels = t.kernels;
  return c;
}

Command export_command(const CLI::App& app, const Texts& t) {
  require(app, "--checkpoint", t.checkpoint, "runs/gpt");
  require(app, "--format", t.format, "safetensors");
  require_one_of(app, "--format", t.format, {"safetensors", "hf"});
  require(app, "--out", t.out, t.format == "hf" ? "gpt-hf" : "gpt");
  return ExportCommand{t.checkpoint, t.format, t.out, t.overwrite};
}

Command generate_command(const CLI::App& app, const Texts& t) {
  constexpr auto kMost = std::numeric_limits<std::int64_t>::max();
  require(app, "--checkpoint", t.checkpoint, "runs/gpt");
  GenerateCommand c;
  c.checkpoint = t.checkpoint;
  c.prompt = t.prompt;
  c.tokens = number<std::int64_t>(app, "--tokens", t.tokens, c.tokens, 1, 1'000'000'000);
  c.temperature = number(app, "--temperature", t.temperature, c.temperature, 0.0, 1e6);
  c.top_k = number<std::int64_t>(app, "--top-k", t.top_k, c.top_k, 0, kMost);
  c.seed = number<std::uint64_t>(app, "--seed", t.seed, c.seed, 0, std::numeric_limits<std::uint64_t>::max());
  c.threads = number(app, "--threads", t.threads, 0, 1, kMostThreads);
  return c;
}

Command eval_command(const CLI::App& app, Texts& t) {
  require(app, "--checkpoint", t.checkpoint, "runs/gpt");
  const int threads = number(app, "--threads", t.threads, 0, 1, kMostThreads);
  if (t.token_list.empty() != t.logits.empty()) {
    throw Misuse{"eval", "--tokens and --logits go together: the tokens to look at, and the file for their logits"};
  }
  return EvalCommand{t.checkpoint, std::move(t.overrides), threads, t.json, std::move(t.token_list), t.logits};
}

Command inspect_command(const CLI::App& app, const Texts& t) {
  require(app, "--checkpoint", t.checkpoint, "runs/gpt");
  return InspectCommand{t.checkpoint, t.verify, t.json};
}

/// "1.5" or "1,2,1.5".
std::vector<double> numbers(const CLI::App& app, const char* option, const std::string& text) {
  std::vector<double> all;
  if (app.count(option) == 0) return all;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t end = std::min(text.find(',', at), text.size());
    all.push_back(number(app, option, text.substr(at, end - at), 0.0, 0.0, 1e9));
    at = end + 1;
  }
  return all;
}

Command schedule_command(const CLI::App& app, const Texts& t) {
  constexpr std::int64_t kMost = 1 << 20;
  ScheduleCommand c;
  c.name = t.name;
  c.file = t.file;
  c.split_backward = t.split_backward;
  c.verify = t.verify;
  c.draw = t.draw;
  if (c.file.empty()) {
    if (app.count("--file") > 0) throw Misuse{"schedule", "--file is empty; for example --file schedule.csv"};
    require(app, "--name", t.name, "1f1b");
    require(app, "--stages", t.stages, "4");
    require(app, "--micro-batches", t.micro_batches, "8");
  } else {
    for (const char* option : {"--name", "--stages", "--ranks", "--micro-batches", "--group", "--split-backward"}) {
      if (app.count(option) == 0) continue;
      throw Misuse{"schedule", fmt::format("{} does not go with --file: the file says it", option)};
    }
  }
  c.stages = number<std::int64_t>(app, "--stages", t.stages, 0, 1, kMost);
  c.ranks = number<std::int64_t>(app, "--ranks", t.ranks, 0, 1, kMost);
  c.micro_batches = number<std::int64_t>(app, "--micro-batches", t.micro_batches, 0, 1, kMost);
  c.group = number<std::int64_t>(app, "--group", t.group, 0, 1, kMost);
  c.most_held = number<std::int64_t>(app, "--most-held", t.most_held, 0, 1, kMost);
  c.forward = numbers(app, "--forward", t.forward);
  c.backward_input = numbers(app, "--backward-input", t.backward_input);
  c.backward_weight = numbers(app, "--backward-weight", t.backward_weight);
  c.transfer = number(app, "--transfer", t.transfer, 0.0, 0.0, 1e9);
  c.timed =
      !c.forward.empty() || !c.backward_input.empty() || !c.backward_weight.empty() || app.count("--transfer") > 0;
  return c;
}

Command profile_command(const CLI::App& app, Texts& t) {
  require(app, "--config", t.config, "model.json");
  ProfileCommand c;
  c.config_path = t.config;
  c.overrides = std::move(t.overrides);
  if (app.count("--output") > 0) require(app, "--output", t.output, "profile.json");
  if (!t.output.empty()) c.output = t.output;
  c.seconds = number(app, "--seconds", t.seconds, c.seconds, 0.1, 1e5);
  c.ranks = number(app, "--ranks", t.ranks, 0, 1, 100'000);
  c.threads = number(app, "--threads", t.threads, 0, 1, kMostThreads);
  return c;
}

Command plan_command(const CLI::App& app, Texts& t) {
  require(app, "--config", t.config, "model.json");
  require(app, "--ranks", t.ranks, "2");
  for (const auto& [option, text, example] :
       {std::tuple{"--profile", &t.profile, "profile.json"}, std::tuple{"--cluster", &t.cluster, "cluster.json"},
        std::tuple{"--memory-per-rank", &t.memory_per_rank, "8GiB"}, std::tuple{"--best", &t.best, "best.json"}}) {
    if (app.count(option) > 0) require(app, option, *text, example);
  }
  PlanCommand c;
  c.config_path = t.config;
  c.overrides = std::move(t.overrides);
  c.ranks = number(app, "--ranks", t.ranks, 0, 1, 100'000);
  c.profile = t.profile;
  c.cluster = t.cluster;
  c.memory_per_rank = t.memory_per_rank;
  c.top = number<std::int64_t>(app, "--top", t.top, c.top, 0, 1'000'000);
  c.best = t.best;
  c.json = t.json;
  c.threads = number(app, "--threads", t.threads, 0, 1, kMostThreads);
  return c;
}

/// A subcommand's options stand after it: what stands before belongs to training and would have no effect.
void refuse_training_options(const CLI::App& app, const CLI::App& subcommand) {
  for (const CLI::Option* option : app.get_options()) {
    if (option->count() == 0) continue;
    throw Misuse{subcommand.get_name(), fmt::format("{} stands before the subcommand {}, where it belongs to training",
                                                    option->get_name(), subcommand.get_name())};
  }
}

Command read(CLI::App& app, const Subcommands& subcommands, Texts& texts) {
  const std::vector<CLI::App*> chosen = app.get_subcommands();
  refuse_unknown(app, app);
  for (const CLI::App* subcommand : chosen) refuse_unknown(*subcommand, app);
  if (chosen.size() > 1) {
    throw Misuse{"", fmt::format("{} and {} cannot be done at once", chosen[0]->get_name(), chosen[1]->get_name())};
  }
  if (chosen.empty()) {
    if (texts.help_keys) return Leave{ExitCode::Done, describe_keys(), ""};
    return train_command(app, texts);
  }
  refuse_training_options(app, *chosen[0]);
  if (chosen[0] == subcommands.export_) return export_command(*chosen[0], texts);
  if (chosen[0] == subcommands.generate) return generate_command(*chosen[0], texts);
  if (chosen[0] == subcommands.eval) return eval_command(*chosen[0], texts);
  if (chosen[0] == subcommands.schedule) return schedule_command(*chosen[0], texts);
  if (chosen[0] == subcommands.profile) return profile_command(*chosen[0], texts);
  if (chosen[0] == subcommands.plan) return plan_command(*chosen[0], texts);
  return inspect_command(*chosen[0], texts);
}

Leave misused(const Misuse& misuse) {
  const std::string command = misuse.where.empty() ? "trainer" : "trainer " + misuse.where;
  return {ExitCode::Usage, "", fmt::format("{0}: {1}\n`{0} --help` says more.\n", command, misuse.message)};
}

}  // namespace

Command parse_command_line(int argc, const char* const* argv) {
  if (argc <= 1) return Leave{ExitCode::Usage, "", kUsage};
  CLI::App app("Trains neural networks on clusters of CPUs: pipeline, tensor and data parallelism over MPI.",
               "trainer");
  Texts texts;
  app.set_version_flag("--version", "trainer " TRAINER_VERSION);
  app.allow_extras();  // refuse_unknown words the complaint; subcommands inherit this
  app.footer(kTrainExamples);
  add_train(app, texts);
  const Subcommands subcommands = add_subcommands(app, texts);
  try {
    app.parse(std::vector<std::string>(std::make_reverse_iterator(argv + argc), std::make_reverse_iterator(argv + 1)));
    return read(app, subcommands, texts);
  } catch (const CLI::CallForHelp&) {
    return Leave{ExitCode::Done, app.help(), ""};
  } catch (const CLI::CallForVersion& version) {
    return Leave{ExitCode::Done, std::string(version.what()) + "\n", ""};
  } catch (const CLI::ParseError& error) {
    const std::vector<CLI::App*> chosen = app.get_subcommands();
    return misused({chosen.empty() ? "" : chosen.back()->get_name(), error.what()});
  } catch (const Misuse& misuse) {
    return misused(misuse);
  }
}

}  // namespace trainer::config
