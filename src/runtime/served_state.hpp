// What a server of a served run puts into checkpoints and goes on from: its parameters, and where the run stood.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "parameter_server.hpp"
#include "server_store.hpp"
#include "trainer/runtime/batch_book.hpp"
#include "trainer/runtime/exchange_log.hpp"

namespace trainer::runtime {

/// Beside weights and optimizer state, named as every layout names them: each server's position
/// (kPositionsTensor), and from the first server the replicas' clocks and what the book keeps.
inline constexpr const char* kClocksTensor = "optimizer.served_clocks";  // I64 [replicas]
inline constexpr const char* kBookTensor = "optimizer.served_book";      // I64 [words]

class ServedState final : public SavedState {
 public:
  /// `book`: of the coordinator's server, null elsewhere. Everything referred to must outlive it.
  ServedState(const RunPlan& plan, const ServerPlan& servers, int server, ServerStore& store, BatchBook* book);

  void initialise() override { store_.initialise(); }
  bool load(const storage::CheckpointReader& checkpoint) override;
  std::vector<storage::Piece> pieces() const override;

  /// After initialise() or load(), for a run that stands behind `step`.
  ServerClocks clocks(std::int64_t step) const;
  /// The log that goes on from there, in `directory`. Throws Error(Storage).
  std::unique_ptr<ExchangeLogWriter> open_log(storage::FileSystem& files, const std::string& directory,
                                              std::int64_t step) const;
  void restore_book(std::int64_t step);
  /// Before pieces(), at a pause. `log` may be null.
  void set(const ServerClocks& clocks, const ExchangeLogWriter* log);

 private:
  const RunPlan& plan_;
  const int server_, servers_;
  ServerStore& store_;
  BatchBook* book_;
  bool loaded_ = false;
  std::vector<ExchangePosition> loaded_positions_;  // [server] of the checkpoint; empty: others wrote it
  std::vector<std::int64_t> loaded_clocks_, loaded_book_;
  std::int64_t loaded_batch_ = 0;  // training.batch_size of the checkpoint
  ExchangePosition position_;
  std::vector<std::int64_t> clocks_, words_;
};

/// What a run with these keys does not take up of a checkpoint that was stopped in the middle of its tasks: a warning,
/// or "".
std::string lost_of_tasks(const storage::CheckpointReader& checkpoint, const config::Config& now);

}  // namespace trainer::runtime
