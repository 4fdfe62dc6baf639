#include "trainer/runtime/recompute.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "trainer/core/error.hpp"
#include "trainer/plan/cut.hpp"

namespace trainer::runtime {

namespace {

bool is_loss(const model::Node& node) { return !node.output.valid(); }

bool contains(Range outer, std::int64_t node) { return node >= outer.begin && node < outer.end; }

Range range_of(const model::Unit& unit) { return {unit.node_begin, unit.node_end}; }

// Parts of the segments that lie in `nodes`, in their order.
std::vector<Range> clipped(const std::vector<Range>& segments, Range nodes) {
  std::vector<Range> parts;
  for (const Range segment : segments) {
    const Range part{std::max(segment.begin, nodes.begin), std::min(segment.end, nodes.end)};
    if (part.begin < part.end) parts.push_back(part);
  }
  return parts;
}

std::vector<std::string> names_of(const std::vector<model::Unit>& units) {
  std::vector<std::string> names;
  for (const model::Unit& unit : units) names.push_back(unit.name);
  return names;
}

[[noreturn]] void unknown_layer(const model::Graph& graph, std::size_t index, const std::string& name) {
  const std::vector<std::string> units = names_of(graph.units);
  std::vector<std::string> all = units;
  for (const std::string& piece : names_of(graph.pieces)) {
    if (std::find(all.begin(), all.end(), piece) == all.end()) all.push_back(piece);
  }
  const std::string near = nearest_word(name.substr(0, 100), all);
  std::string hint = near.empty() ? "" : fmt::format("; did you mean \"{}\"?", near);
  if (all.size() > units.size()) {
    hint = fmt::format(", or a part of one, as \"{}\"{}", all[units.size()], hint);
  }
  const std::string layers = units.size() == 1 ? fmt::format("\"{}\"", units.front())
                                               : fmt::format("\"{}\" … \"{}\"", units.front(), units.back());
  throw Error(ExitCode::Usage, fmt::format("training.recompute[{}] is \"{}\", which is no layer of this model; "
                                           "expected one of {}{}",
                                           index, name.substr(0, 100), layers, hint));
}

Range named_segment(const model::Graph& graph, std::size_t index, const std::string& name) {
  for (const auto* parts : {&graph.units, &graph.pieces}) {
    for (const model::Unit& part : *parts) {
      if (part.name == name) return range_of(part);
    }
  }
  unknown_layer(graph, index, name);
}

}  // namespace

std::vector<ValueUse> uses_of(const model::Graph& graph) {
  std::vector<ValueUse> uses(graph.values.size());
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    const model::Node& node = graph.nodes[i];
    for (const ValueId v : node.inputs) uses[v.index()].users.push_back(static_cast<std::int64_t>(i));
    if (node.output.valid()) uses[node.output.index()].producer = static_cast<std::int64_t>(i);
  }
  return uses;
}

RecomputePlan plan_recompute(const model::Graph& graph, Range nodes, const std::vector<Range>& segments,
                             const std::function<ops::Needs(std::int64_t)>& needs) {
  const std::vector<ValueUse> uses = uses_of(graph);
  RecomputePlan plan;
  plan.interior.resize(graph.values.size(), false);
  plan.again.resize(graph.nodes.size(), false);
  plan.segments = clipped(segments, nodes);
  for (const Range segment : plan.segments) {
    for (std::int64_t i = segment.end; i-- > segment.begin;) {
      const ValueId v = graph.nodes[static_cast<std::size_t>(i)].output;
      const std::vector<std::int64_t>& users = uses[v.index()].users;
      if (users.empty() || !contains(segment, users.back()) || v == graph.output) continue;
      plan.interior[v.index()] = true;
      // Users come behind: what of them runs again is known.
      bool read = needs(i).output_in_backward_input;
      for (const std::int64_t user : users) {
        const ops::Needs& of_user = needs(user);
        read = read || of_user.input_in_backward_input || of_user.input_in_backward_weight ||
               plan.again[static_cast<std::size_t>(user)];
      }
      plan.again[static_cast<std::size_t>(i)] = read;
    }
  }
  return plan;
}

std::vector<Range> written_segments(const model::Graph& graph, const config::Training& training) {
  std::vector<Range> segments;
  switch (training.recompute) {
    case config::Recompute::None:
    case config::Recompute::Auto:
      break;
    case config::Recompute::Full:
      for (const model::Unit& unit : graph.units) segments.push_back(range_of(unit));
      break;
    case config::Recompute::Written:
      for (std::size_t i = 0; i < training.recompute_layers.size(); ++i) {
        segments.push_back(named_segment(graph, i, training.recompute_layers[i]));
      }
      break;
  }
  // A part of a layer that is listed too is in it already.
  std::sort(segments.begin(), segments.end(),
            [](Range a, Range b) { return a.begin != b.begin ? a.begin < b.begin : a.end > b.end; });
  std::vector<Range> disjoint;
  for (const Range segment : segments) {
    if (disjoint.empty() || segment.begin >= disjoint.back().end) disjoint.push_back(segment);
  }
  return disjoint;
}

std::vector<NodeId> recomputed_nodes(const model::Graph& graph, Range nodes, const std::vector<Range>& segments) {
  if (segments.empty()) return {};
  if (nodes.size() > 0 && is_loss(graph.nodes[static_cast<std::size_t>(nodes.end - 1)])) --nodes.end;
  const auto needs = [&](std::int64_t i) {
    const model::Node& node = graph.nodes[static_cast<std::size_t>(i)];
    const std::int64_t positions = graph.values[node.inputs[0].index()].positions;
    return ops::make_operator(node, positions)->needs(positions, 1);
  };
  const RecomputePlan plan = plan_recompute(graph, nodes, segments, needs);
  std::vector<NodeId> again;
  for (std::int64_t i = nodes.begin; i < nodes.end; ++i) {
    if (plan.again[static_cast<std::size_t>(i)]) again.emplace_back(i);
  }
  return again;
}

schedule::StageTimes stage_flops(const RunPlan& plan, StageId stage) {
  const Range nodes = plan.nodes(stage);
  return plan::flops_of(plan.graph, nodes, recomputed_nodes(plan.graph, nodes, plan.recompute));
}

double recompute_flops(const RunPlan& plan) {
  double sample = 0;
  for (std::int64_t s = 0; s < plan.stages(); ++s) {
    for (const NodeId node : recomputed_nodes(plan.graph, plan.nodes(StageId(s)), plan.recompute)) {
      sample += model::cost(plan.graph.nodes[node.index()], plan.graph).forward;
    }
  }
  return sample * static_cast<double>(plan.config.training.batch_size);
}

std::string describe_recompute(const RunPlan& plan) {
  // The unit or piece of a segment; runs of neighbours are one item.
  struct Item {
    std::string first, last;
    std::int64_t end = 0, count = 0;
    bool pieces = false;
  };
  std::vector<Item> items;
  for (const Range segment : plan.recompute) {
    Item item{.first = {}, .last = {}, .end = segment.end, .count = 1, .pieces = false};
    for (const auto* parts : {&plan.graph.pieces, &plan.graph.units}) {
      for (const model::Unit& part : *parts) {
        if (range_of(part) != segment) continue;
        item.first = item.last = part.name;
        item.pieces = parts == &plan.graph.pieces;
      }
    }
    const bool joins = !items.empty() && items.back().end == segment.begin && items.back().pieces == item.pieces;
    if (joins) {
      items.back().last = item.last;
      items.back().end = item.end;
      ++items.back().count;
    } else {
      items.push_back(item);
    }
  }
  std::string text;
  for (const Item& item : items) {
    text += text.empty() ? "" : ", ";
    text += item.count == 1 ? item.first : fmt::format("{} … {}", item.first, item.last);
  }
  return text.empty() ? "nothing" : text;
}

}  // namespace trainer::runtime
