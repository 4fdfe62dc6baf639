#include "trainer/plan/shard.hpp"

#include <fmt/format.h>

#include "trainer/core/error.hpp"

namespace trainer::plan {

namespace {

using model::Graph;
using model::Node;

// A linear whose outputs are divided, what follows it feature by feature, and the linear that sums over the parts.
struct Pair {
  std::int64_t column = -1;
  std::vector<std::int64_t> between;
  std::int64_t row = -1;
};

class Sharder {
 public:
  Sharder(const Graph& graph, std::int64_t ranks, std::int64_t rank) : graph_(graph), ranks_(ranks), rank_(rank) {
    for (const Node& node : graph.nodes) local_.nodes.push_back({node.op, false, false});
    for (const model::Value& value : graph.values) local_.values.push_back({Placement::Replicate, value.features});
    for (const model::Parameter& parameter : graph.parameters)
      local_.parameters.push_back({{whole(parameter.shape)}, false});
    uses_.resize(graph.values.size());
    for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
      for (const ValueId v : graph.nodes[i].inputs) uses_[v.index()].push_back(static_cast<std::int64_t>(i));
    }
  }

  LocalGraph run() {
    if (ranks_ == 1) return std::move(local_);
    std::vector<bool> taken(graph_.nodes.size(), false);
    for (std::size_t i = 0; i < graph_.nodes.size(); ++i) {
      if (std::holds_alternative<model::Embedding>(graph_.nodes[i].op)) shard_embedding(i);
      if (!std::holds_alternative<model::Linear>(graph_.nodes[i].op) || taken[i]) continue;
      const Pair pair = find_pair(static_cast<std::int64_t>(i));
      if (pair.row >= 0) {
        shard_pair(pair);
        taken[static_cast<std::size_t>(pair.row)] = true;
      } else if (feeds_cross_entropy(i)) {
        shard_head(i);
      }
    }
    return std::move(local_);
  }

 private:
  const Node& node(std::int64_t i) const { return graph_.nodes[static_cast<std::size_t>(i)]; }
  LocalNode& local(std::int64_t i) { return local_.nodes[static_cast<std::size_t>(i)]; }
  Range part(std::int64_t n) const { return split_range(n, ranks_, rank_); }

  bool feeds_cross_entropy(std::size_t i) const {
    const auto& uses = uses_[graph_.nodes[i].output.index()];
    return uses.size() == 1 && std::holds_alternative<model::CrossEntropy>(node(uses.front()).op);
  }

  // The chain behind linear `i`: values used once, element-wise nodes or attention, then a linear. A head with more
  // classes than inputs is better divided by classes, so that no rank ever holds all logits.
  Pair find_pair(std::int64_t i) const {
    Pair pair{i, {}, -1};
    std::int64_t at = i;
    while (true) {
      const auto& uses = uses_[node(at).output.index()];
      if (uses.size() != 1) return {};
      const std::int64_t next = uses.front();
      const model::Op& op = node(next).op;
      if (const auto* attention = std::get_if<model::Attention>(&op)) {
        if (attention->total_heads < ranks_) {
          throw Error(ExitCode::Usage,
                      fmt::format("parallel.tensor: {} ranks, but {} has only {} heads to divide; use at most {}",
                                  ranks_, node(next).name, attention->total_heads, attention->total_heads));
        }
        pair.between.push_back(next);
      } else if (std::holds_alternative<model::Unary>(op) || std::holds_alternative<model::Dropout>(op) ||
                 std::holds_alternative<model::Delay>(op)) {
        pair.between.push_back(next);
      } else if (const auto* row = std::get_if<model::Linear>(&op)) {
        if (row->in < ranks_) return {};
        if (feeds_cross_entropy(static_cast<std::size_t>(next)) && row->out >= row->in && row->out >= ranks_) return {};
        pair.row = next;
        return pair;
      } else {
        return {};
      }
      at = next;
    }
  }

  void set_box(ParameterId id, std::vector<Range> ranges, int dim) {
    LocalParameter& parameter = local_.parameters[id.index()];
    parameter.boxes.clear();
    parameter.sharded = true;
    for (const Range range : ranges) {
      Box box = whole(graph_.parameters[id.index()].shape);
      box.start[dim] = range.begin;
      box.extent[dim] = range.size();
      parameter.boxes.push_back(box);
    }
  }

  void set_value(ValueId id, std::int64_t features) { local_.values[id.index()] = {Placement::Shard, features}; }

  // Divides the outputs of linear `i` into `ranges` of its rows, one behind the other.
  void shard_columns(std::int64_t i, const std::vector<Range>& ranges) {
    auto& linear = std::get<model::Linear>(local(i).op);
    linear.out = 0;
    for (const Range range : ranges) linear.out += range.size();
    for (const ParameterId p : node(i).parameters) set_box(p, ranges, 0);
    local(i).reduce_input_gradient = node(i).inputs[0] != graph_.input;
    set_value(node(i).output, linear.out);
  }

  void shard_pair(const Pair& pair) {
    const std::int64_t width = std::get<model::Linear>(node(pair.row).op).in;
    std::vector<Range> columns{part(width)};
    Range inner = part(width);
    for (const std::int64_t i : pair.between) {
      if (const auto* attention = std::get_if<model::Attention>(&node(i).op)) {
        const Range heads = part(attention->total_heads);
        inner = {heads.begin * attention->head_size, heads.end * attention->head_size};
        columns.clear();
        for (std::int64_t third = 0; third < 3; ++third) {
          columns.push_back({third * width + inner.begin, third * width + inner.end});
        }
        auto& op = std::get<model::Attention>(local(i).op);
        op.heads = heads.size();
        op.head_begin = heads.begin;
      }
    }
    shard_columns(pair.column, columns);
    bool behind_attention = columns.size() == 1;
    for (const std::int64_t i : pair.between) {
      if (std::holds_alternative<model::Attention>(node(i).op)) behind_attention = true;
      if (!behind_attention) internal_error("an element-wise node between a projection and its attention");
      shard_elementwise(i, inner);
      set_value(node(i).output, inner.size());
    }
    auto& row = std::get<model::Linear>(local(pair.row).op);
    row.in = inner.size();
    row.add_bias = row.bias && rank_ == 0;
    set_box(node(pair.row).parameters[0], {inner}, 1);
    local(pair.row).reduce_output = true;
  }

  void shard_elementwise(std::int64_t i, Range features) {
    if (auto* unary = std::get_if<model::Unary>(&local(i).op)) unary->features = features.size();
    if (auto* delay = std::get_if<model::Delay>(&local(i).op)) delay->features = features.size();
    if (auto* dropout = std::get_if<model::Dropout>(&local(i).op)) {
      dropout->features = features.size();
      dropout->feature_begin = features.begin;
    }
  }

  void shard_head(std::size_t i) {
    const std::int64_t classes = std::get<model::Linear>(graph_.nodes[i].op).out;
    if (classes < ranks_) return;
    const auto at = static_cast<std::int64_t>(i);
    shard_columns(at, {part(classes)});
    auto& loss = std::get<model::CrossEntropy>(local(uses_[graph_.nodes[i].output.index()].front()).op);
    loss.classes = part(classes).size();
    loss.class_begin = part(classes).begin;
    local_.loss_sharded = true;
  }

  void shard_embedding(std::size_t i) {
    const auto vocab = std::get<model::Embedding>(graph_.nodes[i].op).vocab;
    if (vocab < ranks_) return;
    const Range rows = part(vocab);
    auto& op = std::get<model::Embedding>(local_.nodes[i].op);
    op.vocab = rows.size();
    op.vocab_begin = rows.begin;
    set_box(graph_.nodes[i].parameters[0], {rows}, 0);
    local_.nodes[i].reduce_output = true;
  }

  const Graph& graph_;
  const std::int64_t ranks_;
  const std::int64_t rank_;
  LocalGraph local_;
  std::vector<std::vector<std::int64_t>> uses_;  // [value] → nodes
};

}  // namespace

std::int64_t LocalParameter::elements() const {
  std::int64_t sum = 0;
  for (const Box& box : boxes) sum += box.elements();
  return sum;
}

LocalGraph shard(const model::Graph& graph, std::int64_t tensor_ranks, std::int64_t tensor_rank) {
  return Sharder(graph, tensor_ranks, tensor_rank).run();
}

}  // namespace trainer::plan
