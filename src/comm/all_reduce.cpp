// The all-reduce of every communicator: point-to-point transfers and a sum in ascending rank order.
#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

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

namespace {

constexpr std::int64_t kPieceElements = 256 * 1024;        // 1 MiB: what is received for one piece, about
constexpr std::int64_t kSmallestChunkElements = 8 * 1024;  // with many ranks messages still fill 32 KiB
constexpr std::int64_t kOneRoundElements = 1024;           // below, a second round costs more than more bytes
constexpr std::int64_t kPieces = 2;                        // in flight
constexpr std::int64_t kSumBlock = 1024;                   // elements; stays in the first-level cache
constexpr std::int64_t kSumPerTest = 64 * 1024;            // elements read, about, in one test()

// How `count` elements go through; a function of (count, ranks) alone, so all ranks cut alike.
struct Layout {
  bool one_round = false;  // everybody receives everything and sums all of it
  std::int64_t pieces = 0;
  std::int64_t slots = 0;           // pieces in flight, each with receive memory and tags of its own
  std::int64_t chunk_elements = 0;  // the most that one rank receives from another for one piece, before the sum
  std::int64_t chunk_stride = 0;    // the same, rounded up to whole cache lines

  Layout(std::int64_t count, int ranks) {
    if (ranks == 1 || count == 0) return;
    one_round = ranks == 2 || count <= kOneRoundElements;
    const std::int64_t piece = std::max(kPieceElements, kSmallestChunkElements * ranks);
    pieces = (count + piece - 1) / piece;
    slots = std::min(pieces, kPieces);
    const std::int64_t longest = (count + pieces - 1) / pieces;
    chunk_elements = one_round ? longest : (longest + ranks - 1) / ranks;
    chunk_stride =
        static_cast<std::int64_t>(align_up(static_cast<std::size_t>(chunk_elements) * sizeof(float)) / sizeof(float));
  }

  std::int64_t slot_elements(int ranks) const { return chunk_stride * (ranks - 1); }
  int tags() const { return static_cast<int>(slots * (one_round ? 1 : 2)); }
};

void add(float* __restrict total, const float* __restrict values, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) total[i] += values[i];
}

void add_two(float* __restrict total, const float* __restrict a, const float* __restrict b, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) total[i] = a[i] + b[i];
}

// target[i] = sources[0][i] + sources[1][i] + ..., for i in [begin, end). `target` may be one of the sources.
void sum_in_rank_order(const std::vector<const float*>& sources, float* target, std::int64_t begin, std::int64_t end) {
  alignas(64) float total[kSumBlock];
  for (std::int64_t i = begin; i < end; i += kSumBlock) {
    const std::int64_t length = std::min(kSumBlock, end - i);
    add_two(total, sources[0] + i, sources[1] + i, length);
    for (std::size_t r = 2; r < sources.size(); ++r) add(total, sources[r] + i, length);
    std::memcpy(target + i, total, static_cast<std::size_t>(length) * sizeof(float));
  }
}

// Transfers in the order in which they are awaited; `done` of them are known to be complete.
struct TransferList {
  std::vector<std::unique_ptr<Transfer>> transfers;
  std::size_t done = 0;

  void start() {
    for (auto& t : transfers) t->start();
  }
  // Advances past complete transfers, at most to `limit`; true when all are complete.
  bool test(std::size_t limit) {
    while (done < limit && transfers[done]->test()) ++done;
    return done == transfers.size();
  }
  bool test() { return test(transfers.size()); }
};

// One piece of the buffer on its way: collect → sum → hand out (the last not in one round).
class Piece {
 public:
  struct Where {
    float* data = nullptr;  // of the whole buffer
    Range range;            // of this piece in it
    float* received = nullptr;
    std::int64_t stride = 0;  // between what two ranks sent
    int collect_tag = 0;
    int hand_out_tag = 0;
  };

  Piece(Communicator& comm, const Where& where, bool one_round) : one_round_(one_round) {
    const int ranks = comm.size();
    const int me = comm.rank();
    sources_.resize(static_cast<std::size_t>(ranks));
    const Range mine = chunk(where.range, ranks, me);
    target_ = where.data + mine.begin;
    length_ = mine.size();
    sources_[static_cast<std::size_t>(me)] = target_;
    for (int step = 1; step < ranks; ++step) {
      const int to = (me + step) % ranks;
      const int from = (me + ranks - step) % ranks;
      float* const slot = where.received + where.stride * (step - 1);
      sources_[static_cast<std::size_t>(from)] = slot;
      const Range theirs = chunk(where.range, ranks, to);
      // Posted in the same order as collect_sends_: what is sent away from here comes back as a sum to the same place.
      float* const their_data = where.data + theirs.begin;
      collect_receives_.transfers.push_back(comm.make_receive(slot, bytes(mine), from, where.collect_tag));
      collect_sends_.transfers.push_back(comm.make_send(their_data, bytes(theirs), to, where.collect_tag));
      if (one_round) continue;
      hand_out_receives_.transfers.push_back(comm.make_receive(their_data, bytes(theirs), to, where.hand_out_tag));
      hand_out_sends_.transfers.push_back(comm.make_send(target_, bytes(mine), to, where.hand_out_tag));
    }
  }

  void start() {
    for (TransferList* list : {&collect_receives_, &collect_sends_, &hand_out_receives_, &hand_out_sends_}) {
      list->done = 0;
    }
    summed_ = 0;
    handing_out_ = false;
    collect_receives_.start();
    collect_sends_.start();
  }

  // True when the sum is in place here and nothing of this piece is in flight. Takes what it sums from `budget`.
  bool test(std::int64_t& budget) {
    const bool sent = test_collect_sends();
    const bool received = collect_receives_.test();
    if (!received || (one_round_ && !sent)) return false;  // in one round the target is what is being sent
    if (!sum(budget)) return false;
    if (!handing_out_) hand_out_sends_.start();
    handing_out_ = true;
    const bool handed_out = hand_out_sends_.test();
    const bool complete = one_round_ || hand_out_receives_.test(collect_sends_.done);
    return sent && handed_out && complete;
  }

 private:
  Range chunk(const Range& piece, int ranks, int rank) const {
    if (one_round_) return piece;
    const Range part = split_range(piece.size(), ranks, rank);
    return {piece.begin + part.begin, piece.begin + part.end};
  }
  static std::size_t bytes(const Range& range) { return static_cast<std::size_t>(range.size()) * sizeof(float); }

  // A sum may come back into memory only when that memory has been sent.
  bool test_collect_sends() {
    const std::size_t before = collect_sends_.done;
    const bool all = collect_sends_.test();
    if (one_round_) return all;
    for (std::size_t i = before; i < collect_sends_.done; ++i) hand_out_receives_.transfers[i]->start();
    return all;
  }

  bool sum(std::int64_t& budget) {
    if (summed_ == length_) return true;
    const auto ranks = static_cast<std::int64_t>(sources_.size());
    const std::int64_t part = std::min((budget / ranks + kSumBlock - 1) / kSumBlock * kSumBlock, length_ - summed_);
    sum_in_rank_order(sources_, target_, summed_, summed_ + part);
    budget -= part * ranks;
    summed_ += part;
    return summed_ == length_;
  }

  bool one_round_;
  std::vector<const float*> sources_;  // by rank; this rank's own is the target
  float* target_ = nullptr;            // this rank's chunk in the buffer
  std::int64_t length_ = 0;
  std::int64_t summed_ = 0;
  bool handing_out_ = false;
  TransferList collect_receives_;
  TransferList collect_sends_;
  TransferList hand_out_receives_;  // the i-th starts when the i-th collect send is complete
  TransferList hand_out_sends_;
};

class NoAllReduce final : public AllReduce {
 public:
  void start() override {}
  bool test() override { return true; }
};

class RankOrderedAllReduce final : public AllReduce {
 public:
  RankOrderedAllReduce(Communicator& comm, float* data, std::int64_t count, int first_tag,
                       std::shared_ptr<const void> tags)
      : tags_(std::move(tags)), received_(Communicator::all_reduce_extra_bytes(count, comm.size())) {
    const Layout layout(count, comm.size());
    slots_ = static_cast<std::size_t>(layout.slots);
    for (std::int64_t p = 0; p < layout.pieces; ++p) {
      const std::int64_t slot = p % layout.slots;
      Piece::Where where;
      where.data = data;
      where.range = split_range(count, layout.pieces, p);
      where.received = received_.f32() + slot * layout.slot_elements(comm.size());
      where.stride = layout.chunk_stride;
      where.collect_tag = first_tag + static_cast<int>(slot);
      where.hand_out_tag = where.collect_tag + static_cast<int>(layout.slots);
      pieces_.emplace_back(comm, where, layout.one_round);
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
  Buffer received_;
  std::deque<Piece> pieces_;
  std::size_t slots_ = 0;
  // [finished_, started_) are in flight.
  std::size_t finished_ = 0;
  std::size_t started_ = 0;
};

}  // namespace

std::unique_ptr<AllReduce> Communicator::make_all_reduce(float* data, std::int64_t count) {
  const Layout layout(count, size());
  if (layout.pieces == 0) return std::make_unique<NoAllReduce>();
  const int first = all_reduce_tags_->take(layout.tags());
  std::shared_ptr<const void> tags(all_reduce_tags_.get(), [ring = all_reduce_tags_, first, n = layout.tags()](auto*) {
    ring->give_back(first, n);
  });
  return std::make_unique<RankOrderedAllReduce>(*this, data, count, max_tag() + first, std::move(tags));
}

std::size_t Communicator::all_reduce_extra_bytes(std::int64_t count, int ranks) {
  const Layout layout(count, ranks);
  return static_cast<std::size_t>(layout.slots * layout.slot_elements(ranks)) * sizeof(float);
}

std::int64_t Communicator::all_reduce_sent_bytes(std::int64_t count, int ranks, int rank) {
  const Layout layout(count, ranks);
  std::int64_t elements = 0;
  for (std::int64_t p = 0; p < layout.pieces; ++p) {
    const std::int64_t piece = split_range(count, layout.pieces, p).size();
    const std::int64_t mine = layout.one_round ? piece : split_range(piece, ranks, rank).size();
    // Everybody's chunks to their owners, and the sum of the own one to everybody.
    elements += layout.one_round ? piece * (ranks - 1) : piece - mine + mine * (ranks - 1);
  }
  return elements * static_cast<std::int64_t>(sizeof(float));
}

}  // namespace trainer::comm
