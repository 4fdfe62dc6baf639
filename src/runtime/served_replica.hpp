// A mesh rank of a served run: takes turns, pushes, pulls and computes.
#pragma once

#include <atomic>
#include <functional>
#include <memory>

#include "server_client.hpp"
#include "server_messages.hpp"
#include "trainer/runtime/time_split.hpp"
#include "trainer/runtime/worker.hpp"

namespace trainer::runtime {

class ServedReplica {
 public:
  /// `ranks`: of the run, mesh first; `mesh`: of the mesh. Collective over the mesh. All referred to must outlive it.
  ServedReplica(comm::Communicator& ranks, comm::Communicator& mesh, const RunPlan& plan, const ServerPlan& servers,
                Worker& worker, StepTimes& times, ActionLog& log, const std::atomic<bool>* stop);

  /// Works until the coordinator has all pause. `tell` hears of steps that are complete, on rank 0. Returns with the
  /// servers told.
  void work(const std::function<void(const StepRecord&)>& tell);
  /// All weights as the servers have them; all ranks of the mesh call it, and pause() behind it.
  void read();
  void pause();

 private:
  bool one_turn(const std::function<void(const StepRecord&)>& tell);
  /// Reports what was computed last and learns what is next. Collective over the replica.
  void take_turn();
  /// Pushes what counts and pulls what the next batch needs. False: the run has diverged.
  bool exchange();
  ServerRequest request_of_turn() const;
  void compute(const ClockedBatch& next);
  GlobalBatch own_batch(const StreamBatch& batch) const;
  bool bulk() const { return plan_.config.parallel.server.consistency == config::Consistency::Bsp; }

  const RunPlan& plan_;
  Worker& worker_;
  StepTimes& times_;
  ActionLog& log_;
  const std::atomic<bool>* stop_;
  std::unique_ptr<comm::Communicator> replica_;
  ServerClient client_;
  const int coordinator_;
  TurnReport report_;
  TurnReply reply_;
  std::unique_ptr<comm::Transfer> send_report_, receive_reply_;  // of the replica's first rank
  ClockedBatch computed_;
  bool has_computed_ = false;
  // Of it, as far as this rank has them; behind the turn, of the whole replica.
  double loss_ = 0, squares_ = 0;
  std::int64_t version_ = 0;  // of the first server's weights here
  std::int64_t reported_bytes_ = 0;
  std::int64_t number_ = 0;  // of the batches of this rank, as the steps of its log
};

}  // namespace trainer::runtime
