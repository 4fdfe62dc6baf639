#include "served_replica.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "trainer/optim/optimizer.hpp"

namespace trainer::runtime {

ServedReplica::ServedReplica(comm::Communicator& ranks, comm::Communicator& mesh, const RunPlan& plan,
                             const ServerPlan& servers, Worker& worker, StepTimes& times, ActionLog& log,
                             const std::atomic<bool>* stop)
    : plan_(plan),
      worker_(worker),
      times_(times),
      log_(log),
      stop_(stop),
      replica_(mesh.split(static_cast<int>(worker.coordinates().data), mesh.rank())),
      client_(ranks, plan, servers, worker.coordinates(), worker.parameters(), &log),
      coordinator_(static_cast<int>(plan.mesh.size())) {
  if (replica_->rank() != 0) return;
  send_report_ = ranks.make_send(&report_, sizeof(report_), coordinator_, kReportTag);
  receive_reply_ = ranks.make_receive(&reply_, sizeof(reply_), coordinator_, kTurnTag);
}

void ServedReplica::work(const std::function<void(const StepRecord&)>& tell) {
  while (one_turn(tell)) {
  }
  pause();
}

void ServedReplica::read() {
  ServerRequest request;
  request.kind = RequestKind::Read;
  client_.exchange(request);
}

void ServedReplica::pause() {
  ServerRequest request;
  request.kind = RequestKind::Pause;
  client_.exchange(request);
}

bool ServedReplica::one_turn(const std::function<void(const StepRecord&)>& tell) {
  times_.before_step();
  {
    const ActivitySpan whole(&log_, Activity::Step, -1, number_ + 1);
    take_turn();
    for (std::int64_t r = 0; r < reply_.records; ++r) tell(reply_.record[r]);
    if (!exchange()) return false;
    has_computed_ = false;
    if (reply_.action != TurnAction::Work) return reply_.action == TurnAction::Wait;
    compute(reply_.next);
  }
  times_.after_step();
  ++number_;
  return true;
}

void ServedReplica::take_turn() {
  const ActivitySpan span(&log_, Activity::Agreement);
  const bool stop = stop_ != nullptr && stop_->load(std::memory_order_relaxed);
  const std::int64_t bytes = client_.moved_bytes();
  double sums[4] = {loss_, squares_, stop ? 1.0 : 0.0, static_cast<double>(bytes - reported_bytes_)};
  reported_bytes_ = bytes;
  replica_->sum(sums);
  loss_ = sums[0];
  squares_ = sums[1];
  if (replica_->rank() == 0) {
    report_.computed = has_computed_ ? 1 : 0;
    report_.stop = sums[2] > 0 ? 1 : 0;
    report_.loss = loss_;
    report_.targets = has_computed_ ? worker_.targets_of(own_batch(computed_.batch)) : 0;
    report_.grad_norm = std::sqrt(squares_);
    report_.version = version_;
    report_.sent_bytes = sums[3];
    send_report_->start();
    receive_reply_->start();
    comm::wait(*send_report_, {"telling the coordinator", coordinator_});
    comm::wait(*receive_reply_, {"the coordinator's next batch", coordinator_});
  }
  replica_->broadcast(std::as_writable_bytes(std::span(&reply_, 1)), 0);
  if (replica_->rank() != 0 || worker_.coordinates().data != 0) reply_.records = 0;
}

ServerRequest ServedReplica::request_of_turn() const {
  ServerRequest request;
  request.next = reply_.next;
  request.pushed = computed_;
  request.loss = loss_;
  if (!has_computed_) return request;
  request.targets = worker_.targets_of(own_batch(computed_.batch));
  if (bulk()) {
    request.step_targets = worker_.targets_of(worker_.training_batch(computed_.clock + 1));
  } else {
    request.scale = optim::clip_scale(std::sqrt(squares_), plan_.config.training.gradient_clip);
  }
  return request;
}

bool ServedReplica::exchange() {
  const bool pushes = reply_.verdict == Verdict::Commit;
  const bool pulls = reply_.action == TurnAction::Work;
  const bool together = pushes && pulls && plan_.config.parallel.server.notify;
  ServerRequest request = request_of_turn();
  ServerReply last;
  if (pushes) {
    request.kind = RequestKind::Push;
    request.then = together ? 1 : 0;
    last = client_.exchange(request);
  }
  if (pulls && !together) {
    request.kind = RequestKind::Pull;
    request.then = 0;
    last = client_.exchange(request);
  }
  if (pulls) version_ = last.version;
  return last.status == ServerStatus::Running;
}

GlobalBatch ServedReplica::own_batch(const StreamBatch& batch) const {
  return {.first = batch.first, .size = batch.size, .limit = worker_.sample_limit(), .held_out = false};
}

void ServedReplica::compute(const ClockedBatch& next) {
  const GlobalBatch batch = own_batch(next.batch);
  // bsp: gradients add up to the mean over the step's batch. Otherwise each is the mean over its own; a batch that is
  // all padding has a gradient of zeros.
  const double targets = worker_.targets_of(bulk() ? worker_.training_batch(next.clock + 1) : batch);
  loss_ = worker_.compute_gradients(batch, targets > 0 ? 1.0 / targets : 1.0, /*add_uses=*/!bulk());
  squares_ = bulk() ? 0.0 : worker_.gradient_squares();
  computed_ = next;
  has_computed_ = true;
}

}  // namespace trainer::runtime
