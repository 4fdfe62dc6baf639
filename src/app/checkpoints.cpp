// Subcommands that read a checkpoint and compute nothing: export and inspect.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "app.hpp"
#include "trainer/observe/reporters.hpp"
#include "trainer/observe/summary.hpp"
#include "trainer/storage/export.hpp"

namespace trainer::app {

namespace {

bool is_optimizer_state(const std::string& name) { return name.starts_with("optimizer."); }

}  // namespace

std::unique_ptr<storage::CheckpointReader> open_checkpoint(const std::string& path, bool* passed_any) {
  std::vector<std::string> passed_over;
  auto checkpoint = storage::find_checkpoint(storage::real_file_system(), path, passed_over);
  for (const std::string& why : passed_over) note(fmt::format("warning: {}\n", why));
  if (passed_any != nullptr) *passed_any = !passed_over.empty();
  return checkpoint;
}

ExitCode export_weights(const config::ExportCommand& command) {
  const auto checkpoint = open_checkpoint(command.checkpoint);
  storage::FileSystem& files = storage::real_file_system();
  if (command.format == "hf") {
    storage::export_hugging_face(files, *checkpoint, command.out, command.overwrite);
  } else {
    storage::export_safetensors(files, *checkpoint, command.out, command.overwrite);
  }
  print(fmt::format("{}\n", command.out));
  return ExitCode::Done;
}

ExitCode inspect(const config::InspectCommand& command) {
  bool passed_over = false;
  const auto checkpoint = open_checkpoint(command.checkpoint, &passed_over);
  if (command.verify) checkpoint->verify();
  // Asked for the sums, a damaged checkpoint is the answer, even when an older one is whole.
  const ExitCode code = command.verify && passed_over ? ExitCode::Storage : ExitCode::Done;
  double elements = 0;
  std::vector<std::vector<std::string>> rows;
  for (const storage::TensorEntry& tensor : checkpoint->tensors()) {
    if (is_optimizer_state(tensor.name)) continue;
    const auto n = static_cast<double>(tensor.shape.elements());
    elements += n;
    rows.push_back({tensor.name, std::string(name_of(tensor.type)), to_string(tensor.shape), observe::human_count(n)});
  }
  const storage::CheckpointRecord& record = checkpoint->record();
  if (command.json) {
    print(fmt::format("{}\n", observe::checkpoint_json(checkpoint->path(), record.step, record.build, record.config,
                                                       static_cast<std::int64_t>(elements))));
    return code;
  }
  print(fmt::format("{}\nstep {}, {} parameters, written by {}{}\n\n{}\n{}", checkpoint->path(), record.step,
                    observe::human_count(elements), record.build, command.verify ? "; every sum of it is right" : "",
                    observe::format_table({"tensor", "dtype", "shape", "elements"}, rows), record.config));
  return code;
}

}  // namespace trainer::app
