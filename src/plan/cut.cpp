#include "trainer/plan/cut.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>

#include "trainer/core/error.hpp"

namespace trainer::plan {

namespace {

// A millisecond of a "delay" layer weighs as much, so that "flops" can cut models of such layers; a core's rate.
constexpr double kDelayFlops = 1e8;

constexpr double kNever = std::numeric_limits<double>::infinity();

double combine(double a, double b, bool largest) { return largest ? std::max(a, b) : a + b; }

// best[k][i]: the optimum of the first i costs in k parts, each divided by its part's speed. With `largest` the
// objective is the largest part; otherwise the sum of squares under `bound` on every part.
std::vector<Range> solve(const std::vector<double>& prefix, const std::vector<double>& speeds, bool largest,
                         double bound, double& optimum) {
  const auto parts = static_cast<std::int64_t>(speeds.size());
  const auto n = static_cast<std::int64_t>(prefix.size()) - 1;
  const auto width = static_cast<std::size_t>(n + 1);
  std::vector<double> best(static_cast<std::size_t>(parts + 1) * width, kNever);
  std::vector<std::int64_t> from(best.size(), -1);
  const auto at = [width](std::int64_t k, std::int64_t i) {
    return static_cast<std::size_t>(k) * width + static_cast<std::size_t>(i);
  };
  best[at(0, 0)] = 0;
  for (std::int64_t k = 1; k <= parts; ++k) {
    for (std::int64_t i = k; i <= n - (parts - k); ++i) {
      for (std::int64_t j = k - 1; j < i; ++j) {
        const double part = (prefix[static_cast<std::size_t>(i)] - prefix[static_cast<std::size_t>(j)]) /
                            speeds[static_cast<std::size_t>(k - 1)];
        if (best[at(k - 1, j)] == kNever || (!largest && part > bound)) continue;
        const double value = combine(best[at(k - 1, j)], largest ? part : part * part, largest);
        if (value < best[at(k, i)]) {
          best[at(k, i)] = value;
          from[at(k, i)] = j;
        }
      }
    }
  }
  optimum = best[at(parts, n)];
  std::vector<Range> cut(static_cast<std::size_t>(parts));
  for (std::int64_t k = parts, i = n; k > 0; --k) {
    const std::int64_t j = from[at(k, i)];
    cut[static_cast<std::size_t>(k - 1)] = {j, i};
    i = j;
  }
  return cut;
}

std::vector<Range> written_cut(const model::Graph& graph, const std::vector<std::int64_t>& sizes, std::int64_t stages) {
  const auto units = static_cast<std::int64_t>(graph.units.size());
  const std::int64_t sum = std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
  if (static_cast<std::int64_t>(sizes.size()) != stages) {
    throw Error(ExitCode::Usage,
                fmt::format("parallel.partition: lists {} stages, but parallel.pipeline is {}", sizes.size(), stages));
  }
  if (sum != units) {
    throw Error(ExitCode::Usage,
                fmt::format("parallel.partition: its sizes add up to {} units, but the model has {} ({} … {})", sum,
                            units, graph.units.front().name, graph.units.back().name));
  }
  std::vector<Range> cut;
  std::int64_t begin = 0;
  for (const std::int64_t size : sizes) {
    if (size < 1) throw Error(ExitCode::Usage, "parallel.partition: every stage needs at least one unit");
    cut.push_back({begin, begin + size});
    begin += size;
  }
  return cut;
}

double parameters_of(const model::Graph& graph, const model::Unit& unit) {
  double sum = 0;
  for (std::int64_t i = unit.node_begin; i < unit.node_end; ++i) {
    for (const ParameterId p : graph.nodes[static_cast<std::size_t>(i)].parameters) {
      sum += static_cast<double>(graph.parameters[p.index()].shape.elements());
    }
  }
  return sum;
}

double sum_of(const schedule::StageTimes& times) {
  return times.forward + times.backward_input + times.backward_weight;
}

// Looks for the cut with the shortest simulated step: from the balanced one on, while moving one boundary, or all from
// one on, by one piece shortens it. Each simulation walks the whole table, so large ones get few.
class StepSearch {
 public:
  /// `times_of`: of the stages of a cut of the pieces; `transfer`: of a message.
  using TimesOf = std::function<std::vector<schedule::StageTimes>(const std::vector<Range>&)>;
  StepSearch(const schedule::Schedule& table, TimesOf times_of, double transfer, double share)
      : table_(table), times_of_(std::move(times_of)), transfer_(transfer) {
    std::size_t actions = 0;
    for (const auto& row : table.ranks) actions += row.size();
    simulations_left_ =
        static_cast<std::int64_t>(share * kMostActions / static_cast<double>(std::max<std::size_t>(1, actions)));
  }

  std::vector<Range> improve(std::vector<Range> cut) {
    double best = step(cut);
    for (bool better = true; better;) {
      better = false;
      std::vector<Range> found = cut;
      for (std::size_t s = 1; s < cut.size(); ++s) {
        for (const std::int64_t by : {-1, 1}) {
          for (const bool all_behind : {false, true}) {
            const std::vector<Range> moved = shifted(cut, s, by, all_behind);
            if (moved.empty() || simulations_left_-- <= 0) continue;
            const double time = step(moved);
            if (time >= best * (1 - kWorthwhile)) continue;
            best = time;
            found = moved;
            better = true;
          }
        }
      }
      cut = std::move(found);
    }
    return cut;
  }

 private:
  static constexpr double kMostActions = 2e6;
  static constexpr double kWorthwhile = 1e-6;

  double step(const std::vector<Range>& cut) const {
    return schedule::simulate(table_, times_of_(cut), transfer_).step;
  }

  // Boundary `s` (before stage s), or all from it on, moved by `by` pieces; empty when a stage would be.
  static std::vector<Range> shifted(std::vector<Range> cut, std::size_t s, std::int64_t by, bool all_behind) {
    const std::size_t last = all_behind ? cut.size() - 1 : s;
    for (std::size_t i = s; i <= last; ++i) {
      cut[i].begin += by;
      cut[i - 1].end += by;
    }
    for (const Range part : cut) {
      if (part.size() < 1) return {};
    }
    return cut;
  }

  const schedule::Schedule& table_;
  const TimesOf times_of_;
  const double transfer_;
  std::int64_t simulations_left_ = 0;
};

std::vector<Range> nodes_of(const std::vector<model::Unit>& units, const std::vector<Range>& cut) {
  std::vector<Range> nodes;
  for (const Range part : cut) {
    nodes.push_back({units[static_cast<std::size_t>(part.begin)].node_begin,
                     units[static_cast<std::size_t>(part.end - 1)].node_end});
  }
  return nodes;
}

std::vector<Range> fewest_flops(const model::Graph& graph, const schedule::Schedule& table,
                                const std::vector<NodeId>& again, double share_of_search) {
  std::vector<double> sums;
  std::vector<schedule::StageTimes> prefix(1, {0, 0, 0});  // [i] of the first i pieces
  for (const model::Unit& piece : graph.pieces) {
    const schedule::StageTimes cost = flops_of(graph, {piece.node_begin, piece.node_end}, again);
    sums.push_back(sum_of(cost));
    const schedule::StageTimes& before = prefix.back();
    prefix.push_back({before.forward + cost.forward, before.backward_input + cost.backward_input,
                      before.backward_weight + cost.backward_weight});
  }
  const auto times_of = [&prefix](const std::vector<Range>& cut) {
    std::vector<schedule::StageTimes> times;
    for (const Range part : cut) {
      const auto& a = prefix[static_cast<std::size_t>(part.begin)];
      const auto& b = prefix[static_cast<std::size_t>(part.end)];
      times.push_back(
          {b.forward - a.forward, b.backward_input - a.backward_input, b.backward_weight - a.backward_weight});
    }
    return times;
  };
  return StepSearch(table, times_of, 0, share_of_search).improve(balanced_cut(sums, table.stages));
}

// The index of the unit that has this node.
std::size_t unit_of(const std::vector<model::Unit>& units, std::int64_t node) {
  std::size_t i = 0;
  while (units[i].node_end <= node) ++i;
  return i;
}

void require_enough_units(const model::Graph& graph, const schedule::Schedule& table) {
  const std::int64_t stages = table.stages;
  const auto units = static_cast<std::int64_t>(graph.units.size());
  if (stages > units) {
    throw Error(
        ExitCode::Usage,
        fmt::format("parallel.pipeline: {} stages{}, but the model has only {} units to cut between ({} … {}); use "
                    "at most {}",
                    stages,
                    table.ranks.size() == static_cast<std::size_t>(stages)
                        ? ""
                        : fmt::format(" on {} ranks", table.ranks.size()),
                    units, graph.units.front().name, graph.units.back().name, units));
  }
}

}  // namespace

std::vector<Range> balanced_cut(const std::vector<double>& costs, std::int64_t parts) {
  return balanced_cut(costs, std::vector<double>(static_cast<std::size_t>(parts), 1.0));
}

std::vector<Range> balanced_cut(const std::vector<double>& costs, const std::vector<double>& speeds) {
  std::vector<double> prefix(costs.size() + 1, 0.0);
  std::partial_sum(costs.begin(), costs.end(), prefix.begin() + 1);
  double largest = 0;
  solve(prefix, speeds, true, 0, largest);
  double squares = 0;
  return solve(prefix, speeds, false, largest, squares);
}

std::vector<Range> cut_stages(const model::Graph& graph, const config::Parallel& parallel,
                              const schedule::Schedule& table, const std::vector<NodeId>& again,
                              double share_of_search) {
  const auto units = static_cast<std::int64_t>(graph.units.size());
  const std::int64_t stages = table.stages;
  require_enough_units(graph, table);
  switch (parallel.partition) {
    case config::PartitionRule::Written:
      return nodes_of(graph.units, written_cut(graph, parallel.partition_units, stages));
    case config::PartitionRule::Uniform: {
      std::vector<Range> cut;
      for (std::int64_t s = 0; s < stages; ++s) cut.push_back(split_range(units, stages, s));
      return nodes_of(graph.units, cut);
    }
    case config::PartitionRule::Parameters: {
      std::vector<double> costs;
      for (const model::Unit& unit : graph.units) costs.push_back(parameters_of(graph, unit));
      return nodes_of(graph.units, balanced_cut(costs, stages));
    }
    case config::PartitionRule::Flops:
      return nodes_of(graph.pieces, fewest_flops(graph, table, again, share_of_search));
    case config::PartitionRule::Profile:
      internal_error("a cut by measured times without them");
  }
  internal_error("an unknown partition rule");
}

std::vector<Range> cut_by_costs(const model::Graph& graph, const schedule::Schedule& table, const StageCosts& costs,
                                double share_of_search) {
  require_enough_units(graph, table);
  std::vector<double> sums;
  for (const PassSeconds& piece : costs.pieces->pieces()) sums.push_back(piece.forward + piece.backward);
  const auto times_of = [&](const std::vector<Range>& cut) {
    return simulator_times(table, costs.stages(nodes_of(graph.pieces, cut)));
  };
  const std::vector<Range> start = balanced_cut(sums, costs.speeds(table.stages));
  return nodes_of(graph.pieces, StepSearch(table, times_of, costs.transfer, share_of_search).improve(start));
}

std::vector<PassSeconds> StageCosts::stages(const std::vector<Range>& stage_nodes) const {
  std::vector<PassSeconds> all;
  for (std::size_t s = 0; s < stage_nodes.size(); ++s) {
    PassSeconds stage = pieces->stage(stage_nodes[s]);
    const double once_more = pieces->forward_of(stage_nodes[s], again);
    stage.backward_input += once_more;
    stage.backward += once_more;
    all.push_back(stage * (slower / (stage_speed.empty() ? 1.0 : stage_speed[s])));
  }
  return all;
}

std::vector<double> StageCosts::speeds(std::int64_t stages) const {
  return stage_speed.empty() ? std::vector<double>(static_cast<std::size_t>(stages), 1.0) : stage_speed;
}

schedule::StageTimes flops_of(const model::Graph& graph, Range nodes, const std::vector<NodeId>& again) {
  schedule::StageTimes times{0, 0, 0};
  for (std::int64_t i = nodes.begin; i < nodes.end; ++i) {
    model::NodeCost cost = model::cost(graph.nodes[static_cast<std::size_t>(i)], graph);
    if (const auto* delay = std::get_if<model::Delay>(&graph.nodes[static_cast<std::size_t>(i)].op)) {
      cost = {kDelayFlops * delay->forward_ms, kDelayFlops * delay->backward_input_ms,
              kDelayFlops * delay->backward_weight_ms};
    }
    times.forward += cost.forward;
    times.backward_input += cost.backward_input;
    times.backward_weight += cost.backward_weight;
    if (std::binary_search(again.begin(), again.end(), NodeId(i))) times.backward_input += cost.forward;
  }
  return times;
}

std::string describe_stage(const model::Graph& graph, Range nodes) {
  const std::size_t first = unit_of(graph.units, nodes.begin);
  const std::size_t last = unit_of(graph.units, nodes.end - 1);
  // A unit that is cut counts for the share of its pieces that the stage has.
  double count = 0;
  for (std::size_t u = first; u <= last; ++u) {
    const model::Unit& unit = graph.units[u];
    double pieces = 0;
    double mine = 0;
    for (const model::Unit& piece : graph.pieces) {
      if (piece.node_begin < unit.node_begin || piece.node_end > unit.node_end) continue;
      pieces += 1;
      mine += piece.node_begin >= nodes.begin && piece.node_end <= nodes.end ? 1 : 0;
    }
    count += mine / pieces;
  }
  const bool whole_first = graph.units[first].node_begin == nodes.begin && graph.units[first].node_end <= nodes.end;
  const bool whole_last = graph.units[last].node_end == nodes.end && graph.units[last].node_begin >= nodes.begin;
  const std::string& from =
      whole_first ? graph.units[first].name : graph.pieces[unit_of(graph.pieces, nodes.begin)].name;
  const std::string& to = whole_last ? graph.units[last].name : graph.pieces[unit_of(graph.pieces, nodes.end - 1)].name;
  return from == to ? from : fmt::format("{} … {} ({:g})", from, to, count);
}

}  // namespace trainer::plan
