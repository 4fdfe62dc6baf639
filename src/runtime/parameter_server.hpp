// A parameter server: a serial state machine over the requests of the mesh's ranks.
//
// A push of one replica (all its ranks) is applied whole before anything else touches the weights; a pull of one
// replica reads one version whole. bsp collects the pushes of a clock, adds them in the order of replicas, agrees on
// the norm with the other servers, updates once, and only then answers the pulls of the next clock.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "server_lane.hpp"
#include "server_messages.hpp"
#include "server_store.hpp"
#include "trainer/comm/communicator.hpp"
#include "trainer/runtime/exchange_log.hpp"
#include "trainer/runtime/server_plan.hpp"

namespace trainer::runtime {

/// What a server has done so far, at a pause.
struct ServerClocks {
  std::int64_t version = 0;            // updates that its weights hold: bsp one a step, else one a push
  std::int64_t updates = 0;            // of those, since its optimizer state began: the bias correction's count
  std::vector<std::int64_t> replicas;  // [replica] pushes, since the run was first served
};

class ParameterServer {
 public:
  /// `ranks`: of the run, as ServerClient has them. Everything referred to must outlive it.
  ParameterServer(comm::Communicator& ranks, const RunPlan& plan, const ServerPlan& servers, int server,
                  ServerStore& store, std::int64_t total_steps);

  void restore(ServerClocks clocks) { clocks_ = std::move(clocks); }
  const ServerClocks& clocks() const { return clocks_; }
  /// Whether this replica waits for an answer, or for others, or has paused: it need not be heard.
  bool owes(std::size_t replica) const {
    const Phase phase = replicas_[replica].phase;
    return phase == Phase::Queued || phase == Phase::Collected || phase == Phase::Paused;
  }

  /// bsp: whom an update that has begun still waits for; both −1: nobody.
  struct Awaited {
    int replica = -1;  // its gradients
    int server = -1;   // its norms
    bool operator==(const Awaited&) const = default;
  };
  Awaited awaits();

  /// Serves until every replica has asked for a pause. `beside` is called between polls and says whether it had
  /// anything to do.
  void serve(const std::function<bool()>& beside = {});

  /// bsp: an update of all was made (loss, norm, rate), or would have been but is not finite.
  std::function<void(const StepRecord&)> stepped, diverged;
  /// Every operation, in their order, not numbered yet.
  std::function<void(const ExchangeRecord&)> done;

 private:
  enum class Phase { Idle, Queued, Collected, Pushing, Reading, Paused };
  struct Replica {
    Phase phase = Phase::Idle;
    ServerRequest request;
    std::vector<ServerLane*> lanes;  // by place in the replica
  };

  bool bulk() const { return consistency_ == config::Consistency::Bsp; }
  bool poll();
  bool take_requests();
  bool start_queued();
  /// Whether the operation of a queued replica has begun.
  bool start(std::size_t replica);
  bool may_read(const ServerRequest& request) const;
  /// ssp: a replica at this clock when the slowest is at `slowest`.
  bool within_bound(std::int64_t clock, std::int64_t slowest) const;
  void begin_read(std::size_t replica);
  bool progress_reads();
  /// Behind a push: idle, or queued for the weights that the request wants then.
  void end_push(std::size_t replica);

  bool progress_single_push();
  /// Sends on what the push has brought up to date, where the replica is to read it.
  void follow_push(Replica& replica);
  void begin_single_push(std::size_t replica);

  bool progress_step();
  void begin_step();
  bool sum_messages();
  bool norms_are_here();
  void apply_step();
  StepRecord record_of_step() const;
  void log(ExchangeKind kind, std::int64_t replica, const ClockedBatch& batch);

  const RunPlan& plan_;
  const ServerPlan& servers_;
  const config::Consistency consistency_;
  const std::int64_t total_steps_;
  const int server_;
  ServerStore& store_;
  ServerClocks clocks_;
  std::vector<std::unique_ptr<ServerLane>> lanes_;  // [mesh rank]
  std::vector<Replica> replicas_;
  std::vector<std::size_t> queue_;  // replicas in the order in which their operations came
  std::size_t paused_ = 0, reading_ = 0;
  bool push_waits_ = false;  // reads that came after it must not begin
  ServerStatus status_ = ServerStatus::Running;

  std::int64_t pushing_ = -1;  // ssp, async: replica
  bool followed_ = false;      // its weights go back to it right behind the gradients
  UpdateStep update_;

  enum class StepPhase { Collecting, Summing, Norms } step_ = StepPhase::Collecting;
  const std::size_t wanted_;          // pushes that make a step
  std::vector<std::size_t> members_;  // replicas whose pushes are here, ascending
  std::vector<const float*> terms_;
  std::vector<double> blocks_, norm_scratch_;
  std::vector<std::unique_ptr<comm::Transfer>> send_norms_, receive_norms_;
};

}  // namespace trainer::runtime
