#include "saver.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <chrono>
#include <limits>

#include "served_state.hpp"
#include "trainer/core/error.hpp"
#include "trainer/runtime/agreement.hpp"
#include "trainer/runtime/local_rounds.hpp"

namespace trainer::runtime {

namespace {

constexpr const char* kDamaged = ".damaged";

}  // namespace

void Saver::claim(bool resume, bool overwrite) {
  if (!enabled()) return;
  agree(world_, [&] {
    if (lead()) take_directory(resume, overwrite);
  });
}

std::int64_t Saver::open(SavedState& state, bool resume, Observer& observer) {
  if (!enabled()) {
    if (resume) observer.note("--resume: there is no checkpoint.directory to resume from; starting from the beginning");
    state.initialise();
    return 0;
  }
  std::string path;
  if (resume) {
    agree(world_, [&] {
      if (!lead()) return;
      const auto checkpoint = find(observer);
      if (checkpoint) path = checkpoint->path();
    });
    path = world_.gather_strings(path).front();
  }
  if (path.empty()) {
    state.initialise();
    return 0;
  }
  std::int64_t step = 0;
  agree(world_, [&] {
    const auto checkpoint = storage::open_checkpoint(files_, path);
    require_same_model(*checkpoint);
    warn_of_changes(*checkpoint, observer);
    if (!state.load(*checkpoint)) {
      observer.warning(fmt::format("{} was saved by another optimizer: this one's state begins with zeros", path));
    }
    step = checkpoint->record().step;
  });
  last_path_ = path;
  return step;
}

void Saver::take_directory(bool resume, bool overwrite) {
  const std::string& directory = plan_.config.checkpoint.directory;
  files_.make_directories(directory);
  lock_ = files_.lock(directory);
  if (!lock_) {
    throw Error(ExitCode::Storage,
                fmt::format("{}: another run is writing this directory; wait for it, or choose another "
                            "checkpoint.directory",
                            directory));
  }
  const bool holds_run =
      !storage::checkpoint_steps(files_, directory).empty() || files_.exists(directory + "/metrics.jsonl");
  if (holds_run && !resume && !overwrite) {
    throw Error(ExitCode::Usage, fmt::format("{}: holds a run already; continue it with --resume, replace it with "
                                             "--overwrite, or choose another checkpoint.directory",
                                             directory));
  }
  // A checkpoint of the run that is replaced must never pass for one of this run.
  if (overwrite) storage::remove_checkpoints(files_, directory);
  // Whole checkpoints stay until the next save: whether the newest can be read is not known yet.
  storage::clean_up(files_, directory, std::numeric_limits<std::int64_t>::max());
}

std::unique_ptr<storage::CheckpointReader> Saver::find(Observer& observer) {
  const std::string& directory = plan_.config.checkpoint.directory;
  if (storage::checkpoint_steps(files_, directory).empty()) {
    observer.note(fmt::format("--resume: {} holds no checkpoint; starting from the beginning", directory));
    return nullptr;
  }
  std::vector<std::string> passed_over;
  auto checkpoint = storage::find_checkpoint(files_, directory, passed_over);
  for (const std::string& why : passed_over) observer.warning(why);
  // Newer than what the run goes on from, they would outlive its own checkpoints: they lose the name of one.
  for (const std::int64_t step : storage::checkpoint_steps(files_, directory)) {
    if (step <= checkpoint->record().step) break;
    const std::string path = storage::final_path(directory, step);
    files_.remove_all(path + kDamaged);
    files_.rename(path, path + kDamaged);
    observer.warning(fmt::format("{} is set aside as {}{}", path, path, kDamaged));
  }
  return checkpoint;
}

void Saver::require_same_model(const storage::CheckpointReader& checkpoint) const {
  const config::Config saved = config::parse(checkpoint.record().config, checkpoint.path());
  const std::string theirs = config::model_json(saved);
  const std::string ours = config::model_json(plan_.config);
  if (theirs == ours) return;
  throw Error(
      ExitCode::Usage,
      fmt::format("--resume: the model of {} is not the configuration's: it has {}, the configuration {}; give the "
                  "same \"model\", or another checkpoint.directory",
                  checkpoint.path(), theirs, ours));
}

// What may change between parts of a run, but changes what it learns from. The data position is step · batch_size.
void Saver::warn_of_changes(const storage::CheckpointReader& checkpoint, Observer& observer) const {
  const config::Config before = config::parse(checkpoint.record().config, checkpoint.path());
  const config::Config& now = plan_.config;
  if (const std::string lost = lost_of_rounds(checkpoint, before, now); !lost.empty()) observer.warning(lost);
  if (const std::string lost = lost_of_tasks(checkpoint, now); !lost.empty()) observer.warning(lost);
  std::vector<std::string> changes;
  const auto compare = [&](const char* key, const auto& a, const auto& b) {
    if (a != b) changes.push_back(fmt::format("{} ({} → {})", key, a, b));
  };
  if (!(before.data.source == now.data.source)) changes.emplace_back("data");
  compare("data.validation_fraction", before.data.validation_fraction, now.data.validation_fraction);
  compare("training.seed", before.training.seed, now.training.seed);
  compare("training.batch_size", before.training.batch_size, now.training.batch_size);
  compare("training.sequence_length", before.training.sequence_length, now.training.sequence_length);
  if (before.parallel.delayed_gradients && !now.parallel.delayed_gradients) {
    observer.warning(
        fmt::format("the gradients of step {} that {} holds are dropped, as parallel.delayed_gradients is "
                    "false now",
                    checkpoint.record().step, checkpoint.path()));
  }
  if (before.training.precision != now.training.precision) {
    const bool to_bfloat16 = now.training.precision == config::Precision::BFloat16;
    observer.warning(fmt::format("the run goes on in {} arithmetic; {} was trained in {}",
                                 to_bfloat16 ? "bfloat16" : "float32", checkpoint.path(),
                                 to_bfloat16 ? "float32" : "bfloat16"));
  }
  if (changes.empty()) return;
  observer.warning(fmt::format("the run goes on with other samples than {} was trained with: {} changed",
                               checkpoint.path(), fmt::join(changes, ", ")));
}

bool Saver::save(const SavedState& state, std::int64_t step, Observer& observer) {
  const auto start = std::chrono::steady_clock::now();
  const std::string& directory = plan_.config.checkpoint.directory;
  const std::string partial = storage::partial_path(directory, step);
  try {
    agree(world_, [&] {
      if (!lead()) return;
      files_.remove_all(partial);
      files_.make_directories(partial);
    });
    std::string shard;
    agree(world_, [&] {
      const auto pieces = state.pieces();
      if (!pieces.empty()) shard = storage::write_shard(files_, partial, world_.rank(), pieces);
    });
    std::vector<std::string> shards = world_.gather_strings(shard);
    std::erase(shards, "");
    agree(world_, [&] {
      if (!lead()) return;
      const storage::CheckpointRecord record{step, config::to_json(plan_.config), data_.vocabulary(), build_};
      last_path_ = storage::commit(files_, directory, record, shards);
      storage::clean_up(files_, directory, plan_.config.checkpoint.keep);
    });
  } catch (const Error& error) {
    if (error.code() != ExitCode::Storage) throw;
    failed_ = true;
    last_failure_ = error.what();
    if (lead()) {
      try {
        files_.remove_all(partial);
      } catch (const Error&) {
        // What is left has no final name; the next run removes it.
      }
      observer.warning(fmt::format("step {}: the checkpoint was not saved: {}; training goes on", step, error.what()));
    }
    return false;
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  observer.saved(step, last_path_, seconds.count());
  return true;
}

}  // namespace trainer::runtime
