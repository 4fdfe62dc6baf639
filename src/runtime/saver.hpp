// Saving and finding checkpoints together: every rank writes its boxes, one rank makes the whole of them visible.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "trainer/comm/communicator.hpp"
#include "trainer/core/observer.hpp"
#include "trainer/runtime/run_plan.hpp"
#include "trainer/runtime/saved_state.hpp"
#include "trainer/storage/checkpoint.hpp"
#include "trainer/storage/dataset.hpp"
#include "trainer/storage/file_system.hpp"

namespace trainer::runtime {

class Saver {
 public:
  Saver(comm::Communicator& world, const RunPlan& plan, const storage::Dataset& data, storage::FileSystem& files,
        std::string build)
      : world_(world), plan_(plan), data_(data), files_(files), build_(std::move(build)) {}

  /// Collective, before anything costly. Takes the directory: refuses one that holds a run unless told, locks it,
  /// removes what was left half-written.
  void claim(bool resume, bool overwrite);

  /// Collective, after claim(). Returns the step that the run continues from (0: from the beginning) after loading it
  /// into the state.
  std::int64_t open(SavedState& state, bool resume, Observer& observer);

  /// Collective. Returns false when it could not be written (already reported); training may go on.
  bool save(const SavedState& state, std::int64_t step, Observer& observer);

  bool enabled() const { return !plan_.config.checkpoint.directory.empty(); }
  bool failed() const { return failed_; }  // some save could not be written
  const std::string& last_path() const { return last_path_; }
  const std::string& last_failure() const { return last_failure_; }

 private:
  void take_directory(bool resume, bool overwrite);
  std::unique_ptr<storage::CheckpointReader> find(Observer& observer);
  void require_same_model(const storage::CheckpointReader& checkpoint) const;
  void warn_of_changes(const storage::CheckpointReader& checkpoint, Observer& observer) const;
  bool lead() const { return world_.rank() == 0; }

  comm::Communicator& world_;
  const RunPlan& plan_;
  const storage::Dataset& data_;
  storage::FileSystem& files_;
  std::string build_;
  std::unique_ptr<storage::DirectoryLock> lock_;
  bool failed_ = false;
  std::string last_path_, last_failure_;
};

}  // namespace trainer::runtime
