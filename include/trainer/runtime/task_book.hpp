// The task server's book: which samples of the training stream are whose, and that each is counted exactly once.
// Pure: no clock of its own, no messages.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "trainer/runtime/batch_book.hpp"

namespace trainer::runtime {

/// Positions [first, first + count) of the stream of training samples.
struct StreamRange {
  std::int64_t first = 0, count = 0;
  std::int64_t end() const { return first + count; }
  bool operator==(const StreamRange&) const = default;
};

struct TaskSettings {
  std::int64_t replicas = 1;
  std::int64_t batch_samples = 1;  // of one replica's batch
  std::int64_t task_batches = 1;   // of one task
  std::int64_t epoch_samples = 1;  // of the stream
};

/// A replica as the book knows it.
struct TaskRow {
  std::optional<StreamBatch> batch;  // in hand
  bool again = false;                // another replica has had it in hand before
  std::int64_t left = 0;             // batches of its task that it has not begun
  std::int64_t batches = 0;          // counted
  std::int64_t samples = 0;          // counted
  std::int64_t dropped = 0;          // batches that another had reported before
  std::int64_t taken = 0;            // batches of its tasks that others have taken over
  double samples_per_second = 0;     // lately, from hand-out to report; 0: not known yet
};

/// An epoch is divided into tasks, leases of consecutive batches. A replica computes its task batch by batch; one that
/// has none left takes over unstarted batches of the one that would be last, in proportion to their speeds. Where
/// nothing of the epoch is unstarted, it may get a batch in hand a second time, if it would be done with it first (but
/// not where the run pauses, as all are waited for there). A slow replica gets no batch more when others will have made
/// all that are left by the time it would be done with one. So all finish together, and the next epoch begins when each
/// sample of the one before has been counted. (A batch may reach over the end of an epoch: it belongs to that of its
/// first sample.)
class TaskBook final : public BatchBook {
 public:
  explicit TaskBook(const TaskSettings& settings);

  // BatchBook. Where a run goes on from a state with holes (one that was stopped in the middle of its tasks), they are
  // filled first; a step is as many samples as ever, and open_until and complete() count samples.
  void open_until(std::int64_t step) override;
  std::optional<StreamBatch> next(int replica, double now) override;
  bool report(int replica, double now) override;
  bool complete() const override { return counted_ >= allowed_; }
  std::int64_t close() override;
  std::vector<std::int64_t> state() const override;
  /// A state of another number of replicas will do where its holes are whole batches, as all batches are whole; else
  /// Error(Usage). Throws Error(Storage) for words that no book has written.
  void restore(std::int64_t step, std::span<const std::int64_t> words) override;

  std::int64_t counted() const { return counted_; }  // positions of the stream
  std::int64_t epoch() const;                        // from 1: the one being made
  std::int64_t tasks() const { return tasks_; }      // begun so far
  TaskRow row(int replica) const;
  /// Positions that do not count yet among those before the last one begun, ascending and apart.
  std::vector<StreamRange> holes() const;

 private:
  struct InHand {
    StreamBatch batch;
    double since = 0;
    bool again = false;
    bool lost = false;  // the other one was first
  };
  struct Replica {
    std::int64_t task = 0;
    StreamRange lease;  // its unstarted batches
    std::optional<InHand> hand;
    double seconds_per_sample = 0;  // 0: not known
    std::int64_t batches = 0, samples = 0, dropped = 0, taken = 0;
  };
  std::int64_t step_samples() const { return settings_.replicas * settings_.batch_samples; }
  std::int64_t batches_of(std::int64_t samples) const;
  std::int64_t unstarted() const;
  double expected_end(const Replica& replica, double now) const;
  bool better_without(const Replica& asking, double now) const;
  void find_lease(Replica& asking, double now);
  void take_over(Replica& asking, double now);
  std::optional<StreamBatch> second_hand(Replica& asking, double now);
  void open_further();
  InHand* twin_of(const Replica& replica);

  TaskSettings settings_;
  std::vector<Replica> replicas_;
  std::vector<StreamRange> pool_;  // unstarted, before cursor_, nobody's; ascending
  std::size_t first_hole_ = 0;     // those of pool_ before it are gone
  std::int64_t cursor_ = 0;        // of the stream: from here on nothing has been leased
  std::int64_t open_end_ = 0;      // of what may be leased: the end of the epoch or of what is open
  std::int64_t epoch_end_ = 0;
  std::int64_t open_ = 0;     // open_until's, in positions
  std::int64_t allowed_ = 0;  // so many may count
  std::int64_t counted_ = 0;
  std::int64_t used_ = 0;  // counted or in hand
  std::int64_t tasks_ = 0;
};

/// The samples that a state leaves out of those before its end, for who goes on without a book. Words that no book has
/// written: none.
std::vector<StreamRange> holes_of(std::span<const std::int64_t> state);

}  // namespace trainer::runtime
