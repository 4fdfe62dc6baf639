// What the command line may say: options and help of training and of each subcommand, as CLI11 takes them.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

namespace trainer::config {

/// What CLI11 fills: texts, so that every value is checked here and in one way.
struct Texts {
  std::string config, threads, ranks, kernels, checkpoint, format, out, prompt, tokens, temperature, top_k, seed;
  std::vector<std::string> overrides;
  std::vector<std::int64_t> token_list;
  std::vector<std::string> over;
  std::string steps, repeat;
  bool halving = false;
  std::string logits, trace, trace_steps, output;
  std::vector<std::string> directories;
  std::string name, file, stages, micro_batches, group, most_held, forward, backward_input, backward_weight, transfer;
  std::string seconds, profile, cluster, memory_per_rank, top, best;
  bool split_backward = false, draw = false;
  bool dry_run = false, print_config = false, resume = false, overwrite = false, verify = false, json = false;
  bool help_keys = false, watch = false;
};

struct Subcommands {
  CLI::App *export_, *generate, *eval, *inspect, *schedule, *profile, *plan, *report, *sweep, *status, *replay;
};

/// Options of training; they stand before any subcommand.
void add_train(CLI::App& app, Texts& texts);
Subcommands add_subcommands(CLI::App& app, Texts& texts);

}  // namespace trainer::config
