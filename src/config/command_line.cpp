// The command line: CLI11 splits it, this file reads the values, checks them and words the complaints.
#include "trainer/config/command_line.hpp"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <limits>
#include <tuple>

#include "command_options.hpp"
#include "trainer/config/config.hpp"

namespace trainer::config {

namespace {

constexpr const char* kUsage =
    "usage: trainer --config FILE [--set KEY=VALUE]... [--dry-run] [--resume | --overwrite]\n"
    "       mpiexec -n RANKS trainer --config FILE\n"
    "       trainer export|generate|eval|inspect --checkpoint DIR ...\n"
    "       trainer profile|plan --config FILE ...\n"
    "`trainer --help` says more.\n";

/// A command line that cannot be followed; `where` is "" or the subcommand.
struct Misuse {
  std::string where;
  std::string message;
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
      "", fmt::format("unknown subcommand \"{}\"; there are export, generate, eval, inspect, schedule, profile, plan, "
                      "report, sweep, status and replay",
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

/// "20:24", ":24", "20:" or "20" (one step); an end that was left out is 0.
std::pair<std::int64_t, std::int64_t> step_range(const std::string& text) {
  const auto step = [](std::string_view part) {
    std::int64_t value = 0;
    if (part.empty()) return value;
    const auto [end, problem] = std::from_chars(part.data(), part.data() + part.size(), value);
    if (problem != std::errc{} || end != part.data() + part.size() || value < 1) value = -1;
    return value;
  };
  const std::size_t colon = std::min(text.find(':'), text.size());
  const std::int64_t first = step(std::string_view(text).substr(0, colon));
  const std::int64_t last = colon == text.size() ? first : step(std::string_view(text).substr(colon + 1));
  const bool nothing = first == 0 && last == 0;
  if (nothing || first < 0 || last < 0 || (last > 0 && first > last)) {
    throw Misuse{"",
                 fmt::format("--trace-steps is \"{}\"; expected two steps from 1 up, the first not behind the second, "
                             "for example 20:24",
                             text)};
  }
  return {first, last};
}

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
  c.trace = t.trace;
  if (app.count("--trace") > 0) require(app, "--trace", t.trace, "trace.json");
  if (app.count("--trace-steps") > 0) {
    if (c.trace.empty()) throw Misuse{"", "--trace-steps says which steps --trace FILE is to show; give both"};
    std::tie(c.first_traced, c.last_traced) = step_range(t.trace_steps);
  }
  return c;
}

const std::string& run_directory(const CLI::App& app, const Texts& t) {
  if (t.directories.size() == 1) return t.directories.front();
  throw Misuse{app.get_name(),
               fmt::format("{} run directories are given; expected one, for example trainer {} runs/gpt",
                           t.directories.size(), app.get_name())};
}

Command status_command(const CLI::App& app, const Texts& t) { return StatusCommand{run_directory(app, t), t.watch}; }

Command replay_command(const CLI::App& app, const Texts& t) {
  ReplayCommand c;
  c.directory = run_directory(app, t);
  if (app.count("--checkpoint") > 0) require(app, "--checkpoint", t.checkpoint, "runs/gpt/step-00000050");
  if (app.count("--output") > 0) require(app, "--output", t.output, "runs/gpt-replay");
  c.checkpoint = t.checkpoint;
  c.output = t.output.empty() ? c.directory + "/replay" : t.output;
  c.overwrite = t.overwrite;
  c.threads = number(app, "--threads", t.threads, 0, 1, kMostThreads);
  return c;
}

Command report_command(const CLI::App& app, const Texts& t) {
  const std::string& directory = run_directory(app, t);
  if (app.count("--output") > 0) require(app, "--output", t.output, "report.html");
  return ReportCommand{directory, t.output};
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

Command sweep_command(const CLI::App& app, Texts& t) {
  require(app, "--config", t.config, "configs/quickstart.json");
  if (t.over.empty()) throw Misuse{"sweep", "--over is missing; for example --over parallel.pipeline=1,2,4"};
  if (app.count("--kernels") > 0) require_one_of(app, "--kernels", t.kernels, {"native", "onednn"});
  if (app.count("--output") > 0) require(app, "--output", t.out, "sweeps/layouts");
  SweepCommand c;
  c.config_path = t.config;
  c.overrides = std::move(t.overrides);
  try {
    for (const std::string& text : t.over) c.over.push_back(parse_over(text));
    combinations(c.over, c.overrides);
  } catch (const Error& error) {
    throw Misuse{"sweep", error.what()};
  }
  c.steps = number<std::int64_t>(app, "--steps", t.steps, c.steps, 2, 1'000'000);
  c.repeat = number<std::int64_t>(app, "--repeat", t.repeat, c.repeat, 1, 1000);
  c.halving = t.halving;
  c.output = t.out;
  c.overwrite = t.overwrite;
  c.threads = number(app, "--threads", t.threads, 0, 1, kMostThreads);
  c.kernels = t.kernels;
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
  if (chosen[0] == subcommands.sweep) return sweep_command(*chosen[0], texts);
  if (chosen[0] == subcommands.schedule) return schedule_command(*chosen[0], texts);
  if (chosen[0] == subcommands.profile) return profile_command(*chosen[0], texts);
  if (chosen[0] == subcommands.plan) return plan_command(*chosen[0], texts);
  if (chosen[0] == subcommands.status) return status_command(*chosen[0], texts);
  if (chosen[0] == subcommands.replay) return replay_command(*chosen[0], texts);
  if (chosen[0] == subcommands.report) return report_command(*chosen[0], texts);
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
