// The coordinator's eyes: who is silent too long, and status.json for `trainer status`.
#pragma once

#include <string>
#include <vector>

#include "parameter_server.hpp"
#include "replica_watch.hpp"
#include "trainer/core/error.hpp"
#include "trainer/observe/status.hpp"
#include "trainer/runtime/run_plan.hpp"
#include "trainer/storage/file_system.hpp"

namespace trainer::runtime {

class ServedStatus {
 public:
  /// `tasks` may be null. Everything referred to must outlive it.
  ServedStatus(const RunPlan& plan, storage::FileSystem& files, ParameterServer& server, const TaskBook* tasks,
               std::int64_t total_steps);

  ReplicaWatch& watch() { return watch_; }

  /// Between the polls of the server beside: now and then looks for silent replicas, and once a second writes the file.
  /// Throws Error(Hang). Times are seconds of a steady clock.
  void look(std::int64_t step, double now);
  /// Writes how the run ended. What cannot be written is nobody's loss.
  void end(const std::string& state, ExitCode code, const std::string& message, std::int64_t step);

 private:
  void write(std::int64_t step, double now);
  void look_at_update(double now);

  storage::FileSystem& files_;
  ParameterServer& server_;
  const TaskBook* tasks_;
  const std::string path_;  // "": no directory to write to
  ReplicaWatch watch_;
  observe::RunStatus status_;
  const double timeout_;
  ParameterServer::Awaited awaited_;  // at version awaited_for_, since awaited_since_
  std::int64_t awaited_for_ = -1;
  double awaited_since_ = 0;
  std::vector<bool> parked_;
  double began_ = -1, looked_ = -1, written_ = -1;
};

}  // namespace trainer::runtime
