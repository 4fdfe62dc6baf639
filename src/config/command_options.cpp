#include "command_options.hpp"

namespace trainer::config {

namespace {

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
constexpr const char* kSweepExamples =
    "Examples:\n"
    "  mpiexec -n 4 trainer sweep --config model.json --over parallel.pipeline=1,2,4 \\\n"
    "      --over parallel.schedule=1f1b,zb-h1 --steps 10       every combination, one after the other\n"
    "  mpiexec -n 4 trainer sweep --config model.json --over parallel.partition=[3,5],[4,4] --set parallel.pipeline=2\n"
    "  mpiexec -n 4 trainer sweep --config model.json --over training.micro_batches=1,2,4,8,16 --halving\n"
    "\n"
    "Commas part values, except inside brackets and quotes. A combination that writes fewer ranks than were started\n"
    "runs on so many, and the others wait. What cannot run becomes a row with the reason. Nothing is evaluated or\n"
    "saved. The fastest is the one with most tokens (samples) a second; the last line is the command that trains it.";
constexpr const char* kReportExamples =
    "Examples:\n"
    "  trainer report runs/gpt\n"
    "  trainer report runs/gpt --output gpt.html\n"
    "\nRuns by itself, without mpiexec, also while the training goes on. The page needs no network.";

constexpr const char* kStatusExamples =
    "Examples:\n"
    "  trainer status runs/gpt\n"
    "  trainer status runs/gpt --watch\n"
    "\nRuns by itself, without mpiexec, while the training goes on and after it. \"stale by\" counts the updates by "
    "other\n"
    "replicas since this one pulled the parameters that it computes with.";
constexpr const char* kReplayExamples =
    "Examples:\n"
    "  trainer replay runs/gpt                                   from the beginning to the newest checkpoint\n"
    "  trainer replay runs/gpt --checkpoint runs/gpt/step-00000050\n"
    "  mpiexec -n 2 trainer replay runs/gpt                      of a run with 2 pipeline × tensor ranks a replica\n"
    "\n"
    "Weights and optimizer state come out as the run had them, to the bit; that is checked against the run's own\n"
    "checkpoint, and code 4 says that they do not.";

void add_text(CLI::App* app, const char* name, std::string& target, const char* help, const char* value_name) {
  app->add_option(name, target, help)->type_name(value_name)->allow_extra_args(false);
}

void add_overrides(CLI::App* app, Texts& t) {
  app->add_option("--set", t.overrides, "A key of the configuration, e.g. training.steps=100; may be repeated")
      ->type_name("KEY=VALUE")
      ->take_all()
      ->allow_extra_args(false);
}

void add_checkpoint(CLI::App* app, Texts& t) {
  add_text(app, "--checkpoint", t.checkpoint, "One checkpoint, or the directory that holds them (the newest)", "DIR");
}

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

CLI::App* add_sweep(CLI::App& app, Texts& t) {
  CLI::App* s = app.add_subcommand("sweep", "Measure every combination of some keys' values, in one MPI job");
  add_text(s, "--config", t.config, "The model description, a JSON file", "FILE");
  s->add_option("--over", t.over, "A key and its values, e.g. parallel.pipeline=1,2,4; may be repeated")
      ->type_name("KEY=VALUES")
      ->take_all()
      ->allow_extra_args(false);
  add_overrides(s, t);
  add_text(s, "--steps", t.steps, "Steps of each run, of which the first is not measured (default 10)", "N");
  add_text(s, "--repeat", t.repeat, "Runs of each combination, in turns (default 1)", "N");
  s->add_flag("--halving", t.halving, "Few steps for all, twice as many for the faster half, and so on");
  add_text(s, "--output", t.out, "Where sweep.csv and sweep.json go, after every run", "DIR");
  s->add_flag("--overwrite", t.overwrite, "Replace them");
  add_text(s, "--threads", t.threads, "Threads of a rank; left out: the cores it may use", "N");
  add_text(s, "--kernels", t.kernels, "Who multiplies matrices: native (default) or onednn", "NAME");
  s->footer(kSweepExamples);
  return s;
}

}  // namespace

void add_train(CLI::App& app, Texts& t) {
  app.footer(kTrainExamples);
  add_text(&app, "--config", t.config, "The model description, a JSON file", "FILE");
  add_overrides(&app, t);
  app.add_flag("--dry-run", t.dry_run, "Check everything, print the plan and stop");
  app.add_flag("--print-config", t.print_config, "Print the whole configuration as JSON and stop");
  app.add_flag("--resume", t.resume, "Go on from the newest checkpoint in checkpoint.directory, if there is one");
  app.add_flag("--overwrite", t.overwrite, "Replace the run in checkpoint.directory");
  add_text(&app, "--threads", t.threads, "Threads of a rank; left out: the cores it may use", "N");
  add_text(&app, "--ranks", t.ranks, "With --dry-run or --print-config: as if N ranks were started", "N");
  add_text(&app, "--kernels", t.kernels, "Who multiplies matrices: native (default) or onednn", "NAME");
  add_text(&app, "--trace", t.trace, "Write what every rank did when: Trace Event JSON, for Perfetto", "FILE");
  add_text(&app, "--trace-steps", t.trace_steps, "With --trace: these steps, e.g. 20:24 (default: the last five)",
           "A:B");
  app.add_flag("--help-keys", t.help_keys, "Print every key of the configuration and leave");
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

  s.report =
      app.add_subcommand("report", "Make an HTML page of a run: curves, a step as a picture, where the time went");
  s.report->add_option("RUNDIR", t.directories, "The run's directory: logging.directory, or checkpoint.directory")
      ->type_name("");
  add_text(s.report, "--output", t.output, "Where to write it, - for stdout (default: RUNDIR/report.html)", "FILE");
  s.report->footer(kReportExamples);
  s.sweep = add_sweep(app, t);
  s.status = app.add_subcommand("status", "Show what the replicas and servers of a running job do");
  s.status->add_option("RUNDIR", t.directories, "The run's directory: logging.directory, or checkpoint.directory")
      ->type_name("");
  s.status->add_flag("--watch", t.watch, "Again every second, until the run ends");
  s.status->footer(kStatusExamples);
  s.replay = app.add_subcommand("replay", "Repeat serially what the parameter servers of a run did, from their logs");
  s.replay->add_option("RUNDIR", t.directories, "The run's checkpoint.directory")->type_name("");
  add_text(s.replay, "--checkpoint", t.checkpoint,
           "Begin behind this checkpoint of the run (default: at the beginning)", "DIR");
  add_text(s.replay, "--output", t.output, "Where the checkpoint goes that comes out (default: RUNDIR/replay)", "DIR");
  s.replay->add_flag("--overwrite", t.overwrite, "Replace what is there");
  add_text(s.replay, "--threads", t.threads, "Threads of a rank; left out: the cores it may use", "N");
  s.replay->footer(kReplayExamples);
  return s;
}

}  // namespace trainer::config
