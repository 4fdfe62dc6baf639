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

// Ascending, apart, those that touch joined.
std::vector<SampleRange> joined(std::vector<SampleRange> ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<SampleRange> all;
  for (const SampleRange& range : ranges) {
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
  allowed_ = settings_.total_samples;
}

std::int64_t TaskBook::batches_of(std::int64_t samples) const {
  return (samples + settings_.batch_samples - 1) / settings_.batch_samples;
}

std::int64_t TaskBook::epoch() const {
  return 1 + (epoch_end_ == 0 ? 0 : (epoch_end_ - 1) / settings_.epoch_samples);
}

// Of the epoch, whoever has leased it.
std::int64_t TaskBook::unstarted() const {
  std::int64_t samples = epoch_end_ - cursor_;
  for (const SampleRange& range : pool_) samples += range.count;
  for (const Replica& replica : replicas_) samples += replica.lease.count;
  return samples;
}

// Whole batches from where the last epoch's ended, the last of them with this epoch's last sample.
void TaskBook::begin_epoch() {
  const std::int64_t samples = settings_.epoch_samples;
  const std::int64_t end = (cursor_ / samples + 1) * samples;
  epoch_end_ = std::min(cursor_ + batches_of(end - cursor_) * settings_.batch_samples, settings_.total_samples);
}

// One that is late already is expected to need as long again as it is late.
double TaskBook::expected_end(const Replica& replica, double now) const {
  const auto samples = static_cast<double>(replica.hand->batch.samples.count);
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
    made += static_cast<std::int64_t>(std::min(batches, static_cast<double>(batches_of(left)))) *
            settings_.batch_samples;
  }
  return made >= left;
}

bool TaskBook::find_lease(Replica& asking, double now) {
  const std::int64_t most = settings_.task_batches * settings_.batch_samples;
  if (!pool_.empty()) {
    SampleRange& range = pool_.front();
    asking.lease = {range.first, std::min(range.count, most)};
    range = {range.first + asking.lease.count, range.count - asking.lease.count};
    if (range.count == 0) pool_.erase(pool_.begin());
    asking.task = ++tasks_;
    return true;
  }
  if (cursor_ < epoch_end_) {
    asking.lease = {cursor_, std::min(epoch_end_ - cursor_, most)};
    cursor_ = asking.lease.end();
    asking.task = ++tasks_;
    return true;
  }
  return take_over(asking, now);
}

// From the end of the lease that would be done last: so many batches that both would be done at the same time.
bool TaskBook::take_over(Replica& asking, double now) {
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
  if (last == nullptr) return false;
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
  return true;
}

std::optional<TaskBatch> TaskBook::second_hand(Replica& asking, double now) {
  if (asking.seconds_per_sample == 0) return std::nullopt;
  Replica* last = nullptr;
  double last_end = 0;
  for (Replica& other : replicas_) {
    if (!other.hand || other.hand->lost || twin_of(other) != nullptr) continue;
    const double end = expected_end(other, now);
    const double mine = now + asking.seconds_per_sample * static_cast<double>(other.hand->batch.samples.count);
    if (mine >= end || (last != nullptr && end <= last_end)) continue;
    last = &other;
    last_end = end;
  }
  if (last == nullptr) return std::nullopt;
  TaskBatch batch = last->hand->batch;
  batch.again = true;
  asking.hand = InHand{batch, now, false};
  return batch;
}

TaskBook::InHand* TaskBook::twin_of(const Replica& replica) {
  for (Replica& other : replicas_) {
    if (&other == &replica || !other.hand || other.hand->lost) continue;
    if (other.hand->batch.samples == replica.hand->batch.samples) return &*other.hand;
  }
  return nullptr;
}

std::optional<TaskBatch> TaskBook::next(std::int64_t number, double now) {
  Replica& replica = at(number);
  if (replica.hand) internal_error("a batch for a replica that has one in hand");
  if (finished()) return std::nullopt;
  if (cursor_ == epoch_end_ && counted_ == cursor_) begin_epoch();
  if (unstarted() == 0) return second_hand(replica, now);
  if (used_ >= allowed_ || better_without(replica, now)) return std::nullopt;
  if (replica.lease.count == 0 && !find_lease(replica, now)) internal_error("unstarted samples that nobody has");
  SampleRange& lease = replica.lease;
  const TaskBatch batch{
      replica.task, {lease.first, std::min({settings_.batch_samples, lease.count, allowed_ - used_})}, false};
  lease = {lease.first + batch.samples.count, lease.count - batch.samples.count};
  used_ += batch.samples.count;
  replica.hand = InHand{batch, now, false};
  return batch;
}

bool TaskBook::commit(std::int64_t number, double now) {
  Replica& replica = at(number);
  if (!replica.hand) internal_error("a report of a replica that has no batch in hand");
  const InHand hand = *replica.hand;
  const auto samples = static_cast<double>(hand.batch.samples.count);
  const double pace = std::max(1e-9, now - hand.since) / samples;
  double& known = replica.seconds_per_sample;
  known = known == 0 ? pace : (1 - kNewShare) * known + kNewShare * pace;
  if (hand.lost) {
    ++replica.dropped;
  } else {
    if (InHand* twin = twin_of(replica)) twin->lost = true;
    counted_ += hand.batch.samples.count;
    ++replica.batches;
    replica.samples += hand.batch.samples.count;
  }
  replica.hand.reset();
  return !hand.lost;
}

void TaskBook::forget(std::int64_t number) {
  Replica& replica = at(number);
  if (!replica.hand) return;
  const InHand hand = *replica.hand;
  const bool alone = !hand.lost && twin_of(replica) == nullptr;
  replica.hand.reset();
  if (!alone) return;
  used_ -= hand.batch.samples.count;
  pool_.push_back(hand.batch.samples);
  pool_ = joined(std::move(pool_));
}

std::vector<SampleRange> TaskBook::holes() const {
  std::vector<SampleRange> ranges = pool_;
  for (const Replica& replica : replicas_) {
    ranges.push_back(replica.lease);
    if (!replica.hand || replica.hand->lost) continue;
    const auto same = [&](const SampleRange& range) { return range == replica.hand->batch.samples; };
    if (std::none_of(ranges.begin(), ranges.end(), same)) ranges.push_back(replica.hand->batch.samples);
  }
  ranges = joined(std::move(ranges));
  // What lies just before the cursor may as well not have been leased, but the end of the epoch stays where it is.
  return ranges;
}

std::vector<std::int64_t> TaskBook::state() const {
  std::vector<std::int64_t> words{kStateVersion, tasks_, cursor_, epoch_end_, settings_.replicas};
  for (const Replica& replica : replicas_) {
    words.insert(words.end(), {replica.batches, replica.samples, replica.dropped, replica.taken});
  }
  for (const SampleRange& range : holes()) words.insert(words.end(), {range.first, range.count});
  return words;
}

TaskBook TaskBook::restored(const TaskSettings& settings, std::span<const std::int64_t> words) {
  const auto refuse = [&](const char* why) {
    throw Error(ExitCode::Storage, fmt::format("the task book of the checkpoint cannot be read ({}): resume from an "
                                               "older checkpoint, or without parallel.tasks",
                                               why));
  };
  constexpr std::size_t kHead = 5, kOfReplica = 4;
  if (words.size() < kHead || words[0] != kStateVersion) refuse("it is of another version");
  const std::int64_t replicas = words[4];
  if (replicas < 1 || replicas > static_cast<std::int64_t>(words.size() / kOfReplica)) refuse("it ends too early");
  const std::size_t begin = kHead + kOfReplica * static_cast<std::size_t>(replicas);
  if (words.size() < begin || (words.size() - begin) % 2 != 0) refuse("it ends too early");
  TaskBook book(settings);
  book.tasks_ = words[1];
  book.cursor_ = words[2];
  book.epoch_end_ = words[3];
  if (book.tasks_ < 0 || book.cursor_ < 0 || book.epoch_end_ < book.cursor_) refuse("its counts contradict each other");
  for (std::size_t r = 0; r < book.replicas_.size() && static_cast<std::int64_t>(r) < replicas; ++r) {
    const auto of = words.subspan(kHead + kOfReplica * r, kOfReplica);
    Replica& replica = book.replicas_[r];
    replica.batches = of[0];
    replica.samples = of[1];
    replica.dropped = of[2];
    replica.taken = of[3];
  }
  book.counted_ = book.cursor_;
  std::int64_t at = 0;
  for (std::size_t i = begin; i < words.size(); i += 2) {
    const SampleRange range{words[i], words[i + 1]};
    if (range.first < at || range.count < 1 || range.count > book.cursor_ || range.end() > book.cursor_) {
      refuse("its ranges of samples overlap");
    }
    at = range.end();
    book.pool_.push_back(range);
    book.counted_ -= range.count;
  }
  book.used_ = book.counted_;
  // A run that is to be longer or shorter than it was.
  if (book.cursor_ < book.epoch_end_) book.epoch_end_ = std::min(book.epoch_end_, std::max(book.cursor_, settings.total_samples));
  return book;
}

std::vector<TaskRow> TaskBook::table() const {
  std::vector<TaskRow> rows;
  for (const Replica& replica : replicas_) {
    TaskRow row;
    if (replica.hand) {
      row.batch = replica.hand->batch;
      row.since = replica.hand->since;
    }
    row.left = batches_of(replica.lease.count);
    row.batches = replica.batches;
    row.samples = replica.samples;
    row.dropped = replica.dropped;
    row.taken = replica.taken;
    row.samples_per_second = replica.seconds_per_sample > 0 ? 1 / replica.seconds_per_sample : 0;
    rows.push_back(row);
  }
  return rows;
}

}  // namespace trainer::runtime
