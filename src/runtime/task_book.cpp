#include "trainer/runtime/task_book.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "trainer/core/error.hpp"

namespace trainer::runtime {

namespace {

// Of a new measurement in what is remembered of a replica's speed.
constexpr double kNewShare = 0.3;

constexpr std::int64_t kStateVersion = 1;
constexpr std::int64_t kMostSamples = std::int64_t{1} << 60;

// Ascending, apart, those that touch joined.
std::vector<StreamRange> joined(std::vector<StreamRange> ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<StreamRange> all;
  for (const StreamRange& range : ranges) {
    if (range.count == 0) continue;
    if (!all.empty() && all.back().end() == range.first) {
      all.back().count += range.count;
    } else {
      all.push_back(range);
    }
  }
  return all;
}

}  // namespace

TaskBook::TaskBook(const TaskSettings& settings)
    : settings_(settings), replicas_(static_cast<std::size_t>(settings.replicas)) {
  if (settings.replicas < 1 || settings.batch_samples < 1 || settings.task_batches < 1 || settings.epoch_samples < 1) {
    internal_error("a task book without replicas, batches or samples");
  }
}

void TaskBook::open_until(std::int64_t step) {
  open_ = allowed_ = step * step_samples();
  open_further();
}

std::int64_t TaskBook::close() {
  const std::int64_t steps = (used_ + step_samples() - 1) / step_samples();
  allowed_ = std::min(allowed_, steps * step_samples());
  return allowed_ / step_samples();
}

std::int64_t TaskBook::batches_of(std::int64_t samples) const {
  return (samples + settings_.batch_samples - 1) / settings_.batch_samples;
}

std::int64_t TaskBook::epoch() const { return 1 + (epoch_end_ == 0 ? 0 : (epoch_end_ - 1) / settings_.epoch_samples); }

// Of what may be leased, whoever has leased it.
std::int64_t TaskBook::unstarted() const {
  std::int64_t samples = open_end_ - cursor_;
  for (std::size_t i = first_hole_; i < pool_.size(); ++i) samples += pool_[i].count;
  for (const Replica& replica : replicas_) samples += replica.lease.count;
  return samples;
}

// The epoch's samples as far as they are open; the next epoch's when each of this one counts. An epoch is whole batches
// from where the last one ended, the last of them with the epoch's last sample.
void TaskBook::open_further() {
  if (cursor_ == epoch_end_ && counted_ == cursor_) {
    const std::int64_t end = (cursor_ / settings_.epoch_samples + 1) * settings_.epoch_samples;
    epoch_end_ = cursor_ + batches_of(end - cursor_) * settings_.batch_samples;
  }
  open_end_ = std::max(cursor_, std::min(epoch_end_, open_));
}

// One that is late already is expected to need as long again as it is late.
double TaskBook::expected_end(const Replica& replica, double now) const {
  const auto samples = static_cast<double>(replica.hand->batch.size);
  const double planned = replica.hand->since + replica.seconds_per_sample * samples;
  return planned >= now ? planned : now + (now - planned);
}

// Whether those who are computing will have made all that is left when `asking` would have made one batch of it. Only
// those who have a batch in hand are counted on: they will ask, and the last of them is refused nothing.
bool TaskBook::better_without(const Replica& asking, double now) const {
  if (asking.seconds_per_sample == 0) return false;
  const std::int64_t left = std::min(unstarted(), allowed_ - used_);
  const std::int64_t one = std::min(left, settings_.batch_samples);
  const double done = now + asking.seconds_per_sample * static_cast<double>(one);
  std::int64_t made = 0;
  for (const Replica& other : replicas_) {
    if (&other == &asking || !other.hand || other.seconds_per_sample == 0) continue;
    const double each = other.seconds_per_sample * static_cast<double>(settings_.batch_samples);
    const double batches = std::floor((done - expected_end(other, now)) / each);
    if (batches <= 0) continue;
    made +=
        static_cast<std::int64_t>(std::min(batches, static_cast<double>(batches_of(left)))) * settings_.batch_samples;
  }
  return made >= left;
}

void TaskBook::find_lease(Replica& asking, double now) {
  const std::int64_t most = settings_.task_batches * settings_.batch_samples;
  if (first_hole_ < pool_.size()) {
    StreamRange& hole = pool_[first_hole_];
    asking.lease = {hole.first, std::min(hole.count, most)};
    hole = {hole.first + asking.lease.count, hole.count - asking.lease.count};
    if (hole.count == 0) ++first_hole_;
    asking.task = ++tasks_;
  } else if (cursor_ < open_end_) {
    asking.lease = {cursor_, std::min(open_end_ - cursor_, most)};
    cursor_ = asking.lease.end();
    asking.task = ++tasks_;
  } else {
    take_over(asking, now);
  }
}

// From the end of the lease that would be done last: so many batches that both would be done at the same time.
void TaskBook::take_over(Replica& asking, double now) {
  Replica* last = nullptr;
  double last_end = 0;
  for (Replica& other : replicas_) {
    if (other.lease.count == 0) continue;
    const double rest = other.seconds_per_sample * static_cast<double>(other.lease.count);
    const double end = (other.hand ? expected_end(other, now) : now) + rest;
    if (last != nullptr && end <= last_end) continue;
    last = &other;
    last_end = end;
  }
  if (last == nullptr) internal_error("unstarted samples that nobody has");
  const std::int64_t batches = batches_of(last->lease.count);
  double share = 0.5;
  if (asking.seconds_per_sample > 0 && last->seconds_per_sample > 0) {
    share = last->seconds_per_sample / (asking.seconds_per_sample + last->seconds_per_sample);
  }
  const auto wanted = static_cast<std::int64_t>(std::llround(share * static_cast<double>(batches)));
  const std::int64_t moved = std::clamp<std::int64_t>(wanted, 1, batches);
  const std::int64_t kept = std::min(last->lease.count, (batches - moved) * settings_.batch_samples);
  asking.lease = {last->lease.first + kept, last->lease.count - kept};
  asking.task = last->task;
  last->lease.count = kept;
  last->taken += moved;
}

std::optional<StreamBatch> TaskBook::second_hand(Replica& asking, double now) {
  if (asking.seconds_per_sample == 0) return std::nullopt;
  const Replica* last = nullptr;
  double last_end = 0;
  for (const Replica& other : replicas_) {
    if (!other.hand || other.hand->lost || twin_of(other) != nullptr) continue;
    const double end = expected_end(other, now);
    const double mine = now + asking.seconds_per_sample * static_cast<double>(other.hand->batch.size);
    if (mine >= end || (last != nullptr && end <= last_end)) continue;
    last = &other;
    last_end = end;
  }
  if (last == nullptr) return std::nullopt;
  asking.hand = InHand{last->hand->batch, now, /*again=*/true, /*lost=*/false};
  return asking.hand->batch;
}

TaskBook::InHand* TaskBook::twin_of(const Replica& replica) {
  for (Replica& other : replicas_) {
    if (&other == &replica || !other.hand || other.hand->lost) continue;
    if (other.hand->batch.first == replica.hand->batch.first) return &*other.hand;
  }
  return nullptr;
}

std::optional<StreamBatch> TaskBook::next(int number, double now) {
  Replica& replica = replicas_[static_cast<std::size_t>(number)];
  if (replica.hand) internal_error("a batch for a replica that has one in hand");
  open_further();
  if (unstarted() == 0) {
    // Where the run pauses, all are waited for, so there is nothing to be gained.
    return cursor_ == epoch_end_ && used_ < allowed_ ? second_hand(replica, now) : std::nullopt;
  }
  if (used_ >= allowed_ || better_without(replica, now)) return std::nullopt;
  if (replica.lease.count == 0) find_lease(replica, now);
  StreamRange& lease = replica.lease;
  const StreamBatch batch{.first = lease.first,
                          .size = std::min({settings_.batch_samples, lease.count, allowed_ - used_}),
                          .task = replica.task};
  lease = {lease.first + batch.size, lease.count - batch.size};
  used_ += batch.size;
  replica.hand = InHand{batch, now, false, false};
  return batch;
}

bool TaskBook::report(int number, double now) {
  Replica& replica = replicas_[static_cast<std::size_t>(number)];
  if (!replica.hand) internal_error("a report of a replica that has no batch in hand");
  const InHand hand = *replica.hand;
  const double pace = std::max(1e-9, now - hand.since) / static_cast<double>(hand.batch.size);
  double& known = replica.seconds_per_sample;
  known = known == 0 ? pace : (1 - kNewShare) * known + kNewShare * pace;
  if (hand.lost) {
    ++replica.dropped;
  } else {
    if (InHand* twin = twin_of(replica)) twin->lost = true;
    counted_ += hand.batch.size;
    ++replica.batches;
    replica.samples += hand.batch.size;
  }
  replica.hand.reset();
  return !hand.lost;
}

std::vector<StreamRange> TaskBook::holes() const {
  std::vector<StreamRange> ranges(pool_.begin() + static_cast<std::ptrdiff_t>(first_hole_), pool_.end());
  for (const Replica& replica : replicas_) {
    ranges.push_back(replica.lease);
    if (replica.hand && !replica.hand->lost && !replica.hand->again) {
      ranges.push_back({replica.hand->batch.first, replica.hand->batch.size});
    }
  }
  ranges = joined(std::move(ranges));
  if (!ranges.empty() && ranges.back().end() == cursor_) ranges.pop_back();  // as if it had not been leased
  return ranges;
}

std::vector<std::int64_t> TaskBook::state() const {
  std::vector<std::int64_t> words{kStateVersion, tasks_, settings_.replicas};
  for (const Replica& replica : replicas_) {
    words.insert(words.end(), {replica.batches, replica.samples, replica.dropped, replica.taken});
  }
  for (const StreamRange& hole : holes()) words.insert(words.end(), {hole.first, hole.count});
  return words;
}

namespace {

constexpr std::size_t kHead = 3, kOfReplica = 4;  // words of a state, before its holes

[[noreturn]] void refuse(const char* why) {
  throw Error(ExitCode::Storage, fmt::format("the task book of the checkpoint cannot be read: {}; resume from an older "
                                             "checkpoint",
                                             why));
}

}  // namespace

std::vector<StreamRange> holes_of(std::span<const std::int64_t> state) {
  std::vector<StreamRange> holes;
  if (state.size() < kHead || state[0] != kStateVersion || state[2] < 1) return holes;
  if (state[2] > static_cast<std::int64_t>(state.size() / kOfReplica)) return holes;
  for (std::size_t i = kHead + kOfReplica * static_cast<std::size_t>(state[2]); i + 1 < state.size(); i += 2) {
    holes.push_back({state[i], state[i + 1]});
  }
  return holes;
}

void TaskBook::restore(std::int64_t step, std::span<const std::int64_t> words) {
  *this = TaskBook(settings_);
  cursor_ = epoch_end_ = open_end_ = open_ = allowed_ = counted_ = used_ = step * step_samples();
  if (words.empty()) return;
  if (words.size() < kHead || words[0] != kStateVersion) refuse("it is of another version");
  const std::int64_t replicas = words[2];
  if (replicas < 1 || replicas > static_cast<std::int64_t>(words.size() / kOfReplica)) refuse("it ends too early");
  const std::size_t begin = kHead + kOfReplica * static_cast<std::size_t>(replicas);
  if (words.size() < begin || (words.size() - begin) % 2 != 0) refuse("it ends too early");
  if (words[1] < 0) refuse("it has begun fewer than no tasks");
  std::int64_t at = 0;
  for (std::size_t i = begin; i < words.size(); i += 2) {
    const StreamRange hole{words[i], words[i + 1]};
    // All that counts lies around the holes, so none of them begins behind it.
    if (hole.first < at || hole.count < 1 || hole.first > cursor_ || hole.count > kMostSamples) {
      refuse("its ranges of samples contradict the step");
    }
    if (hole.count % settings_.batch_samples != 0) {
      throw Error(
          ExitCode::Usage,
          fmt::format("the run was stopped with {} samples left out that begin at {}, which are no whole number of "
                      "batches of {}; go on with the parallel.data that it had",
                      hole.count, hole.first, settings_.batch_samples));
    }
    at = hole.end();
    cursor_ += hole.count;
    pool_.push_back(hole);
  }
  for (std::size_t r = 0; r < replicas_.size() && static_cast<std::int64_t>(r) < replicas; ++r) {
    const auto of = words.subspan(kHead + kOfReplica * r, kOfReplica);
    replicas_[r].batches = of[0];
    replicas_[r].samples = of[1];
    replicas_[r].dropped = of[2];
    replicas_[r].taken = of[3];
  }
  tasks_ = words[1];
  epoch_end_ = open_end_ = cursor_;
  if (pool_.empty()) return;
  const std::int64_t end = (pool_.front().first / settings_.epoch_samples + 1) * settings_.epoch_samples;
  if (end > cursor_) epoch_end_ += batches_of(end - cursor_) * settings_.batch_samples;
}

TaskRow TaskBook::row(int number) const {
  const Replica& replica = replicas_[static_cast<std::size_t>(number)];
  TaskRow row;
  if (replica.hand) {
    row.batch = replica.hand->batch;
    row.again = replica.hand->again;
  }
  row.left = batches_of(replica.lease.count);
  row.batches = replica.batches;
  row.samples = replica.samples;
  row.dropped = replica.dropped;
  row.taken = replica.taken;
  row.samples_per_second = replica.seconds_per_sample > 0 ? 1 / replica.seconds_per_sample : 0;
  return row;
}

}  // namespace trainer::runtime
