// training.recompute = "auto": which segments to compute again so that every rank fits its memory.
#include <fmt/format.h>

#include <algorithm>

#include "trainer/core/error.hpp"
#include "trainer/runtime/recompute.hpp"

namespace trainer::runtime {

namespace {

// Arithmetic that takes as long as the element-wise work on one value, or moving it.
constexpr double kFlopsOfAValue = 100;

// A segment that may be computed again, on top of those listed before it. A whole unit replaces its pieces, which are
// listed before it; it saves what flows between them.
struct Candidate {
  Range nodes;
  double cost = 0;   // floating-point operations of a sample
  double saves = 0;  // bytes
  double price = 0;  // cost for what it saves, a unit's no less than its pieces'
  bool whole = false;
};

class Fit {
 public:
  Fit(RunPlan& plan, int threads, std::size_t data_bytes, const MemoryLimit& limit)
      : plan_(plan), threads_(threads), data_bytes_(data_bytes), limit_(limit) {}

  // Ranks of one place in the pipeline hold the same stages; places decide one after the other.
  void run() {
    std::vector<Range> all;
    for (int place = 0; place < static_cast<int>(plan_.training.ranks.size()); ++place) {
      plan_.recompute.clear();
      const std::vector<Range> mine = decide(place);
      all.insert(all.end(), mine.begin(), mine.end());
    }
    std::sort(all.begin(), all.end(), [](Range a, Range b) { return a.begin < b.begin; });
    plan_.recompute = std::move(all);
  }

 private:
  std::vector<Range> decide(int place) {
    if (fits(place)) return {};
    std::vector<Candidate> candidates;
    for (std::int64_t s = 0; s < plan_.stages(); ++s) {
      if (plan_.training.rank_of_stage[static_cast<std::size_t>(s)] == place) add_candidates(StageId(s), candidates);
    }
    std::stable_sort(candidates.begin(), candidates.end(),
                     [](const Candidate& a, const Candidate& b) { return a.price < b.price; });
    std::vector<bool> chosen(candidates.size(), true);
    if (!fits(place, candidates, chosen)) return segments(candidates, chosen);
    // The shortest beginning of the list that fits, as far as more always saves more.
    std::size_t low = 0, high = candidates.size();
    while (low + 1 < high) {
      const std::size_t middle = (low + high) / 2;
      for (std::size_t i = 0; i < chosen.size(); ++i) chosen[i] = i < middle;
      (fits(place, candidates, chosen) ? high : low) = middle;
    }
    for (std::size_t i = 0; i < chosen.size(); ++i) chosen[i] = i < high;
    leave_out(place, candidates, chosen);
    return segments(candidates, chosen);
  }

  // Tries to do without each, the dearest first; those alike to one that was needed are needed.
  void leave_out(int place, const std::vector<Candidate>& candidates, std::vector<bool>& chosen) {
    std::vector<std::size_t> order;
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      if (chosen[i]) order.push_back(i);
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return candidates[a].cost > candidates[b].cost; });
    const Candidate* needed = nullptr;
    for (const std::size_t i : order) {
      const Candidate& candidate = candidates[i];
      if (needed && needed->cost == candidate.cost && needed->saves == candidate.saves) continue;
      chosen[i] = false;
      if (fits(place, candidates, chosen)) continue;
      chosen[i] = true;
      needed = &candidate;
    }
  }

  void add_candidates(StageId stage, std::vector<Candidate>& candidates) {
    const Range nodes = plan_.nodes(stage);
    const auto inside = [nodes](const model::Unit& unit) {
      return Range{std::max(unit.node_begin, nodes.begin), std::min(unit.node_end, nodes.end)};
    };
    for (const model::Unit& unit : plan_.graph.units) {
      const Range whole = inside(unit);
      if (whole.begin >= whole.end) continue;
      std::vector<Range> pieces;
      for (const model::Unit& piece : plan_.graph.pieces) {
        const Range part = inside(piece);
        if (part.begin >= whole.begin && part.end <= whole.end && part.begin < part.end) pieces.push_back(part);
      }
      double dearest = 0;
      for (const Range piece : pieces) {
        const Candidate candidate = make_candidate(stage, {}, piece, 0);
        if (candidate.saves <= 0) continue;
        dearest = std::max(dearest, candidate.price);
        candidates.push_back(candidate);
      }
      if (pieces.size() < 2) continue;
      Candidate candidate = make_candidate(stage, pieces, whole, dearest);
      candidate.whole = true;
      if (candidate.saves > 0) candidates.push_back(candidate);
    }
  }

  Candidate make_candidate(StageId stage, const std::vector<Range>& before, Range nodes, double least_price) {
    Candidate candidate{.nodes = nodes};
    candidate.saves = kept_bytes(stage, before) - kept_bytes(stage, {nodes});
    candidate.cost = std::max(0.0, recompute_cost(stage, {nodes}) - recompute_cost(stage, before));
    candidate.price = std::max(least_price, candidate.cost / std::max(1.0, candidate.saves));
    return candidate;
  }

  // What the stage keeps between its actions.
  double kept_bytes(StageId stage, const std::vector<Range>& segments) {
    plan_.recompute = segments;
    const plan::LocalGraph local = plan::shard(plan_.graph, plan_.mesh.tensor, 0);
    const StageLayout layout = training_layout(plan_, local, stage, threads_);
    const ArenaLayout arena = lay_out_arena(layout, plan_.training_slots[stage.index()]);
    return static_cast<double>(arena.bytes - layout.bytes[static_cast<std::size_t>(Region::Scratch)]);
  }

  double recompute_cost(StageId stage, const std::vector<Range>& segments) const {
    double cost = 0;
    for (const NodeId id : recomputed_nodes(plan_.graph, plan_.nodes(stage), segments)) {
      const model::Node& node = plan_.graph.nodes[id.index()];
      const model::Value& value = plan_.graph.values[node.output.index()];
      cost += model::cost(node, plan_.graph).forward +
              kFlopsOfAValue * static_cast<double>(value.positions) * static_cast<double>(value.features);
    }
    return cost;
  }

  static std::vector<Range> segments(const std::vector<Candidate>& candidates, const std::vector<bool>& chosen) {
    std::vector<Range> wholes, pieces;
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      if (chosen[i]) (candidates[i].whole ? wholes : pieces).push_back(candidates[i].nodes);
    }
    const auto within = [&](Range piece) {
      return std::any_of(wholes.begin(), wholes.end(),
                         [&](Range whole) { return piece.begin >= whole.begin && piece.end <= whole.end; });
    };
    std::erase_if(pieces, within);
    pieces.insert(pieces.end(), wholes.begin(), wholes.end());
    std::sort(pieces.begin(), pieces.end(), [](Range a, Range b) { return a.begin < b.begin; });
    return pieces;
  }

  bool fits(int place, const std::vector<Candidate>& candidates, const std::vector<bool>& chosen) {
    plan_.recompute = segments(candidates, chosen);
    return fits(place);
  }

  // Replicas and tensor ranks differ by their first and last.
  bool fits(int place) const {
    for (const std::int64_t d : {std::int64_t{0}, plan_.mesh.data - 1}) {
      for (const std::int64_t t : {std::int64_t{0}, plan_.mesh.tensor - 1}) {
        const std::int64_t rank = plan_.mesh.rank({.data = d, .pipeline = place, .tensor = t});
        const MemoryPrediction memory = predict_memory(plan_, rank, threads_, data_bytes_);
        if ((limit_.own ? memory.own() : memory.total()) > limit_.bytes) return false;
        if (plan_.mesh.tensor == 1) break;
      }
      if (plan_.mesh.data == 1) break;
    }
    return true;
  }

  RunPlan& plan_;
  const int threads_;
  const std::size_t data_bytes_;
  const MemoryLimit& limit_;
};

}  // namespace

void fit_recompute(RunPlan& plan, int threads, std::size_t data_bytes, const MemoryLimit& limit) {
  if (plan.config.training.recompute == config::Recompute::Auto) Fit(plan, threads, data_bytes, limit).run();
}

void require_memory_per_rank(const RunPlan& plan, int threads, std::size_t data_bytes) {
  const auto limit = static_cast<std::size_t>(plan.config.parallel.memory_per_rank);
  if (limit == 0) return;
  std::size_t most = 0;
  std::int64_t largest = 0;
  for (std::int64_t rank = 0; rank < plan.mesh.size(); ++rank) {
    const std::size_t needed = predict_memory(plan, rank, threads, data_bytes).total();
    if (needed <= most) continue;
    most = needed;
    largest = rank;
  }
  if (most <= limit) return;
  using config::Recompute;
  const Recompute recompute = plan.config.training.recompute;
  constexpr double kMiB = 0x1p20;
  throw Error(
      ExitCode::Usage,
      fmt::format("parallel.memory_per_rank: is {:.1f} MiB, but rank {} is predicted to need {:.1f} MiB{}; {}more "
                  "micro-batches, or more pipeline or tensor ranks would need less",
                  static_cast<double>(limit) / kMiB, largest, static_cast<double>(most) / kMiB,
                  recompute == Recompute::Auto ? " with every layer computed again that saves memory" : "",
                  recompute == Recompute::None ? "training.recompute = \"auto\", " : ""));
}

}  // namespace trainer::runtime
