// Hands out batches to the replicas of a served run, says which of them count, and when all pause. It lives in the
// first server's process, between the polls of its server.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <vector>

#include "replica_watch.hpp"
#include "server_messages.hpp"
#include "trainer/comm/communicator.hpp"
#include "trainer/runtime/batch_book.hpp"
#include "trainer/runtime/run_plan.hpp"

namespace trainer::runtime {

class Coordinator {
 public:
  /// `ranks` as ServerClient has them. Everything referred to must outlive it. `stop` may be null.
  Coordinator(comm::Communicator& ranks, const RunPlan& plan, BatchBook& book, std::int64_t total_steps,
              const std::atomic<bool>* stop, ReplicaWatch& watch);

  /// Where the run goes on from: the updates of all replicas up to `step`, and of each (clocks).
  void restore(std::int64_t step, std::vector<std::int64_t> clocks);
  /// Batches may be handed out until those of `step` have been computed; the time of a step begins to count.
  void open_until(std::int64_t step);
  /// Takes reports and answers them; whether there was anything to do.
  bool poll();

  /// From the server beside it (bsp).
  void stepped(StepRecord record);
  void diverged(const StepRecord& record);

  /// At a pause: the step behind which the run stands, and what else there is to know. Records that rank 0 has not been
  /// told yet are left to take_records().
  Point point() const;
  std::vector<StepRecord> take_records();

  bool stopping() const { return stopping_; }
  /// Seconds since it was made, which the watch and the book go by; and whole steps so far.
  double now() const { return std::chrono::duration<double>(Clock::now() - started_).count(); }
  std::int64_t step() const { return bulk() ? committed_ : committed_ / plan_.mesh.data; }
  const std::vector<std::int64_t>& clocks() const { return clocks_; }

 private:
  using Clock = std::chrono::steady_clock;
  struct Replica {
    TurnReport report;
    TurnReply reply;
    std::unique_ptr<comm::Transfer> receive, send;
    bool asks = false;  // a report has come that was not answered
    Verdict verdict = Verdict::None;
  };

  bool bulk() const { return plan_.config.parallel.server.consistency == config::Consistency::Bsp; }
  void look_for_stop();
  void take(int replica);
  Verdict judge(int replica);
  void count(const TurnReport& report);
  /// False: there is nothing for it yet.
  bool answer(int replica);
  std::optional<ClockedBatch> next_of(int replica);
  void put_records(TurnReply& reply);

  const RunPlan& plan_;
  BatchBook& book_;
  const std::int64_t total_steps_;
  const std::atomic<bool>* stop_;
  ReplicaWatch& watch_;
  const Clock::time_point started_ = Clock::now();
  std::vector<Replica> replicas_;
  std::vector<std::int64_t> clocks_;  // [replica] of its batches, those that count
  std::int64_t committed_ = 0;        // batches of all, from the run's beginning; bsp: steps
  bool stopping_ = false, limit_reached_ = false;
  std::optional<StepRecord> diverged_;
  std::int64_t diverged_replica_ = -1;

  StepRecord step_;  // sums of the batches since the last step: what TurnReports add up to
  double step_targets_ = 0;
  double sent_bytes_ = 0;
  Clock::time_point step_began_;
  std::vector<StepRecord> records_;  // not told yet
};

}  // namespace trainer::runtime
