#include "coordinator.hpp"

#include <algorithm>
#include <cmath>

#include "trainer/optim/optimizer.hpp"

namespace trainer::runtime {

namespace {

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

}  // namespace

Coordinator::Coordinator(comm::Communicator& ranks, const RunPlan& plan, BatchBook& book, std::int64_t total_steps,
                         const std::atomic<bool>* stop, ReplicaWatch& watch)
    : plan_(plan),
      book_(book),
      total_steps_(total_steps),
      stop_(stop),
      watch_(watch),
      replicas_(at(plan.mesh.data)),
      clocks_(replicas_.size()),
      step_began_(Clock::now()) {
  constexpr std::size_t kRecords = 1024;  // more than rank 0 is likely to be behind
  records_.reserve(kRecords);
  for (std::size_t r = 0; r < replicas_.size(); ++r) {
    Replica& replica = replicas_[r];
    const auto lead = static_cast<int>(plan.mesh.rank({.data = static_cast<std::int64_t>(r)}));
    replica.receive = ranks.make_receive(&replica.report, sizeof(TurnReport), lead, kReportTag);
    replica.send = ranks.make_send(&replica.reply, sizeof(TurnReply), lead, kTurnTag);
    replica.receive->start();
  }
}

void Coordinator::restore(std::int64_t step, std::vector<std::int64_t> clocks) {
  committed_ = bulk() ? step : step * plan_.mesh.data;
  clocks_ = std::move(clocks);
}

void Coordinator::open_until(std::int64_t step) {
  book_.open_until(step);
  watch_.begin(now());
  step_began_ = Clock::now();
  look_for_stop();
  if (stopping_) book_.close();
}

bool Coordinator::poll() {
  look_for_stop();
  bool moved = false;
  for (std::size_t r = 0; r < replicas_.size(); ++r) {
    if (replicas_[r].asks || !replicas_[r].receive->test()) continue;
    take(static_cast<int>(r));
    moved = true;
  }
  // What one replica has reported may be what others wait for.
  for (bool answered = true; answered;) {
    answered = false;
    for (std::size_t r = 0; r < replicas_.size(); ++r) {
      if (replicas_[r].asks && replicas_[r].send->test()) answered = answer(static_cast<int>(r)) || answered;
    }
    moved = moved || answered;
  }
  return moved;
}

void Coordinator::look_for_stop() {
  if (stopping_) return;
  const double limit = plan_.config.training.time_limit;
  limit_reached_ = limit > 0 && now() >= limit;
  stopping_ = limit_reached_ || (stop_ != nullptr && stop_->load(std::memory_order_relaxed));
  if (stopping_) book_.close();
}

void Coordinator::take(int r) {
  Replica& replica = replicas_[at(r)];
  replica.asks = true;
  watch_.waits(r, true, now());
  replica.verdict = judge(r);
  if (replica.report.stop != 0 && !stopping_) {
    stopping_ = true;
    book_.close();
  }
}

Verdict Coordinator::judge(int r) {
  const TurnReport& report = replicas_[at(r)].report;
  sent_bytes_ += report.sent_bytes;
  if (report.computed == 0) return Verdict::None;
  const bool finite = std::isfinite(report.loss) && std::isfinite(report.grad_norm);
  if (!bulk() && !finite && !diverged_) {
    StepRecord record;
    record.step = committed_ / plan_.mesh.data + 1;
    record.loss = report.loss / std::max(1.0, report.targets);
    record.grad_norm = report.grad_norm;
    diverged_ = record;
    diverged_replica_ = r;
  }
  const bool counts = !diverged_ && book_.report(r, now());
  watch_.reported(r, counts, now());
  if (!counts) return Verdict::Drop;
  if (!bulk()) count(report);
  clocks_[at(r)] = bulk() ? replicas_[at(r)].reply.next.clock + 1 : clocks_[at(r)] + 1;
  return Verdict::Commit;
}

void Coordinator::count(const TurnReport& report) {
  step_.loss += report.loss;
  step_targets_ += report.targets;
  step_.grad_norm += report.grad_norm / static_cast<double>(replicas_.size());
  step_.staleness = std::max(step_.staleness, committed_ - report.version);
  ++committed_;
  if (committed_ % plan_.mesh.data != 0) return;
  step_.step = committed_ / plan_.mesh.data;
  step_.loss /= std::max(1.0, step_targets_);
  step_.learning_rate = optim::learning_rate(plan_.config.optimizer, step_.step, total_steps_);
  stepped(step_);
  step_ = {};
  step_targets_ = 0;
}

void Coordinator::stepped(StepRecord record) {
  if (bulk()) committed_ = record.step;
  const Clock::time_point now = Clock::now();
  record.seconds = std::chrono::duration<double>(now - step_began_).count();
  record.sent_bytes = sent_bytes_;
  step_began_ = now;
  sent_bytes_ = 0;
  records_.push_back(record);
}

void Coordinator::diverged(const StepRecord& record) { diverged_ = record; }

std::optional<ClockedBatch> Coordinator::next_of(int r) {
  if (plan_.config.parallel.server.consistency == config::Consistency::Ssp) {
    const std::int64_t slowest = *std::min_element(clocks_.begin(), clocks_.end());
    if (clocks_[at(r)] - slowest > plan_.config.parallel.server.staleness) return std::nullopt;
  }
  const std::optional<StreamBatch> batch = book_.next(r, now());
  if (!batch) return std::nullopt;
  const std::int64_t step = batch->first / plan_.config.training.batch_size;
  return ClockedBatch{bulk() ? step : clocks_[at(r)], *batch};
}

bool Coordinator::answer(int r) {
  Replica& replica = replicas_[at(r)];
  TurnReply reply;
  reply.verdict = replica.verdict;
  if (!diverged_ && !book_.complete()) {
    if (const std::optional<ClockedBatch> next = next_of(r)) {
      reply.action = TurnAction::Work;
      reply.next = *next;
      watch_.given(r, next->batch, next->clock, now());
    } else if (replica.verdict == Verdict::None) {
      return false;
    } else {
      reply.action = TurnAction::Wait;
    }
  }
  if (r == 0) put_records(reply);
  replica.reply = reply;
  replica.send->start();
  replica.asks = false;
  watch_.waits(r, false, now());
  replica.receive->start();
  return true;
}

void Coordinator::put_records(TurnReply& reply) {
  reply.records = std::min<std::int64_t>(kTurnRecords, static_cast<std::int64_t>(records_.size()));
  const auto end = records_.begin() + reply.records;
  std::copy(records_.begin(), end, reply.record);
  records_.erase(records_.begin(), end);
}

std::vector<StepRecord> Coordinator::take_records() {
  std::vector<StepRecord> records = records_;
  records_.clear();  // what it has booked stays
  return records;
}

Point Coordinator::point() const {
  Point point;
  point.step = step();
  point.interrupted = stopping_ ? 1 : 0;
  point.limit_reached = limit_reached_ ? 1 : 0;
  if (diverged_) {
    point.diverged = 1;
    point.replica = diverged_replica_;
    point.loss = diverged_->loss;
    point.grad_norm = diverged_->grad_norm;
  }
  point.records = static_cast<std::int64_t>(records_.size());
  return point;
}

}  // namespace trainer::runtime
