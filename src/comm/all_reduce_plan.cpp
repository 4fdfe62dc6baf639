#include "all_reduce_plan.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "trainer/core/error.hpp"
#include "trainer/core/shape.hpp"

namespace trainer::comm {

namespace {

constexpr std::int64_t kPieceElements = 256 * 1024;        // 1 MiB: what is received for one piece, about
constexpr std::int64_t kSmallestChunkElements = 8 * 1024;  // with many ranks messages still fill 32 KiB
constexpr std::int64_t kOneRoundElements = 1024;           // below, a second round costs more than more bytes
constexpr std::int64_t kPieces = 2;                        // in flight
// Pieces that pass through several ranks one after the other are small, and many are in flight, so that all links work.
constexpr std::int64_t kPassedElements = 64 * 1024;
constexpr std::int64_t kSmallestPassedElements = 8 * 1024;
constexpr std::int64_t kMostPassed = 16;
constexpr std::int64_t kRingElements = 64 * 1024;  // below, Automatic takes no ring
constexpr std::int64_t kCacheLine = 64;

using Queue = std::size_t;
using Ranks = std::vector<int>;

std::int64_t lines(std::int64_t elements, std::int64_t bytes) {
  const std::int64_t line = kCacheLine / bytes;
  return (elements + line - 1) / line * line;
}

Range part_of(Range range, std::size_t parts, std::size_t index) {
  const Range part = split_range(range.size(), static_cast<std::int64_t>(parts), static_cast<std::int64_t>(index));
  return {range.begin + part.begin, range.begin + part.end};
}

class Builder {
 public:
  Builder(Wire wire, std::int64_t count, int rank) : wire_(wire), count_(count), rank_(rank) {
    if (rounds()) mirror_ = wires(count);
  }

  PiecePlan take() { return std::move(plan_); }
  bool rounds() const { return wire_ == Wire::BFloat16; }
  int rank() const { return rank_; }
  Range whole() const { return {0, count_}; }

  Queue queue() {
    plan_.queues.emplace_back();
    return plan_.queues.size() - 1;
  }
  After all(Queue queue) const { return {queue, plan_.queues[queue].size()}; }

  static Place data(Range range) { return {Place::In::Data, range.begin}; }
  /// Where a stretch of the piece lies as it travels: the data, or their rounded mirror.
  Place travelling(Range range) const { return rounds() ? Place{Place::In::Wire, mirror_ + range.begin} : data(range); }
  /// Staging for a stretch that is received.
  Place staging(std::int64_t count, bool rounded) {
    return rounded ? Place{Place::In::Wire, wires(count)} : Place{Place::In::Floats, floats(count)};
  }

  void send(Queue queue, Place from, Range range, int peer, int phase, std::vector<After> after = {}) {
    add(queue, {Step::Kind::Send, from, range.size(), peer, phase, {}, std::move(after)});
  }
  /// Of pieces that are passed on: side by side on one link they would all arrive at its end.
  void pass(Queue queue, int peer, int phase, std::vector<After> after) {
    send(queue, travelling(whole()), whole(), peer, phase, std::move(after));
    plan_.queues[queue].back().in_turn = true;
  }
  void receive(Queue queue, Place to, Range range, int peer, int phase, std::vector<After> after = {}) {
    add(queue, {Step::Kind::Receive, to, range.size(), peer, phase, {}, std::move(after)});
  }
  void sum(Queue queue, Range range, std::vector<Place> sources, std::vector<After> after) {
    add(queue, {Step::Kind::Sum, data(range), range.size(), -1, 0, std::move(sources), std::move(after)});
  }
  /// Makes data travel: rounds them into the mirror. Nothing where they travel as they are.
  void round(Queue queue, Range range, std::vector<After> after) {
    if (!rounds()) return;
    add(queue, {Step::Kind::Round, travelling(range), range.size(), -1, 0, {data(range)}, std::move(after)});
  }
  /// Takes what has travelled into the data. Nothing where it has come there.
  void widen(Queue queue, Range range, std::vector<After> after) {
    if (rounds()) sum(queue, range, {travelling(range)}, std::move(after));
  }

 private:
  void add(Queue queue, Step step) { plan_.queues[queue].push_back(std::move(step)); }
  std::int64_t floats(std::int64_t count) {
    const std::int64_t at = plan_.floats;
    plan_.floats += lines(count, 4);
    return at;
  }
  std::int64_t wires(std::int64_t count) {
    const std::int64_t at = plan_.wires;
    plan_.wires += lines(count, 2);
    return at;
  }

  PiecePlan plan_;
  Wire wire_;
  std::int64_t count_;
  int rank_;
  std::int64_t mirror_ = 0;
};

std::size_t place_in(const Ranks& group, int rank) {
  return static_cast<std::size_t>(std::find(group.begin(), group.end(), rank) - group.begin());
}

// The sum over `group`, added in its order, of a stretch of the data that is final when `ready`; `rank` is one of it.
// Takes two phases from `phase`. Complete after what is returned.
std::vector<After> direct(Builder& b, const Ranks& group, Range range, bool one_round, int phase,
                          const std::vector<After>& ready) {
  const std::size_t ranks = group.size();
  const std::size_t me = place_in(group, b.rank());
  const auto part = [&](std::size_t index) { return one_round ? range : part_of(range, ranks, index); };
  const Range mine = part(me);
  const bool round_result = b.rounds() && ranks > 2;  // also in one round: bits depend on the ranks alone
  const Queue rounding = b.queue(), receives = b.queue(), sends = b.queue(), summing = b.queue();
  b.round(rounding, range, ready);
  std::vector<After> can_send = ready;
  if (b.rounds()) can_send = {b.all(rounding)};
  std::vector<Place> sources(ranks);
  sources[me] = b.travelling(mine);
  for (std::size_t step = 1; step < ranks; ++step) {
    const std::size_t to = (me + step) % ranks, from = (me + ranks - step) % ranks;
    sources[from] = b.staging(mine.size(), b.rounds());
    b.receive(receives, sources[from], mine, group[from], phase);
    b.send(sends, b.travelling(part(to)), part(to), group[to], phase, can_send);
  }
  std::vector<After> collected = can_send;
  collected.push_back(b.all(receives));
  if (one_round) collected.push_back(b.all(sends));  // the target is what is being sent
  b.sum(summing, mine, std::move(sources), std::move(collected));
  if (round_result) {
    b.round(summing, mine, {});
    b.widen(summing, mine, {});
  }
  if (one_round) return {b.all(summing)};

  const Queue results = b.queue(), hand_outs = b.queue(), widening = b.queue();
  // Sums come back to where addends were sent from, when these have left.
  for (std::size_t step = 1; step < ranks; ++step) {
    const std::size_t to = (me + step) % ranks;
    b.send(hand_outs, b.travelling(mine), mine, group[to], phase + 1, {b.all(summing)});
    b.receive(results, b.travelling(part(to)), part(to), group[to], phase + 1, {{sends, step}});
    b.widen(widening, part(to), {{results, step}});
  }
  return {b.all(hand_outs), b.all(results), b.all(widening)};
}

// Up from rank 0 to the last, each adding its own behind what came, and the sum from there round to the last but one.
void ring(Builder& b, int ranks) {
  const Range all = b.whole();
  const int me = b.rank();
  const bool first = me == 0, last = me == ranks - 1;
  const int before = (me + ranks - 1) % ranks, behind = (me + 1) % ranks;
  const Queue arriving = b.queue(), adding = b.queue(), leaving = b.queue();
  if (!first) {
    const Place came = b.staging(all.size(), b.rounds());
    b.receive(arriving, came, all, before, 0);
    b.sum(adding, all, {came, Builder::data(all)}, {b.all(arriving)});
  }
  b.round(adding, all, {});
  if (last) b.widen(adding, all, {});
  const std::vector<After> added{b.all(adding)};
  b.pass(leaving, behind, last ? 1 : 0, added);
  if (last) return;
  const Queue results = b.queue(), passing = b.queue(), widening = b.queue();
  b.receive(results, b.travelling(all), all, before, 1, {b.all(leaving)});
  if (behind != ranks - 1) b.pass(passing, behind, 1, {b.all(results)});
  b.widen(widening, all, {b.all(results)});
}

// Rank r adds what r + 1, r + 2, r + 4, … send, as long as these bits are not set in r, then sends to r less its lowest
// set bit.
void tree(Builder& b, int ranks) {
  const Range all = b.whole();
  const int me = b.rank();
  const Queue arriving = b.queue(), adding = b.queue(), leaving = b.queue();
  std::vector<int> children;
  int bit = 1;
  for (; bit < ranks && (me & bit) == 0; bit <<= 1) {
    if (me + bit < ranks) children.push_back(me + bit);
  }
  for (const int child : children) {
    const Place came = b.staging(all.size(), b.rounds());
    b.receive(arriving, came, all, child, 0);
    b.sum(adding, all, {Builder::data(all), came}, {b.all(arriving)});
  }
  b.round(adding, all, {});
  const Queue results = b.queue(), handing_down = b.queue(), widening = b.queue();
  std::vector<After> final;
  if (me == 0) {
    b.widen(adding, all, {});
    final = {b.all(adding)};
  } else {
    b.pass(leaving, me - bit, 0, {b.all(adding)});
    b.receive(results, b.travelling(all), all, me - bit, 1, {b.all(leaving)});
    final = {b.all(results)};
    b.widen(widening, all, final);
  }
  std::reverse(children.begin(), children.end());  // the deepest first
  for (const int child : children) b.pass(handing_down, child, 1, final);
}

// [node] its ranks, ascending; nodes in the order of their first ranks.
std::vector<Ranks> ranks_by_node(int ranks, const std::vector<int>& node_of_rank) {
  std::vector<Ranks> nodes;
  for (int r = 0; r < ranks; ++r) {
    const auto node = [&](int rank) { return node_of_rank.empty() ? 0 : node_of_rank[static_cast<std::size_t>(rank)]; };
    const auto same = [&](const Ranks& other) { return node(other.front()) == node(r); };
    const auto found = std::find_if(nodes.begin(), nodes.end(), same);
    if (found == nodes.end()) {
      nodes.push_back({r});
    } else {
      found->push_back(r);
    }
  }
  return nodes;
}

// The j-th rank of each node leads for the j-th stretch, as far as all nodes have one. Phases: 0 within the node, 1 and
// 2 between leaders, 3 within the node.
PiecePlan hierarchy(Wire wire, std::int64_t count, int ranks, int rank, const std::vector<int>& node_of_rank) {
  const std::vector<Ranks> nodes = ranks_by_node(ranks, node_of_rank);
  std::size_t leaders = nodes.front().size();
  for (const Ranks& node : nodes) leaders = std::min(leaders, node.size());
  const auto is_mine = [&](const Ranks& node) { return place_in(node, rank) < node.size(); };
  const Ranks& near = *std::find_if(nodes.begin(), nodes.end(), is_mine);
  const std::size_t me = place_in(near, rank);
  Builder b(wire, count, rank);
  const auto part = [&](std::size_t leader) { return part_of(b.whole(), leaders, leader); };
  const Queue sends = b.queue(), receives = b.queue(), summing = b.queue();
  std::vector<int> sent_to;
  for (std::size_t step = 1; step < near.size(); ++step) {
    const std::size_t to = (me + step) % near.size();
    if (to >= leaders) continue;
    b.send(sends, Builder::data(part(to)), part(to), near[to], 0);
    sent_to.push_back(static_cast<int>(to));
  }
  std::vector<After> summed;
  if (me < leaders) {
    const Range mine = part(me);
    std::vector<Place> sources(near.size());
    sources[me] = Builder::data(mine);
    for (std::size_t step = 1; step < near.size(); ++step) {
      const std::size_t from = (me + near.size() - step) % near.size();
      sources[from] = b.staging(mine.size(), false);
      b.receive(receives, sources[from], mine, near[from], 0);
    }
    if (near.size() > 1) {
      b.sum(summing, mine, std::move(sources), {b.all(receives)});
      summed = {b.all(summing)};
    }
    Ranks group;
    for (const Ranks& node : nodes) group.push_back(node[me]);
    const bool one_round = group.size() == 2 || mine.size() <= kOneRoundElements;
    if (group.size() > 1) summed = direct(b, group, mine, one_round, 1, summed);
  }
  const Queue results = b.queue(), hand_outs = b.queue();
  for (std::size_t i = 0; i < sent_to.size(); ++i) {
    const auto leader = static_cast<std::size_t>(sent_to[i]);
    b.receive(results, Builder::data(part(leader)), part(leader), near[leader], 3, {{sends, i + 1}});
  }
  for (std::size_t step = 1; me < leaders && step < near.size(); ++step) {
    b.send(hand_outs, Builder::data(part(me)), part(me), near[(me + step) % near.size()], 3, summed);
  }
  return b.take();
}

int node_count(const AllReduceOptions& options) {
  const std::set<int> nodes(options.node_of_rank.begin(), options.node_of_rank.end());
  return std::max(1, static_cast<int>(nodes.size()));
}

// Nodes as a ring sees them: every rank one of its own where those of a node do not follow each other.
int nodes_along_ring(int ranks, const AllReduceOptions& options) {
  const std::vector<int>& node = options.node_of_rank;
  int changes = 0;
  for (std::size_t r = 1; r < node.size(); ++r) changes += node[r] != node[r - 1] ? 1 : 0;
  const int nodes = node_count(options);
  return changes == nodes - 1 ? nodes : ranks;
}

}  // namespace

AllReducePlan plan_all_reduce(std::int64_t count, int ranks, const AllReduceOptions& options) {
  AllReducePlan plan;
  plan.algorithm = options.algorithm == AllReduceAlgorithm::Automatic
                       ? choose_all_reduce(count, ranks, nodes_along_ring(ranks, options), options.wire)
                       : options.algorithm;
  plan.wire = options.wire;
  if (ranks == 1 || count == 0) return plan;
  std::int64_t piece = std::max(kPieceElements, kSmallestChunkElements * ranks);
  std::int64_t slots = kPieces;
  plan.phases = 2;
  switch (plan.algorithm) {
    case AllReduceAlgorithm::Ring:
      piece = std::clamp(count / (4 * ranks), kSmallestPassedElements, kPassedElements);
      slots = std::min<std::int64_t>(2 * ranks, kMostPassed);
      break;
    case AllReduceAlgorithm::Tree:
      piece = kPassedElements;
      slots = 4;
      break;
    case AllReduceAlgorithm::Hierarchy:
      plan.phases = 4;
      break;
    default:
      plan.one_round = ranks == 2 || count <= kOneRoundElements;
      if (plan.one_round) plan.phases = 1;
  }
  plan.pieces = (count + piece - 1) / piece;
  plan.slots = std::min(plan.pieces, slots);
  return plan;
}

PiecePlan plan_piece(const AllReducePlan& plan, std::int64_t count, int ranks, int rank,
                     const std::vector<int>& node_of_rank) {
  if (plan.algorithm == AllReduceAlgorithm::Hierarchy) {
    return hierarchy(plan.wire, count, ranks, rank, node_of_rank);
  }
  Builder b(plan.wire, count, rank);
  switch (plan.algorithm) {
    case AllReduceAlgorithm::Direct: {
      Ranks all(static_cast<std::size_t>(ranks));
      std::iota(all.begin(), all.end(), 0);
      direct(b, all, b.whole(), plan.one_round, 0, {});
      break;
    }
    case AllReduceAlgorithm::Ring:
      ring(b, ranks);
      break;
    case AllReduceAlgorithm::Tree:
      tree(b, ranks);
      break;
    default:
      internal_error("an all-reduce that has no messages of ours");
  }
  return b.take();
}

// Measured over TCP hosts (docs/performance.md, "All-reduce"): what a node's link has to carry decides on slow
// networks, and the ring's 2 (n - 1) hops cost more than they save where buffers are small.
AllReduceAlgorithm choose_all_reduce(std::int64_t count, int ranks, int nodes, Wire wire) {
  const std::int64_t direct_leaves = std::int64_t{ranks} * (nodes - 1);  // of a node, in 2 / nodes² of the buffer
  const std::int64_t ring_leaves = std::int64_t{nodes} * nodes;
  const bool ring = wire == Wire::Float32 && count >= kRingElements && direct_leaves > ring_leaves;
  return ring ? AllReduceAlgorithm::Ring : AllReduceAlgorithm::Direct;
}

AllReduceCost all_reduce_cost(std::int64_t count, int ranks, int rank, const AllReduceOptions& options) {
  const AllReducePlan plan = plan_all_reduce(count, ranks, options);
  AllReduceCost cost;
  if (plan.pieces == 0) return cost;
  if (plan.algorithm == AllReduceAlgorithm::Mpi) {
    cost.extra_bytes = static_cast<std::size_t>(count) * sizeof(float);
    cost.sent_bytes = 2 * count * static_cast<std::int64_t>(sizeof(float)) * (ranks - 1) / ranks;
    return cost;
  }
  // Pieces have one of two lengths, the longer ones first.
  const auto sent_by = [&](const PiecePlan& piece) {
    std::int64_t bytes = 0;
    for (const auto& queue : piece.queues) {
      for (const Step& step : queue) {
        if (step.kind == Step::Kind::Send) bytes += step.count * (step.place.in == Place::In::Wire ? 2 : 4);
      }
    }
    return bytes;
  };
  const std::int64_t shorter = count / plan.pieces, longer_pieces = count % plan.pieces;
  const PiecePlan piece = plan_piece(plan, shorter + (longer_pieces > 0 ? 1 : 0), ranks, rank, options.node_of_rank);
  cost.extra_bytes = static_cast<std::size_t>(plan.slots * (piece.floats * 4 + piece.wires * 2));
  if (longer_pieces == 0) {
    cost.sent_bytes = plan.pieces * sent_by(piece);
  } else {
    cost.sent_bytes =
        longer_pieces * sent_by(piece) +
        (plan.pieces - longer_pieces) * sent_by(plan_piece(plan, shorter, ranks, rank, options.node_of_rank));
  }
  return cost;
}

double wire_error_bound(int ranks, const AllReduceOptions& options) {
  if (ranks == 1) return 0;
  constexpr double kFloatUnit = 0x1p-24, kWireUnit = 0x1p-8;
  const int nodes = node_count(options);
  int roundings = ranks == 2 ? 1 : 2;
  switch (options.algorithm) {
    case AllReduceAlgorithm::Ring:
      roundings = ranks;
      break;
    case AllReduceAlgorithm::Tree:
      roundings = 1 + static_cast<int>(std::ceil(std::log2(ranks)));
      break;
    case AllReduceAlgorithm::Hierarchy:
      roundings = nodes == 1 ? 0 : nodes == 2 ? 1 : 2;
      break;
    default:
      break;
  }
  if (options.wire == Wire::Float32) roundings = 0;
  // Each rounding changes what it rounds by a factor of at most 1 + u, each of n − 1 sums by 1 + 2⁻²⁴.
  return std::pow(1 + kWireUnit, roundings) * std::pow(1 + kFloatUnit, ranks - 1) - 1;
}

}  // namespace trainer::comm
