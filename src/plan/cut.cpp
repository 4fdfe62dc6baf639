#include "trainer/plan/cut.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "trainer/core/error.hpp"

namespace trainer::plan {

namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

double combine(double a, double b, bool largest) { return largest ? std::max(a, b) : a + b; }

// best[k][i]: the optimum of the first i costs in k parts. With `largest` the objective is the largest part; otherwise
// the sum of squares under `bound` on every part.
std::vector<Range> solve(const std::vector<double>& prefix, std::int64_t parts, bool largest, double bound,
                         double& optimum) {
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
        const double part = prefix[static_cast<std::size_t>(i)] - prefix[static_cast<std::size_t>(j)];
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

double unit_cost(const model::Graph& graph, const model::Unit& unit, config::PartitionRule rule) {
  double sum = 0;
  for (std::int64_t i = unit.node_begin; i < unit.node_end; ++i) {
    const model::Node& node = graph.nodes[static_cast<std::size_t>(i)];
    if (rule == config::PartitionRule::Flops) {
      const model::NodeCost cost = model::cost(node, graph);
      sum += cost.forward + cost.backward_input + cost.backward_weight;
    } else {
      for (const ParameterId p : node.parameters) {
        sum += static_cast<double>(graph.parameters[p.index()].shape.elements());
      }
    }
  }
  return sum;
}

}  // namespace

std::vector<Range> balanced_cut(const std::vector<double>& costs, std::int64_t parts) {
  std::vector<double> prefix(costs.size() + 1, 0.0);
  std::partial_sum(costs.begin(), costs.end(), prefix.begin() + 1);
  double largest = 0;
  solve(prefix, parts, true, 0, largest);
  double squares = 0;
  return solve(prefix, parts, false, largest, squares);
}

std::vector<Range> cut_stages(const model::Graph& graph, const config::Parallel& parallel, std::int64_t stages) {
  const auto units = static_cast<std::int64_t>(graph.units.size());
  if (stages > units) {
    throw Error(
        ExitCode::Usage,
        fmt::format("parallel.pipeline: {} stages, but the model has only {} units to cut between ({} … {}); use "
                    "at most {}",
                    stages, units, graph.units.front().name, graph.units.back().name, units));
  }
  std::vector<Range> cut;
  switch (parallel.partition) {
    case config::PartitionRule::Written:
      return written_cut(graph, parallel.partition_units, stages);
    case config::PartitionRule::Uniform:
      for (std::int64_t s = 0; s < stages; ++s) cut.push_back(split_range(units, stages, s));
      return cut;
    case config::PartitionRule::Parameters:
    case config::PartitionRule::Flops: {
      std::vector<double> costs;
      for (const model::Unit& unit : graph.units) costs.push_back(unit_cost(graph, unit, parallel.partition));
      return balanced_cut(costs, stages);
    }
  }
  internal_error("an unknown partition rule");
}

Range nodes_of(const model::Graph& graph, Range units) {
  return {graph.units[static_cast<std::size_t>(units.begin)].node_begin,
          graph.units[static_cast<std::size_t>(units.end - 1)].node_end};
}

}  // namespace trainer::plan
