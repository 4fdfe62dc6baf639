// When a rank did what: the time stamps behind the split of a step, the trace and the picture of a step.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace trainer {

/// What a rank can be doing.
enum class Activity : std::uint8_t {
  Forward,
  Backward,
  BackwardInput,
  BackwardWeight,
  ReceiveForward,  // waiting for a message of the pass and taking it
  ReceiveBackward,
  SendForward,  // starting one
  SendBackward,
  SendWait,    // for room to make the next message in, or for the last ones to leave
  TensorSum,   // waits for other ranks: the sum of parts over tensor ranks
  Replicas,    // gradients over data ranks
  Tied,        // gradients of a tied parameter's other uses
  Weights,     // other replicas' part of the weights
  Agreement,   // loss, norm and stop of all ranks
  Data,        // reading samples
  Optimizer,   // norms and the update
  Pass,        // one walk over the schedule; by itself: what is between its actions
  Step,        // an optimizer step; by itself: what nothing else covers
  Evaluation,  // between steps, as a whole
  Checkpoint,
};
inline constexpr std::size_t kActivities = 20;

/// "forward", "receive forward", …
std::string_view name_of(Activity activity);
inline bool is_compute(Activity activity) { return activity <= Activity::BackwardWeight; }

/// One thing a rank did, in nanoseconds of its steady clock.
struct Span {
  std::int64_t begin = 0, end = 0;
  std::int64_t index = -1;  // micro-batch; of a Step its number; −1: none
  std::int32_t stage = -1;
  Activity activity = Activity::Step;
};

/// Nanoseconds by activity. Those that one activity spends in others that it encloses are theirs alone.
using ActivityTimes = std::array<std::int64_t, kActivities>;

std::int64_t steady_nanoseconds();

/// The newest spans of one rank, and sums over all of them. Used by one thread; allocates when made only. Spans enclose
/// each other or are apart, as scopes do. Inside of Evaluation and Checkpoint nothing is recorded.
class ActionLog {
 public:
  using Clock = std::int64_t (*)();
  /// `stages`: of the whole pipeline. `capacity` spans are kept (32 bytes each), at least 1.
  ActionLog(std::size_t capacity, std::size_t stages, Clock clock = steady_nanoseconds);

  void begin(Activity activity, std::int32_t stage = -1, std::int64_t index = -1);
  void end();

  /// Of the step that ended last.
  std::int64_t step_nanoseconds() const { return step_end_ - step_begin_; }
  /// Of everything so far. Those of a step sum to its duration.
  const ActivityTimes& times() const { return times_; }
  /// Whole spans of a compute activity of one stage so far, waits in them included: what a simulator takes.
  struct StageSum {
    std::array<std::int64_t, 4> nanoseconds{};  // by Activity
    std::array<std::int64_t, 4> count{};
  };
  const std::vector<StageSum>& stages() const { return stages_; }
  /// Passes so far and their time.
  std::int64_t pass_nanoseconds() const { return pass_nanoseconds_; }

  /// Only spans of these steps (from 1) and of what follows each are kept; sums are not affected.
  void keep_steps(std::int64_t first, std::int64_t last);

  /// Spans of the newest steps that are kept whole, and what lay between them, ordered by end. A Step stands behind
  /// what it encloses. Allocates.
  std::vector<Span> kept() const;
  std::size_t bytes() const { return ring_.size() * sizeof(Span); }

 private:
  struct Open {
    Span span;
    bool opaque = false;
  };
  void charge(std::int64_t now);
  void record(const Span& span);

  Clock clock_;
  std::vector<Span> ring_;
  std::size_t written_ = 0, next_ = 0;
  std::vector<StageSum> stages_;
  std::array<Open, 8> open_{};
  std::size_t depth_ = 0;
  std::size_t ignored_ = 0;  // scopes inside of an opaque one
  std::int64_t last_ = 0;    // clock of the last begin or end
  ActivityTimes times_{};
  std::int64_t step_begin_ = 0, step_end_ = 0;
  std::int64_t pass_nanoseconds_ = 0;
  std::int64_t first_kept_ = 0, last_kept_ = 0;  // steps; last 0: all
  bool keeping_ = true;
};

/// A span as long as its scope. `log` may be null.
class ActivitySpan {
 public:
  ActivitySpan(ActionLog* log, Activity activity, std::int32_t stage = -1, std::int64_t index = -1) : log_(log) {
    if (log_ != nullptr) log_->begin(activity, stage, index);
  }
  ~ActivitySpan() {
    if (log_ != nullptr) log_->end();
  }
  ActivitySpan(const ActivitySpan&) = delete;
  ActivitySpan& operator=(const ActivitySpan&) = delete;

 private:
  ActionLog* log_;
};

}  // namespace trainer
