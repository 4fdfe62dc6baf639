// training.recompute = "auto": what to compute again so that every rank fits its memory. Each unit of a rank's stages
// has a few ways: keep everything, run some of its pieces again, or run it again as one. The choice of one way a unit
// at the least arithmetic under a bound on memory is a multiple-choice knapsack, except that scratch memory is shared,
// so that what a way saves depends on the others: prices only lead the search, and each step is checked with the
// memory that the plan predicts.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "trainer/core/error.hpp"
#include "trainer/plan/cut.hpp"
#include "trainer/runtime/recompute.hpp"

namespace trainer::runtime {

namespace {

struct Way {
  std::vector<Range> segments;
  double cost = 0;   // recompute_cost
  double saves = 0;  // bytes kept less, scratch not counted

  std::pair<double, double> worth() const { return {cost, saves}; }
};

// A unit, or the part of one that lies in a stage.
struct Choice {
  std::vector<Way> ways;  // the first keeps everything
  std::size_t chosen = 0;
  std::size_t kind = 0;  // choices whose ways are worth the same are of one kind

  const Way& way() const { return ways[chosen]; }
};

struct Step {
  std::size_t choice = 0;
  std::size_t way = 0;
};

class Fit {
 public:
  Fit(RunPlan& plan, int threads, std::size_t data_bytes, const MemoryLimit& limit)
      : plan_(plan), threads_(threads), data_bytes_(data_bytes), limit_(limit) {}

  // Ranks of one place in the pipeline hold the same stages; places decide one after the other.
  void run() {
    std::vector<Range> all;
    for (int place = 0; place < static_cast<int>(plan_.training.ranks.size()); ++place) {
      place_ = place;
      choices_.clear();
      decide();
      for (const Choice& choice : choices_) {
        all.insert(all.end(), choice.way().segments.begin(), choice.way().segments.end());
      }
    }
    std::sort(all.begin(), all.end(), [](Range a, Range b) { return a.begin < b.begin; });
    plan_.recompute = std::move(all);
  }

 private:
  void decide() {
    if (fits()) return;
    for (std::int64_t s = 0; s < plan_.stages(); ++s) {
      if (plan_.training.rank_of_stage[static_cast<std::size_t>(s)] == place_) add_choices(StageId(s));
    }
    number_kinds();
    const std::vector<Step> steps = cheapest_first();
    if (!fits_after(steps, steps.size())) return;
    // The shortest beginning that fits, as far as more always saves more.
    std::size_t low = 0, high = steps.size();
    while (low + 1 < high) {
      const std::size_t middle = (low + high) / 2;
      (fits_after(steps, middle) ? high : low) = middle;
    }
    fits_after(steps, high);
    for (int round = 0; round < kMostRounds && improve(); ++round) {
    }
  }

  void add_choices(StageId stage) {
    const Range nodes = plan_.nodes(stage);
    const auto inside = [nodes](const model::Unit& unit) {
      return Range{std::max(unit.node_begin, nodes.begin), std::min(unit.node_end, nodes.end)};
    };
    for (const model::Unit& unit : plan_.graph.units) {
      const Range whole = inside(unit);
      std::vector<Range> pieces;
      for (const model::Unit& piece : plan_.graph.pieces) {
        const Range part = inside(piece);
        if (part.begin >= whole.begin && part.end <= whole.end && part.begin < part.end) pieces.push_back(part);
      }
      if (pieces.empty()) continue;
      Choice choice;
      choice.ways.push_back({});
      for (std::size_t some = 1; some < std::size_t{1} << std::min<std::size_t>(pieces.size(), kMostPieces); ++some) {
        std::vector<Range> segments;
        for (std::size_t p = 0; p < pieces.size(); ++p) {
          if (some >> p & 1) segments.push_back(pieces[p]);
        }
        add_way(stage, std::move(segments), choice);
      }
      if (pieces.size() > 1) add_way(stage, {whole}, choice);
      if (choice.ways.size() > 1) choices_.push_back(std::move(choice));
    }
  }

  void add_way(StageId stage, std::vector<Range> segments, Choice& choice) {
    Way way;
    way.saves = kept_bytes(stage, {}) - kept_bytes(stage, segments);
    way.cost = recompute_cost(plan_.graph, plan_.nodes(stage), segments);
    way.segments = std::move(segments);
    if (way.saves > 0) choice.ways.push_back(std::move(way));
  }

  // What the stage keeps between its actions.
  double kept_bytes(StageId stage, const std::vector<Range>& segments) {
    plan_.recompute = segments;
    const plan::LocalGraph local = plan::shard(plan_.graph, plan_.mesh.tensor, 0);
    const StageLayout layout = training_layout(plan_, local, stage, threads_);
    const ArenaLayout arena = lay_out_arena(layout, plan_.booked_slots[stage.index()]);
    return static_cast<double>(arena.bytes - layout.bytes[static_cast<std::size_t>(Region::Scratch)]);
  }

  void number_kinds() {
    std::map<std::vector<std::pair<double, double>>, std::size_t> kinds;
    for (Choice& choice : choices_) {
      std::vector<std::pair<double, double>> worths;
      for (const Way& way : choice.ways) worths.push_back(way.worth());
      choice.kind = kinds.try_emplace(worths, kinds.size()).first->second;
    }
  }

  // Every choice goes up its ways so that each step saves the most for its cost; all steps, the best first.
  std::vector<Step> cheapest_first() const {
    std::vector<std::pair<double, Step>> priced;
    for (std::size_t c = 0; c < choices_.size(); ++c) {
      const std::vector<Way>& ways = choices_[c].ways;
      for (std::size_t at = 0;;) {
        std::size_t next = at;
        double best = 0;
        for (std::size_t w = 1; w < ways.size(); ++w) {
          if (ways[w].saves <= ways[at].saves) continue;
          const double price = (ways[w].cost - ways[at].cost) / (ways[w].saves - ways[at].saves);
          if (next != at && price >= best) continue;
          next = w;
          best = price;
        }
        if (next == at) break;
        priced.push_back({best, {c, next}});
        at = next;
      }
    }
    std::stable_sort(priced.begin(), priced.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    std::vector<Step> steps;
    for (const auto& [price, step] : priced) steps.push_back(step);
    return steps;
  }

  bool fits_after(const std::vector<Step>& steps, std::size_t count) {
    for (Choice& choice : choices_) choice.chosen = 0;
    for (std::size_t i = 0; i < count; ++i) choices_[steps[i].choice].chosen = steps[i].way;
    return fits();
  }

  // Takes the move that saves most arithmetic of those that fit: another way for one choice, or for two at once. Moves
  // between choices of the same kinds are tried once.
  bool improve() {
    using Key = std::tuple<std::size_t, std::size_t, std::size_t>;  // kind, from, to
    struct Move {
      double cost = 0;
      std::vector<Step> steps;
    };
    std::map<std::vector<Key>, Move> moves;
    const auto key = [&](const Step& step) {
      return Key{choices_[step.choice].kind, choices_[step.choice].chosen, step.way};
    };
    const auto change = [&](const Step& step) {
      return choices_[step.choice].ways[step.way].cost - choices_[step.choice].way().cost;
    };
    std::vector<Step> singles;
    for (std::size_t c = 0; c < choices_.size(); ++c) {
      for (std::size_t w = 0; w < choices_[c].ways.size(); ++w) {
        if (w != choices_[c].chosen) singles.push_back({c, w});
      }
    }
    std::map<Key, std::vector<Step>> by_key;  // two of each are enough for pairs of one kind
    for (const Step& step : singles) {
      auto& alike = by_key[key(step)];
      if (alike.size() < 2) alike.push_back(step);
    }
    for (const auto& [k, steps] : by_key) {
      if (change(steps.front()) < 0) moves[{k}] = {change(steps.front()), {steps.front()}};
      for (const auto& [l, others] : by_key) {
        for (const Step& other : others) {
          const double cost = change(steps.front()) + change(other);
          if (other.choice != steps.front().choice && k <= l && cost < 0) {
            moves[{k, l}] = {cost, {steps.front(), other}};
          }
        }
      }
    }
    std::vector<Move> order;
    for (auto& [k, move] : moves) order.push_back(std::move(move));
    std::stable_sort(order.begin(), order.end(), [](const Move& a, const Move& b) { return a.cost < b.cost; });
    for (const Move& move : order) {
      const std::vector<Choice> before = choices_;
      for (const Step& step : move.steps) choices_[step.choice].chosen = step.way;
      if (fits()) return true;
      choices_ = before;
    }
    return false;
  }

  // Replicas and tensor ranks differ by their first and last.
  bool fits() {
    plan_.recompute.clear();
    for (const Choice& choice : choices_) {
      plan_.recompute.insert(plan_.recompute.end(), choice.way().segments.begin(), choice.way().segments.end());
    }
    for (std::int64_t d = 0; d < plan_.mesh.data; d += std::max<std::int64_t>(1, plan_.mesh.data - 1)) {
      for (std::int64_t t = 0; t < plan_.mesh.tensor; t += std::max<std::int64_t>(1, plan_.mesh.tensor - 1)) {
        const std::int64_t rank = plan_.mesh.rank({.data = d, .pipeline = place_, .tensor = t});
        const MemoryPrediction memory = predict_memory(plan_, rank, threads_, data_bytes_);
        if ((limit_.own ? memory.own() : memory.total()) > limit_.bytes) return false;
      }
    }
    return true;
  }

  static constexpr int kMostRounds = 50;
  static constexpr std::size_t kMostPieces = 4;  // of a unit, whose combinations are all ways

  RunPlan& plan_;
  const int threads_;
  const std::size_t data_bytes_;
  const MemoryLimit& limit_;
  int place_ = 0;
  std::vector<Choice> choices_;  // in the order of the model
};

}  // namespace

double recompute_cost(const model::Graph& graph, Range nodes, const std::vector<Range>& segments) {
  // Arithmetic that takes as long as the element-wise work on one value, or moving it.
  constexpr double kFlopsOfAValue = 100;
  double cost = 0;
  for (const NodeId id : recomputed_nodes(graph, nodes, segments)) {
    const model::Value& value = graph.values[graph.nodes[id.index()].output.index()];
    cost += plan::flops_of(graph, {id.value, id.value + 1}).forward +
            kFlopsOfAValue * static_cast<double>(value.positions) * static_cast<double>(value.features);
  }
  return cost;
}

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
      fmt::format("parallel.memory_per_rank is {:.1f} MiB, but rank {} is predicted to need {:.1f} MiB{}; {}more "
                  "micro-batches, or more pipeline or tensor ranks would need less",
                  static_cast<double>(limit) / kMiB, largest, static_cast<double>(most) / kMiB,
                  recompute == Recompute::Auto ? " with every layer computed again that saves memory" : "",
                  recompute == Recompute::None ? "training.recompute = \"auto\", " : ""));
}

}  // namespace trainer::runtime
