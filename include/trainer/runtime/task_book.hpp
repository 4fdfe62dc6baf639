// The task server's book: which samples of the training stream are whose, and that each is counted exactly once.
// Pure: no clock of its own, no messages.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace trainer::runtime {

/// Samples [first, first + count) of the training stream.
struct SampleRange {
  std::int64_t first = 0;
  std::int64_t count = 0;
  std::int64_t end() const { return first + count; }
  bool operator==(const SampleRange&) const = default;
};

struct TaskSettings {
  std::int64_t replicas = 1;
  std::int64_t batch_samples = 1;  // of one replica's batch
  std::int64_t task_batches = 8;   // of one lease
  std::int64_t epoch_samples = 1;  // of the stream
  std::int64_t total_samples = 1;  // where the stream ends
};

/// What a replica is to compute next.
struct TaskBatch {
  std::int64_t task = 0;  // from 1
  SampleRange samples;
  bool again = false;  // another replica has it in hand too: whoever reports first is counted
};

/// A replica as the book knows it.
struct TaskRow {
  std::optional<TaskBatch> batch;   // in hand
  double since = 0;                 // when it was handed out
  std::int64_t left = 0;            // batches of its task that it has not begun
  std::int64_t batches = 0;         // counted
  std::int64_t samples = 0;         // counted
  std::int64_t dropped = 0;         // batches that another had reported before
  std::int64_t taken = 0;           // batches that others have taken over from it
  double samples_per_second = 0;    // lately, from hand-out to report; 0: not known yet
};

/// An epoch is divided into tasks, leases of consecutive batches. A replica computes its task batch by batch; one that
/// has none left takes over unstarted batches of the one that would be last, in proportion to their speeds. Where
/// nothing is unstarted before the end of the epoch, it may get a batch in hand a second time, if it would be done with
/// it first. A slow replica gets no batch more when others will have made all that are left by the time it would be
/// done with one. So all finish together, and the next epoch begins when each sample of the one before has been counted.
/// (A batch may reach over the end of an epoch: it belongs to that of its first sample.)
class TaskBook {
 public:
  explicit TaskBook(const TaskSettings& settings);

  /// What the book knew at state(); `words` may be of other numbers of replicas and samples a batch. What was in hand
  /// is unstarted. Throws Error(Storage) for words that no book has written.
  static TaskBook restored(const TaskSettings& settings, std::span<const std::int64_t> words);
  /// For a checkpoint: what has been counted. What is in hand counts as unstarted.
  std::vector<std::int64_t> state() const;

  /// At most so many samples will have been counted until this is raised: where to pause.
  void allow(std::int64_t samples) { allowed_ = samples; }

  /// A batch for a replica that has none in hand. Nothing: it waits, and should ask again after every report and now
  /// and then (whom the others count on may be late).
  std::optional<TaskBatch> next(std::int64_t replica, double now);
  /// The replica has computed its batch: whether it is counted.
  bool commit(std::int64_t replica, double now);
  /// The replica will not report what it has in hand.
  void forget(std::int64_t replica);

  std::int64_t counted() const { return counted_; }                       // samples
  std::int64_t in_hand() const { return used_ - counted_; }               // samples that replicas compute now
  bool paused() const { return counted_ >= allowed_ || finished(); }      // the last allowed batch is counted
  bool finished() const { return counted_ >= settings_.total_samples; }
  std::int64_t epoch() const;                                             // from 1: the one being made
  std::int64_t tasks() const { return tasks_; }                           // begun so far
  std::vector<TaskRow> table() const;                                     // [replica]
  /// Samples that are not counted among those before the last one begun, ascending and apart.
  std::vector<SampleRange> holes() const;

 private:
  struct InHand {
    TaskBatch batch;
    double since = 0;
    bool lost = false;  // the other one was first
  };
  struct Replica {
    std::int64_t task = 0;
    SampleRange lease;  // its unstarted batches
    std::optional<InHand> hand;
    double seconds_per_sample = 0;  // 0: not known
    std::int64_t batches = 0, samples = 0, dropped = 0, taken = 0;
  };
  Replica& at(std::int64_t replica) { return replicas_[static_cast<std::size_t>(replica)]; }
  std::int64_t batches_of(std::int64_t samples) const;
  std::int64_t unstarted() const;
  double expected_end(const Replica& replica, double now) const;
  bool better_without(const Replica& asking, double now) const;
  bool find_lease(Replica& asking, double now);
  bool take_over(Replica& asking, double now);
  std::optional<TaskBatch> second_hand(Replica& asking, double now);
  void begin_epoch();
  InHand* twin_of(const Replica& replica);

  TaskSettings settings_;
  std::vector<Replica> replicas_;
  std::vector<SampleRange> pool_;  // unstarted, before cursor_, nobody's; ascending
  std::int64_t cursor_ = 0;        // of the stream: from here on nothing has been leased
  std::int64_t epoch_end_ = 0;     // nothing from here on is leased yet
  std::int64_t allowed_ = 0;
  std::int64_t counted_ = 0;
  std::int64_t used_ = 0;  // counted or in hand
  std::int64_t tasks_ = 0;
};

}  // namespace trainer::runtime
