// The executor's rules on a clock: what each action waits for, and when it runs. The verifier asks whether a table
// comes to its end, the simulator when. Every time is a maximum over earlier ones, so the order in which ranks are
// advanced does not change the result.
#pragma once

#include <cstdint>
#include <vector>

#include "channels.hpp"
#include "trainer/schedule/schedule.hpp"

namespace trainer::schedule {

enum class Obstacle : std::uint8_t {
  None,
  NotSent,      // a receive: the other side has not started the send
  NotProduced,  // a neighbouring stage on the same rank has not run
  RingUnsent,   // the send-ring entry holds a message whose send has not started
  RingUnposted  // the send-ring entry holds a message that the other side has not posted a receive for
};

/// What the action that a rank stands at waits for.
struct Gate {
  Obstacle obstacle = Obstacle::None;
  std::size_t message = 0;  // of the obstacle
  double time = 0;          // None: the earliest time that it lets the action run (a receive: end)
};

/// What the executor has to hold values in.
enum class Buffers : std::uint8_t {
  Executor,  // send rings and posted receives, as assign_slots states them
  Unlimited  // every value is kept where it is made and waits for whoever needs it; the table has compute actions only
};

/// Runs a table whose structure is sound (structural_fault). The schedule must outlive it.
class Engine {
 public:
  /// `times`: one entry a stage. Without `keep_starts`, starts() is empty and memory is that of the messages only.
  Engine(const Schedule& schedule, const std::vector<StageTimes>& times, double transfer, bool keep_starts = true,
         Buffers buffers = Buffers::Executor);

  /// Advances all ranks until none can move.
  void run();

  std::size_t position(std::size_t rank) const { return position_[rank]; }
  bool done(std::size_t rank) const { return position_[rank] == schedule_.ranks[rank].size(); }
  /// Of the action that an unfinished rank stands at.
  Gate gate(std::size_t rank) const;
  double clock(std::size_t rank) const { return clock_[rank]; }
  double duration(const Action& action) const;
  std::vector<std::vector<double>>& starts() { return starts_; }
  /// When the value of a message was there to be sent; only for those that were.
  double sent(std::size_t message) const { return sent_[message]; }
  const Channels& channels() const { return channels_; }

 private:
  static constexpr double kUnknown = -1;

  /// Whether the channel's values are handed over by messages of the table.
  bool by_message(std::int64_t channel) const { return buffers_ == Buffers::Executor && channels_.crosses(channel); }
  void link_receives();
  void advance(std::size_t rank);
  void perform(std::size_t rank, const Action& action, const Gate& gate);
  void compute(std::size_t rank, const Action& action);
  void receive(std::size_t rank, const Action& action);
  void wake(std::int32_t rank);
  Gate compute_gate(const Action& action) const;
  double delivered(std::size_t message) const;
  /// Index of the ring entry that the channel's next message uses.
  std::size_t ring_entry(std::int64_t channel) const;

  const Schedule& schedule_;
  const std::vector<StageTimes>& times_;
  double transfer_;
  bool keep_starts_;
  Buffers buffers_;
  Channels channels_;
  std::vector<std::size_t> position_;        // [rank]
  std::vector<double> clock_;                // [rank]
  std::vector<std::vector<double>> starts_;  // [rank][action]
  std::vector<double> sent_;                 // [message] start of the send; without messages: the value is there
  std::vector<double> posted_;               // [message]
  std::vector<MicroBatchId> next_receive_;   // [message] the one to post once this is received
  std::vector<std::int64_t> produced_;       // [channel] messages so far
  std::vector<std::size_t> ring_;            // [channel][kSendSlots] message
  std::vector<std::int32_t> awake_;          // stack of ranks to advance
  std::vector<bool> is_awake_;               // [rank]
};

}  // namespace trainer::schedule
