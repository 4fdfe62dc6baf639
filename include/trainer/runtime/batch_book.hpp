// Which piece of the stream of training samples a replica of a served run computes next, and whether that counts.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <vector>

namespace trainer::runtime {

/// Consecutive positions of the stream that one replica computes at a time. A step of the run is D of them, D the
/// number of replicas.
struct StreamBatch {
  std::int64_t first = 0;
  std::int64_t size = 0;   // those at or beyond the run's last sample are padding, which counts nowhere
  std::int64_t task = -1;  // the task that it belongs to, where there are tasks
  bool operator==(const StreamBatch&) const = default;
};

/// Kept by the coordinator alone, which asks it in the order in which replicas come: a serial state machine without
/// threads, messages, or a clock of its own (`now`: seconds of a steady clock, only ever growing). A replica holds at
/// most one batch. Between points at which the run pauses (open_until) every position is reported, and counts, exactly
/// once. No call but set-up allocates.
class BatchBook {
 public:
  virtual ~BatchBook() = default;

  /// From here on batches may be handed out until all those of steps ≤ `step` are: D · step · size positions of the
  /// stream from its beginning. Called when complete() and no replica holds a batch; steps only grow.
  virtual void open_until(std::int64_t step) = 0;

  /// The next batch of a replica that holds none. Nothing: there is none for it now; it is asked for again after the
  /// next report, and from time to time.
  virtual std::optional<StreamBatch> next(int replica, double now) = 0;

  /// The replica has computed what it holds, and holds nothing. True: its gradient counts; false: these positions
  /// count already, as somebody else was first with them.
  virtual bool report(int replica, double now) = 0;

  /// All batches that are open have been reported and count. A replica may still hold one that will not count.
  virtual bool complete() const = 0;

  /// The run is to stop soon: hands out only what makes the steps whole that have begun. Returns the step after which
  /// it will be complete(), at most that of open_until.
  virtual std::int64_t close() = 0;

  /// What checkpoints keep of it beside the step, taken when complete(); and the way back, before the first
  /// open_until. Without a saved state (a run that was not served before, or by another book) the stream goes on
  /// behind the first `step` steps: restore(step, {}).
  virtual std::vector<std::int64_t> state() const = 0;
  virtual void restore(std::int64_t step, std::span<const std::int64_t> state) = 0;
};

/// Steps of bulk-synchronous servers: replica d has its fixed share of every step, as with all_reduce, and the first
/// `replicas` − `backup` that report a step count, some samples among them. `size`: samples of a replica's batch;
/// `samples`: of the run, what lies behind them is padding.
std::unique_ptr<BatchBook> make_step_book(int replicas, int backup, std::int64_t size,
                                          std::int64_t samples = std::numeric_limits<std::int64_t>::max());

/// Batches in the order of the stream, to whoever asks.
std::unique_ptr<BatchBook> make_stream_book(int replicas, std::int64_t size);

}  // namespace trainer::runtime
