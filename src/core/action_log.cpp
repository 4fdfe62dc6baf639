#include "trainer/core/action_log.hpp"

#include <algorithm>
#include <chrono>

#include "trainer/core/error.hpp"

namespace trainer {

namespace {

// In the order of Activity.
constexpr std::array<std::string_view, kActivities> kNames{
    "forward",          "backward",       "backward input", "backward weight", "receive forward",
    "receive backward", "send forward",   "send backward",  "send wait",       "tensor sum",
    "replicas",         "tied gradients", "weights",        "agreement",       "data",
    "optimizer",        "pass",           "step",           "evaluation",      "checkpoint"};

// Shorter waits would fill the log and show nothing.
constexpr std::int64_t kShortestWait = 1000;

bool is_opaque(Activity activity) { return activity == Activity::Evaluation || activity == Activity::Checkpoint; }

bool is_brief_wait(const Span& span) {
  const bool wait = span.activity >= Activity::SendWait && span.activity <= Activity::Weights;
  return wait && span.end - span.begin < kShortestWait;
}

}  // namespace

std::string_view name_of(Activity activity) { return kNames[static_cast<std::size_t>(activity)]; }

std::int64_t steady_nanoseconds() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

ActionLog::ActionLog(std::size_t capacity, std::size_t stages, Clock clock)
    : clock_(clock), ring_(std::max<std::size_t>(1, capacity)), stages_(stages) {}

// The time since the last begin or end belongs to the innermost open span.
void ActionLog::charge(std::int64_t now) {
  if (depth_ > 0) {
    const auto a = static_cast<std::size_t>(open_[depth_ - 1].span.activity);
    times_[a] += now - last_;
  }
  last_ = now;
}

void ActionLog::begin(Activity activity, std::int32_t stage, std::int64_t index) {
  if (depth_ > 0 && open_[depth_ - 1].opaque) {
    ++ignored_;
    return;
  }
  if (depth_ == open_.size()) internal_error("activities enclose each other too deeply");
  const std::int64_t now = clock_();
  charge(now);
  if (activity == Activity::Step) {
    step_begin_ = step_end_ = now;
    keeping_ = last_kept_ == 0 || (index >= first_kept_ && index <= last_kept_);
  }
  open_[depth_++] = {{now, now, index, stage, activity}, is_opaque(activity)};
}

void ActionLog::end() {
  if (ignored_ > 0) {
    --ignored_;
    return;
  }
  if (depth_ == 0) internal_error("an activity ends that has not begun");
  const std::int64_t now = clock_();
  charge(now);
  Span& span = open_[--depth_].span;
  span.end = now;
  if (span.activity == Activity::Step) step_end_ = now;
  if (span.activity == Activity::Pass) pass_nanoseconds_ += now - span.begin;
  if (is_compute(span.activity) && span.stage >= 0) {
    StageSum& sum = stages_[static_cast<std::size_t>(span.stage)];
    const auto a = static_cast<std::size_t>(span.activity);
    sum.nanoseconds[a] += now - span.begin;
    ++sum.count[a];
  }
  if (keeping_ && !is_brief_wait(span)) record(span);
}

void ActionLog::record(const Span& span) {
  ring_[next_] = span;
  if (++next_ == ring_.size()) next_ = 0;
  ++written_;
}

void ActionLog::keep_steps(std::int64_t first, std::int64_t last) {
  first_kept_ = first;
  last_kept_ = last;
  keeping_ = false;
}

std::vector<Span> ActionLog::kept() const {
  std::vector<Span> spans;
  const std::size_t count = std::min(written_, ring_.size());
  spans.reserve(count);
  for (std::size_t i = written_ - count; i < written_; ++i) spans.push_back(ring_[i % ring_.size()]);
  if (written_ > ring_.size()) {
    // The oldest step may lack its beginning.
    const auto is_step = [](const Span& span) { return span.activity == Activity::Step; };
    const auto first = std::find_if(spans.begin(), spans.end(), is_step);
    spans.erase(spans.begin(), first == spans.end() ? first : first + 1);
  }
  return spans;
}

}  // namespace trainer
