// What a server keeps beside its part of the model so that a run can go on, or be repeated: its log, where it stands in
// it, and, beside the coordinator, the replicas' clocks and the book of batches.
#pragma once

#include <memory>
#include <vector>

#include "parameter_server.hpp"
#include "server_store.hpp"
#include "trainer/runtime/batch_book.hpp"
#include "trainer/runtime/exchange_log.hpp"
#include "trainer/runtime/saved_state.hpp"

namespace trainer::runtime {

class ServedState final : public SavedState {
 public:
  /// `book`: of the coordinator, null on other servers. Everything referred to must outlive it.
  ServedState(const RunPlan& plan, int server, ServerStore& store, BatchBook* book)
      : plan_(plan), server_(server), store_(store), book_(book) {}

  void initialise() override;
  bool load(const storage::CheckpointReader& checkpoint) override;
  /// What was set by keep().
  std::vector<storage::Piece> pieces() const override;

  /// Where the server goes on, behind initialise() or load(). What checkpoints of other exchanges do not say follows
  /// from their step.
  const ServerClocks& clocks() const { return clocks_; }

  /// Opens the log of the run that goes on behind `step`, in checkpoint.directory where there is one. Throws
  /// Error(Storage).
  void open_log(storage::FileSystem& files, std::int64_t step);
  /// Into the log. Allocates nothing.
  void log(const ServerOperation& operation);
  /// At a pause: what the next pieces() tell. The log is on the disk behind it.
  void keep(const ServerClocks& clocks);

 private:
  bool bulk() const { return plan_.config.parallel.server.consistency == config::Consistency::Bsp; }

  const RunPlan& plan_;
  const int server_;
  ServerStore& store_;
  BatchBook* book_;
  ServerClocks clocks_;
  ExchangePosition position_;
  std::vector<std::int64_t> book_words_;
  std::unique_ptr<ExchangeLogWriter> log_;
  bool told_ = false;  // that the log cannot be written
};

}  // namespace trainer::runtime
