// The all-reduces of every communicator: walks a plan (all_reduce_plan.hpp) of point-to-point transfers and sums.
#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "all_reduce_plan.hpp"
#include "bfloat16.hpp"
#include "trainer/comm/communicator.hpp"
#include "trainer/core/error.hpp"
#include "trainer/core/shape.hpp"
#include "trainer/core/tensor.hpp"

namespace trainer::comm {

// Which of the reserved tags belong to living all-reduces. Handed out round the ring in the order of the collective
// calls, so that all ranks agree without talking.
struct Communicator::TagRing {
  std::vector<char> taken = std::vector<char>(kReservedTags, 0);
  int next = 0;

  int take(int tags) {
    if (next + tags > kReservedTags) next = 0;
    const auto first = taken.begin() + next;
    if (std::any_of(first, first + tags, [](char t) { return t != 0; })) {
      internal_error("more all-reduces of one communicator are alive than it has tags for");
    }
    std::fill(first, first + tags, char{1});
    next += tags;
    return next - tags;
  }

  void give_back(int first, int tags) { std::fill_n(taken.begin() + first, tags, char{0}); }
};

Communicator::Communicator() : all_reduce_tags_(std::make_shared<TagRing>()) {}
Communicator::~Communicator() = default;
std::unique_ptr<AllReduce> Communicator::make_library_all_reduce(float*, std::int64_t) { return nullptr; }

namespace {

constexpr std::int64_t kSumBlock = 1024;         // elements; stays in the first-level cache
constexpr std::int64_t kSumPerTest = 64 * 1024;  // elements read, about, in one test()

void add(float* __restrict total, const float* __restrict values, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) total[i] += values[i];
}

void add_two(float* __restrict total, const float* __restrict a, const float* __restrict b, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) total[i] = a[i] + b[i];
}

void widen(float* __restrict to, const std::uint16_t* __restrict from, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = from_bfloat16(from[i]);
}

void add_widened(float* __restrict total, const std::uint16_t* __restrict values, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) total[i] += from_bfloat16(values[i]);
}

void round_to_wire(std::uint16_t* __restrict to, const float* __restrict from, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = to_bfloat16(from[i]);
}

// A stretch of memory as a step names it.
struct Memory {
  float* floats = nullptr;
  std::uint16_t* wires = nullptr;  // instead, where it is rounded

  void* data() const { return wires != nullptr ? static_cast<void*>(wires) : floats; }
  std::size_t bytes(std::int64_t count) const { return static_cast<std::size_t>(count) * (wires != nullptr ? 2 : 4); }
};

// target[i] = sources[0][i] + sources[1][i] + ..., for i in [begin, end). `target` may be one of the sources.
void sum_in_order(const std::vector<Memory>& sources, float* target, std::int64_t begin, std::int64_t end) {
  alignas(64) float total[kSumBlock];
  for (std::int64_t i = begin; i < end; i += kSumBlock) {
    const std::int64_t length = std::min(kSumBlock, end - i);
    std::size_t next = 1;
    if (sources[0].wires != nullptr) {
      widen(total, sources[0].wires + i, length);
    } else if (sources.size() > 1 && sources[1].wires == nullptr) {
      add_two(total, sources[0].floats + i, sources[1].floats + i, length);
      next = 2;
    } else {
      std::memcpy(total, sources[0].floats + i, static_cast<std::size_t>(length) * sizeof(float));
    }
    for (; next < sources.size(); ++next) {
      const Memory& more = sources[next];
      if (more.wires != nullptr) {
        add_widened(total, more.wires + i, length);
      } else {
        add(total, more.floats + i, length);
      }
    }
    std::memcpy(target + i, total, static_cast<std::size_t>(length) * sizeof(float));
  }
}

// One piece of the buffer on its way.
class Piece {
 public:
  struct Where {
    float* data = nullptr;  // of this piece
    float* floats = nullptr;
    std::uint16_t* wires = nullptr;
    int first_tag = 0;
    int tags_apart = 0;  // between two phases
  };

  /// `two_before`: the piece but one before, or null.
  Piece(Communicator& comm, PiecePlan plan, const Where& where, const Piece* two_before) : two_before_(two_before) {
    for (std::vector<Step>& steps : plan.queues) {
      Queue& queue = queues_.emplace_back();
      for (Step& step : steps) queue.steps.push_back(make_step(comm, std::move(step), where));
    }
  }

  void start() {
    for (Queue& queue : queues_) queue.started = queue.done = 0;
    std::int64_t budget = 0;
    test(budget);
  }

  // True when all steps are complete, so that the sum is in place here and nothing of this piece is in flight. Takes
  // what it sums from `budget`.
  bool test(std::int64_t& budget) {
    bool complete = true;
    for (std::size_t q = 0; q < queues_.size(); ++q) complete &= advance(q, budget);
    return complete;
  }

 private:
  struct MadeStep {
    Step::Kind kind = Step::Kind::Send;
    std::unique_ptr<Transfer> transfer;
    Memory place;
    std::vector<Memory> sources;
    std::int64_t count = 0;
    std::int64_t finished = 0;  // elements of a sum
    std::vector<After> after;
    bool in_turn = false;
  };
  struct Queue {
    std::vector<MadeStep> steps;
    std::size_t started = 0, done = 0;
  };

  static Memory memory_of(Place place, const Where& where) {
    if (place.in == Place::In::Wire) return {nullptr, where.wires + place.at};
    return {(place.in == Place::In::Data ? where.data : where.floats) + place.at, nullptr};
  }

  static MadeStep make_step(Communicator& comm, Step step, const Where& where) {
    MadeStep made;
    made.kind = step.kind;
    made.count = step.count;
    made.place = memory_of(step.place, where);
    made.after = std::move(step.after);
    made.in_turn = step.in_turn;
    for (const Place source : step.sources) made.sources.push_back(memory_of(source, where));
    const int tag = where.first_tag + step.phase * where.tags_apart;
    const std::size_t bytes = made.place.bytes(step.count);
    if (step.kind == Step::Kind::Send) made.transfer = comm.make_send(made.place.data(), bytes, step.peer, tag);
    if (step.kind == Step::Kind::Receive) made.transfer = comm.make_receive(made.place.data(), bytes, step.peer, tag);
    return made;
  }

  bool may_start(std::size_t queue, std::size_t index) const {
    const MadeStep& step = queues_[queue].steps[index];
    // Pieces have the same steps, and begin in order.
    if (step.in_turn && two_before_ != nullptr && two_before_->queues_[queue].done <= index) return false;
    return std::all_of(step.after.begin(), step.after.end(),
                       [&](const After& after) { return queues_[after.queue].done >= after.steps; });
  }

  bool advance(std::size_t q, std::int64_t& budget) {
    Queue& queue = queues_[q];
    while (queue.done < queue.steps.size()) {
      while (queue.started < queue.steps.size() && may_start(q, queue.started)) {
        MadeStep& step = queue.steps[queue.started++];
        step.finished = 0;
        if (step.transfer) step.transfer->start();
      }
      if (queue.done == queue.started || !finish(queue.steps[queue.done], budget)) return false;
      ++queue.done;
    }
    return true;
  }

  static bool finish(MadeStep& step, std::int64_t& budget) {
    if (step.transfer) return step.transfer->test();
    const auto terms = static_cast<std::int64_t>(step.sources.size());
    const std::int64_t affordable = std::max<std::int64_t>(0, (budget / terms + kSumBlock - 1) / kSumBlock * kSumBlock);
    const std::int64_t part = std::min(affordable, step.count - step.finished);
    if (step.kind == Step::Kind::Round) {
      round_to_wire(step.place.wires + step.finished, step.sources.front().floats + step.finished, part);
    } else {
      sum_in_order(step.sources, step.place.floats, step.finished, step.finished + part);
    }
    budget -= part * terms;
    step.finished += part;
    return step.finished == step.count;
  }

  std::vector<Queue> queues_;
  const Piece* two_before_;
};

class NoAllReduce final : public AllReduce {
 public:
  void start() override {}
  bool test() override { return true; }
};

class PlannedAllReduce final : public AllReduce {
 public:
  PlannedAllReduce(Communicator& comm, float* data, std::int64_t count, const AllReducePlan& plan,
                   const std::vector<int>& node_of_rank, int first_tag, std::shared_ptr<const void> tags)
      : tags_(std::move(tags)), slots_(static_cast<std::size_t>(plan.slots)) {
    const auto planned = [&](std::int64_t p) {
      return plan_piece(plan, split_range(count, plan.pieces, p).size(), comm.size(), comm.rank(), node_of_rank);
    };
    const PiecePlan longest = planned(0);
    staging_ = Buffer(slots_ * static_cast<std::size_t>(longest.floats * 4 + longest.wires * 2));
    float* const floats = staging_.f32();
    auto* const wires = reinterpret_cast<std::uint16_t*>(floats + plan.slots * longest.floats);
    for (std::int64_t p = 0; p < plan.pieces; ++p) {
      const std::int64_t slot = p % plan.slots;
      Piece::Where where;
      where.data = data + split_range(count, plan.pieces, p).begin;
      where.floats = floats + slot * longest.floats;
      where.wires = wires + slot * longest.wires;
      where.first_tag = first_tag + static_cast<int>(slot);
      where.tags_apart = static_cast<int>(plan.slots);
      pieces_.emplace_back(comm, planned(p), where, p < 2 ? nullptr : &pieces_[static_cast<std::size_t>(p) - 2]);
    }
    finished_ = started_ = pieces_.size();
  }

  void start() override {
    if (finished_ != pieces_.size()) internal_error("an all-reduce was started before it had finished");
    finished_ = started_ = 0;
    start_pieces();
  }

  bool test() override {
    std::int64_t budget = kSumPerTest;
    for (std::size_t p = finished_; p < started_ && budget > 0; ++p) {
      if (pieces_[p].test(budget) && p == finished_) {
        ++finished_;
        start_pieces();
      }
    }
    return finished_ == pieces_.size();
  }

 private:
  void start_pieces() {
    while (started_ < pieces_.size() && started_ < finished_ + slots_) pieces_[started_++].start();
  }

  std::shared_ptr<const void> tags_;  // gives them back when it dies
  Buffer staging_;
  std::deque<Piece> pieces_;
  std::size_t slots_ = 0;
  // [finished_, started_) are in flight.
  std::size_t finished_ = 0;
  std::size_t started_ = 0;
};

}  // namespace

std::unique_ptr<AllReduce> Communicator::make_all_reduce(float* data, std::int64_t count,
                                                         const AllReduceOptions& options) {
  AllReducePlan plan = plan_all_reduce(count, size(), options);
  if (plan.pieces == 0) return std::make_unique<NoAllReduce>();
  if (plan.algorithm == AllReduceAlgorithm::Mpi) {
    if (plan.wire != Wire::Float32) internal_error("the library's all-reduce has no bfloat16");
    if (auto made = make_library_all_reduce(data, count)) return made;
    plan = plan_all_reduce(count, size(), {});
  }
  const int n = plan.phases * static_cast<int>(plan.slots);
  const int first = all_reduce_tags_->take(n);
  std::shared_ptr<const void> tags(all_reduce_tags_.get(),
                                   [ring = all_reduce_tags_, first, n](auto*) { ring->give_back(first, n); });
  return std::make_unique<PlannedAllReduce>(*this, data, count, plan, options.node_of_rank, max_tag() + first,
                                            std::move(tags));
}

// The lowest rank has the longest stretch to sum, and so the most to receive.
std::size_t Communicator::all_reduce_extra_bytes(std::int64_t count, int ranks) {
  return all_reduce_cost(count, ranks, 0, {}).extra_bytes;
}

std::int64_t Communicator::all_reduce_sent_bytes(std::int64_t count, int ranks, int rank) {
  return all_reduce_cost(count, ranks, rank, {}).sent_bytes;
}

}  // namespace trainer::comm
