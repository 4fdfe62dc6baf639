#include "trainer/runtime/tensor_group.hpp"

#include <algorithm>

#include "trainer/core/error.hpp"
#include "trainer/core/shape.hpp"
#include "trainer/ops/sum.hpp"

namespace trainer::runtime {

namespace {

constexpr std::uint64_t kBuffers = 2;
enum Channel { kParts, kStretches, kChannels };  // what a rank has finished of its last sum

std::size_t buffer_bytes(std::int64_t elements) { return align_up(static_cast<std::size_t>(elements) * sizeof(float)); }

// With two ranks, each reading both parts costs as little as trading halves of the sum, and a wait less.
bool by_stretches(int ranks) { return ranks > 2; }

}  // namespace

TensorGroup::TensorGroup(comm::Communicator& ranks, std::int64_t most_elements, ActionLog* log)
    : ranks_(ranks), most_elements_(most_elements), terms_(static_cast<std::size_t>(ranks.size())), log_(log) {
  if (size() == 1 || most_elements == 0) return;
  memory_ = ranks.share(kBuffers * buffer_bytes(most_elements), kChannels);
  if (comm::covers(memory_.get(), size())) return;
  memory_ = nullptr;
  staging_ = Buffer(buffer_bytes(most_elements));
}

void TensorGroup::book(std::int64_t elements) {
  if (size() == 1) return;
  if (elements > most_elements_) internal_error("a sum over tensor ranks is larger than the largest that was planned");
  if (memory_ || channels_.contains(elements)) return;
  channels_.emplace(elements, ranks_.make_all_reduce(staging_.f32(), elements));
}

float* TensorGroup::part_of(int rank) const {
  return reinterpret_cast<float*>(memory_->part(rank) + (sequence_ % kBuffers) * buffer_bytes(most_elements_));
}

float* TensorGroup::partial() {
  if (active_) internal_error("two sums over tensor ranks at a time");
  return memory_ ? part_of(ranks_.rank()) : staging_.f32();
}

void TensorGroup::start(std::int64_t elements) {
  if (active_) internal_error("two sums over tensor ranks at a time");
  active_ = true;
  elements_ = elements;
  if (!memory_) return channels_.at(elements)->start();
  for (int r = 0; r < size(); ++r) terms_[static_cast<std::size_t>(r)] = part_of(r);
  stretch_done_ = false;
  memory_->post(kParts, ++sequence_);
}

bool TensorGroup::all_reached(int channel) {
  for (int r = 0; r < size(); ++r) {
    if (!memory_->reached(r, channel, sequence_)) return false;
  }
  return true;
}

void TensorGroup::wait_for_all(int channel) {
  const auto poll = [this, channel] { return all_reached(channel); };
  const ActivitySpan span(log_, Activity::TensorSum);
  comm::wait_until(std::ref(poll), {"a sum over tensor ranks", -1, elements_});
}

void TensorGroup::sum_own_stretch(ThreadPool& pool) {
  const Range mine = split_range(elements_, size(), ranks_.rank());
  std::vector<const float*>& terms = terms_;
  for (const float*& term : terms) term += mine.begin;
  auto* const own = const_cast<float*>(terms[static_cast<std::size_t>(ranks_.rank())]);
  ops::sum_terms(pool, terms, own, mine.size(), false);
  for (const float*& term : terms) term -= mine.begin;
  memory_->post(kStretches, sequence_);
  stretch_done_ = true;
}

void TensorGroup::finish_shared(ThreadPool& pool, float* to, bool accumulate) {
  wait_for_all(kParts);
  if (!by_stretches(size())) return ops::sum_terms(pool, terms_, to, elements_, accumulate);
  if (!stretch_done_) sum_own_stretch(pool);
  wait_for_all(kStretches);
  for (int r = 0; r < size(); ++r) {
    const Range theirs = split_range(elements_, size(), r);
    const float* const sum = terms_[static_cast<std::size_t>(r)] + theirs.begin;
    ops::sum_terms(pool, {&sum, 1}, to + theirs.begin, theirs.size(), accumulate);
  }
}

void TensorGroup::finish(ThreadPool& pool, float* to, bool accumulate) {
  if (!active_) return;
  if (memory_) {
    finish_shared(pool, to, accumulate);
  } else {
    {
      const ActivitySpan span(log_, Activity::TensorSum);
      comm::wait(*channels_.at(elements_), {"a sum over tensor ranks", -1, elements_});
    }
    const float* const sum = staging_.f32();
    ops::sum_terms(pool, {&sum, 1}, to, elements_, accumulate);
  }
  active_ = false;
}

void TensorGroup::progress(ThreadPool& pool) {
  if (!active_) return;
  if (!memory_) {
    channels_.at(elements_)->test();
  } else if (by_stretches(size()) && !stretch_done_ && all_reached(kParts)) {
    sum_own_stretch(pool);
  }
}

ReductionMemory reduction_memory(const std::vector<std::int64_t>& sizes, int ranks, bool shared) {
  if (ranks == 1 || sizes.empty()) return {};
  const std::size_t largest = buffer_bytes(*std::max_element(sizes.begin(), sizes.end()));
  ReductionMemory memory;
  if (shared) {
    memory.own = kBuffers * largest;
    // All of the other's part, or one stretch of each that is added here and one that is read.
    const auto others = static_cast<std::size_t>(ranks - 1);
    memory.neighbours = by_stretches(ranks) ? others * memory.own * 2 / static_cast<std::size_t>(ranks) : memory.own;
    return memory;
  }
  memory.own = largest;
  for (const std::int64_t size : sizes) memory.own += comm::Communicator::all_reduce_extra_bytes(size, ranks);
  return memory;
}

}  // namespace trainer::runtime
