#include "parameter_server.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "trainer/core/error.hpp"

namespace trainer::runtime {

namespace {

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

}  // namespace

ParameterServer::ParameterServer(comm::Communicator& ranks, const RunPlan& plan, const ServerPlan& servers, int server,
                                 ServerStore& store, std::int64_t total_steps)
    : plan_(plan),
      servers_(servers),
      consistency_(plan.config.parallel.server.consistency),
      total_steps_(total_steps),
      server_(server),
      store_(store),
      replicas_(at(plan.mesh.data)),
      wanted_(at(plan.mesh.data - plan.config.parallel.server.backup)) {
  clocks_.replicas.resize(replicas_.size());
  for (std::int64_t rank = 0; rank < plan.mesh.size(); ++rank) {
    const plan::Coordinates place = plan.mesh.coordinates(rank);
    lanes_.push_back(std::make_unique<ServerLane>(ranks, static_cast<int>(rank),
                                                  make_stream(plan, servers, server, place), store.weights()));
    replicas_[at(place.data)].lanes.push_back(lanes_.back().get());
  }
  queue_.reserve(replicas_.size());
  members_.reserve(replicas_.size());
  terms_.resize(replicas_.size());
  if (!bulk()) return;
  blocks_.resize(at(servers.block.back()));
  norm_scratch_.resize(norm_scratch_elements(plan));
  for (int other = 0; other < servers.count(); ++other) {
    if (other == server) continue;
    const auto bytes = [](Range blocks) { return at(blocks.size()) * sizeof(double); };
    const Range mine = blocks_of(servers, servers.range(server));
    const Range theirs = blocks_of(servers, servers.range(other));
    const int peer = static_cast<int>(plan.mesh.size()) + other;
    send_norms_.push_back(ranks.make_send(blocks_.data() + mine.begin, bytes(mine), peer, kNormsTag));
    receive_norms_.push_back(ranks.make_receive(blocks_.data() + theirs.begin, bytes(theirs), peer, kNormsTag));
    receive_norms_.back()->start();
  }
}

void ParameterServer::serve(const std::function<bool()>& beside) {
  using Clock = std::chrono::steady_clock;
  // A server waits as long as its run lasts: no single wait is longer than this.
  const double limit = comm::wait_policy().hang_seconds;
  const std::chrono::duration<double> one_wait{limit > 0 ? std::min(0.2, limit / 4) : 0.2};
  for (Replica& replica : replicas_) replica.phase = Phase::Idle;
  paused_ = 0;
  while (paused_ < replicas_.size() || step_ != StepPhase::Collecting) {
    const Clock::time_point begin = Clock::now();
    const auto wait = [&] {
      bool moved = poll();
      if (beside && beside()) moved = true;
      return moved || Clock::now() - begin > one_wait;
    };
    comm::wait_until(std::ref(wait), {"requests to a parameter server"});
  }
}

bool ParameterServer::poll() {
  bool moved = take_requests();
  moved = start_queued() || moved;
  moved = (bulk() ? progress_step() : progress_single_push()) || moved;
  return progress_reads() || moved;
}

bool ParameterServer::take_requests() {
  bool moved = false;
  for (auto& lane : lanes_) moved = lane->take_requests() || moved;
  for (std::size_t r = 0; r < replicas_.size(); ++r) {
    Replica& replica = replicas_[r];
    const auto has_one = [](const ServerLane* lane) { return lane->request() != nullptr; };
    if (replica.phase != Phase::Idle || !std::all_of(replica.lanes.begin(), replica.lanes.end(), has_one)) continue;
    replica.request = *replica.lanes.front()->request();
    for (ServerLane* lane : replica.lanes) {
      if (lane->request()->kind != replica.request.kind) internal_error("ranks of a replica ask a server apart");
      if (replica.request.kind == RequestKind::Push) lane->begin_push(lane->request()->rows);
      lane->pop();
    }
    replica.phase = Phase::Queued;
    queue_.push_back(r);
    moved = true;
  }
  return moved;
}

bool ParameterServer::start_queued() {
  bool moved = false;
  push_waits_ = false;
  for (std::size_t i = 0; i < queue_.size();) {
    if (start(queue_[i])) {
      queue_.erase(queue_.begin() + static_cast<std::ptrdiff_t>(i));
      moved = true;
    } else {
      ++i;
    }
  }
  return moved;
}

bool ParameterServer::start(std::size_t r) {
  Replica& replica = replicas_[r];
  switch (replica.request.kind) {
    case RequestKind::Push: {
      const std::int64_t expected = bulk() ? clocks_.version : clocks_.replicas[r];
      if (replica.request.pushed.clock != expected) {
        internal_error(fmt::format("replica {} pushes clock {} to a server that is at {}", r,
                                   replica.request.pushed.clock, expected));
      }
      if (bulk()) {
        replica.phase = Phase::Collected;
        members_.insert(std::upper_bound(members_.begin(), members_.end(), r), r);
        if (members_.size() == wanted_) begin_step();
        return true;
      }
      push_waits_ = pushing_ >= 0 || reading_ > 0;
      if (push_waits_) return false;
      begin_single_push(r);
      return true;
    }
    case RequestKind::Pull:
    case RequestKind::Read:
      if (pushing_ >= 0 || push_waits_ || !may_read(replica.request)) return false;
      begin_read(r);
      return true;
    case RequestKind::Pause:
      replica.phase = Phase::Paused;
      ++paused_;
      return true;
  }
  return false;
}

// ---- reads ---------------------------------------------------------------------------------------------------------

bool ParameterServer::may_read(const ServerRequest& request) const {
  if (request.kind == RequestKind::Read || status_ == ServerStatus::Diverged) return true;
  switch (consistency_) {
    case config::Consistency::Bsp:
      return clocks_.version >= request.next.clock;
    case config::Consistency::Ssp:
      return within_bound(request.next.clock, *std::min_element(clocks_.replicas.begin(), clocks_.replicas.end()));
    case config::Consistency::Async:
      return true;
  }
  return false;
}

bool ParameterServer::within_bound(std::int64_t clock, std::int64_t slowest) const {
  return consistency_ != config::Consistency::Ssp || clock - slowest <= plan_.config.parallel.server.staleness;
}

void ParameterServer::begin_read(std::size_t r) {
  Replica& replica = replicas_[r];
  replica.phase = Phase::Reading;
  ++reading_;
  const bool whole = status_ == ServerStatus::Running;
  for (ServerLane* lane : replica.lanes) lane->begin_reply({status_, clocks_.version}, whole);
  if (whole && replica.request.kind != RequestKind::Read) {
    log(ExchangeKind::Pull, static_cast<std::int64_t>(r), replica.request.next);
  }
}

bool ParameterServer::progress_reads() {
  bool moved = false;
  for (Replica& replica : replicas_) {
    if (replica.phase != Phase::Reading) continue;
    bool finished = true;
    for (ServerLane* lane : replica.lanes) finished = lane->progress_reply() && finished;
    if (!finished) continue;
    replica.phase = Phase::Idle;
    --reading_;
    moved = true;
  }
  return moved;
}

void ParameterServer::end_push(std::size_t r) {
  Replica& replica = replicas_[r];
  for (ServerLane* lane : replica.lanes) lane->end_push();
  ++clocks_.replicas[r];
  replica.phase = Phase::Idle;
  if (followed_) {
    followed_ = false;
    replica.phase = Phase::Reading;
    ++reading_;
    log(ExchangeKind::Pull, static_cast<std::int64_t>(r), replica.request.next);
    return;
  }
  if (replica.request.then == 0) return;
  replica.request.kind = RequestKind::Pull;
  replica.phase = Phase::Queued;
  queue_.push_back(r);
}

// ---- ssp and async: a push is an update ----------------------------------------------------------------------------

void ParameterServer::begin_single_push(std::size_t r) {
  pushing_ = static_cast<std::int64_t>(r);
  replicas_[r].phase = Phase::Pushing;
  // As many pushes as replicas move the weights as far as one step of them all.
  const auto replicas = static_cast<double>(replicas_.size());
  const std::int64_t step = 1 + clocks_.version / plan_.mesh.data;
  update_.number = clocks_.updates + 1;
  update_.learning_rate = optim::learning_rate(plan_.config.optimizer, step, total_steps_) / replicas;
  update_.scale = static_cast<float>(replicas_[r].request.scale);
  // Nothing comes between this push and the read that it asks for, if that may follow: one runs behind the other.
  Replica& replica = replicas_[r];
  std::int64_t slowest = replica.request.next.clock;
  for (std::size_t other = 0; other < replicas_.size(); ++other) {
    slowest = std::min(slowest, clocks_.replicas[other] + (other == r ? 1 : 0));
  }
  followed_ = replica.request.then != 0 && within_bound(replica.request.next.clock, slowest);
  if (!followed_) return;
  for (ServerLane* lane : replica.lanes) lane->begin_reply({status_, clocks_.version + 1}, true, 0);
}

void ParameterServer::follow_push(Replica& replica) {
  std::int64_t until = ServerLane::kAll;
  for (const ServerLane* lane : replica.lanes) {
    until = std::min(until, lane->least_missing());
  }
  for (ServerLane* lane : replica.lanes) {
    lane->allow(until);
    lane->progress_reply();
  }
}

bool ParameterServer::progress_single_push() {
  if (pushing_ < 0) return false;
  const std::size_t r = at(pushing_);
  bool moved = false;
  bool finished = true;
  for (ServerLane* lane : replicas_[r].lanes) {
    while (!lane->gradients_done() && lane->gradient_is_here()) {
      store_.update(lane->message().remote, lane->gradient(), lane->message().elements, update_);
      lane->consume();
      moved = true;
      if (followed_) break;  // let what it has updated leave
    }
    finished = finished && lane->gradients_done();
  }
  if (followed_) follow_push(replicas_[r]);
  if (!finished) return moved;
  pushing_ = -1;
  ++clocks_.version;
  ++clocks_.updates;
  log(ExchangeKind::Push, static_cast<std::int64_t>(r), replicas_[r].request.pushed);
  end_push(r);
  return true;
}

// ---- bsp: a step is an update --------------------------------------------------------------------------------------

void ParameterServer::begin_step() {
  step_ = StepPhase::Summing;
  // What was measured of the step before has long arrived.
  for (auto& send : send_norms_) comm::wait(*send, {"sending a server's norms"});
}

bool ParameterServer::progress_step() {
  bool moved = false;
  if (step_ == StepPhase::Summing) {
    moved = sum_messages();
    const auto is_done = [](const ServerLane* lane) { return lane->gradients_done(); };
    const auto& lanes = replicas_[members_.front()].lanes;
    if (std::all_of(lanes.begin(), lanes.end(), is_done)) {
      store_.add_uses();
      store_.measure_blocks(blocks_);
      for (auto& send : send_norms_) send->start();
      step_ = StepPhase::Norms;
      moved = true;
    }
  }
  if (step_ != StepPhase::Norms || !norms_are_here() || reading_ > 0) return moved;
  apply_step();
  return true;
}

// Message by message, when all members' is here.
bool ParameterServer::sum_messages() {
  bool moved = false;
  for (std::size_t place = 0; place < replicas_.front().lanes.size(); ++place) {
    const auto lane_of = [&](std::size_t r) { return replicas_[r].lanes[place]; };
    const ServerLane* const first = lane_of(members_.front());
    const auto is_here = [&](std::size_t r) { return lane_of(r)->gradient_is_here(); };
    while (!first->gradients_done() && std::all_of(members_.begin(), members_.end(), is_here)) {
      for (std::size_t m = 0; m < members_.size(); ++m) terms_[m] = lane_of(members_[m])->gradient();
      store_.sum(std::span(terms_).first(members_.size()), first->message().remote, first->message().elements);
      for (const std::size_t r : members_) lane_of(r)->consume();
      moved = true;
    }
  }
  return moved;
}

bool ParameterServer::norms_are_here() {
  return std::all_of(receive_norms_.begin(), receive_norms_.end(), [](auto& norms) { return norms->test(); });
}

ParameterServer::Awaited ParameterServer::awaits() {
  if (step_ == StepPhase::Summing) {
    for (const std::size_t r : members_) {
      for (ServerLane* lane : replicas_[r].lanes) {
        if (!lane->gradients_done() && !lane->gradient_is_here()) return {.replica = static_cast<int>(r)};
      }
    }
  }
  if (step_ != StepPhase::Norms) return {};
  for (std::size_t other = 0; other < receive_norms_.size(); ++other) {
    const int number = static_cast<int>(other);
    if (!receive_norms_[other]->test()) return {.server = number < server_ ? number : number + 1};
  }
  return {};
}

StepRecord ParameterServer::record_of_step() const {
  StepRecord record;
  record.step = clocks_.version + 1;
  double targets = 0;
  for (const std::size_t r : members_) {
    record.loss += replicas_[r].request.loss;
    targets += replicas_[r].request.targets;
  }
  record.loss /= targets;
  record.learning_rate = optim::learning_rate(plan_.config.optimizer, record.step, total_steps_);
  return record;
}

void ParameterServer::apply_step() {
  StepRecord record = record_of_step();
  // Replicas divide by the targets of the whole step; where some were left out, those that count make the mean.
  double targets = 0;
  for (const std::size_t r : members_) targets += replicas_[r].request.targets;
  const double whole = replicas_[members_.front()].request.step_targets / targets;
  record.grad_norm = std::sqrt(squared_norm(plan_, servers_, blocks_, norm_scratch_)) * whole;
  for (auto& norms : receive_norms_) norms->start();
  if (std::isfinite(record.loss) && std::isfinite(record.grad_norm)) {
    const float clip = optim::clip_scale(record.grad_norm, plan_.config.training.gradient_clip);
    store_.update({clocks_.updates + 1, record.learning_rate, static_cast<float>(clip * whole)});
    for (const std::size_t r : members_) {
      log(ExchangeKind::Push, static_cast<std::int64_t>(r), replicas_[r].request.pushed);
    }
    ++clocks_.version;
    ++clocks_.updates;
    ClockedBatch all{clocks_.version, {}};
    all.batch.size = plan_.config.training.batch_size;
    all.batch.first = (record.step - 1) * all.batch.size;
    log(ExchangeKind::Apply, -1, all);
    if (stepped) stepped(record);
  } else {
    status_ = ServerStatus::Diverged;
    if (diverged) diverged(record);
  }
  for (const std::size_t r : members_) end_push(r);
  members_.clear();
  step_ = StepPhase::Collecting;
}

void ParameterServer::log(ExchangeKind kind, std::int64_t replica, const ClockedBatch& batch) {
  if (!done) return;
  ExchangeRecord record;
  record.kind = kind;
  record.replica = replica;
  record.clock = batch.clock;
  record.version = clocks_.version;
  record.first = batch.batch.first;
  record.count = batch.batch.size;
  done(record);
}

}  // namespace trainer::runtime
