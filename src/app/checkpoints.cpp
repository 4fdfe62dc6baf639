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

std::unique_ptr<storage::CheckpointReader> open_checkpoint(const std::string& path) {
  std::vector<std::string> passed_over;
  auto checkpoint = storage::find_checkpoint(storage::real_file_system(), path, passed_over);
  for (const std::string& why : passed_over) note(fmt::format("warning: {}\n", why));
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
  const auto checkpoint = open_checkpoint(command.checkpoint);
  if (command.verify) checkpoint->verify();
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
    return ExitCode::Done;
  }
  print(fmt::format("{}\nstep {}, {} parameters, written by {}{}\n\n{}\n{}", checkpoint->path(), record.step,
                    observe::human_count(elements), record.build, command.verify ? "; every sum is right" : "",
                    observe::format_table({"tensor", "dtype", "shape", "elements"}, rows), record.config));
  return ExitCode::Done;
}

}  // namespace trainer::app
