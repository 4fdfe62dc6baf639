#include "trainer/runtime/stage_layout.hpp"

#include <algorithm>
#include <utility>

#include "trainer/core/error.hpp"
#include "trainer/core/tensor.hpp"
#include "trainer/runtime/recompute.hpp"

namespace trainer::runtime {

namespace {

using model::Graph;
using model::Node;

bool is_loss(const Node& node) {
  return std::holds_alternative<model::CrossEntropy>(node.op) ||
         std::holds_alternative<model::MeanSquaredError>(node.op);
}

class LayoutBuilder {
 public:
  explicit LayoutBuilder(const LayoutRequest& request) : r_(request), uses_(uses_of(request.graph)) {
    const std::size_t values = r_.graph.values.size();
    forward_.resize(values);
    again_.resize(values);
    gradient_.resize(values);
    gradient_written_.resize(values, false);
    alias_of_.resize(values);
  }

  StageLayout run() {
    layout_.samples = r_.samples;
    layout_.training = r_.training;
    layout_.split_backward = r_.split_backward;
    make_nodes();
    find_ports();
    find_recomputed();
    place_forward();
    if (r_.training) {
      order_backward();
      place_backward();
      place_recomputed();
    }
    finish_scratch();
    fill_nodes();
    return std::move(layout_);
  }

 private:
  const Node& node(std::int64_t i) const { return r_.graph.nodes[static_cast<std::size_t>(i)]; }
  NodeLayout& at(std::int64_t i) { return layout_.nodes[static_cast<std::size_t>(i - r_.nodes.begin)]; }
  std::int64_t rows(ValueId v) const { return r_.samples * r_.graph.values[v.index()].positions; }
  std::size_t value_bytes(ValueId v) const {
    return align_up(static_cast<std::size_t>(rows(v) * r_.local.values[v.index()].features) * sizeof(float));
  }
  bool has_loss() const { return r_.with_loss && is_loss(node(r_.nodes.end - 1)); }
  std::int64_t last_node() const { return is_loss(node(r_.nodes.end - 1)) ? r_.nodes.end - 1 : r_.nodes.end; }
  bool inside(std::int64_t i) const { return i >= r_.nodes.begin && i < last_node(); }
  bool is_data(ValueId v) const { return uses_[v.index()].producer < 0; }
  bool is_interior(ValueId v) const { return recompute_.interior[v.index()]; }

  Place take(Region region, std::size_t bytes) {
    std::size_t& used = layout_.bytes[static_cast<std::size_t>(region)];
    const Place place{region, used};
    used += align_up(bytes);
    return place;
  }

  // A scratch place whose offset is known only after all lifetimes are.
  std::size_t book(std::size_t bytes, std::int64_t first, std::int64_t last, bool backward) {
    auto& lifetimes = backward ? backward_lifetimes_ : forward_lifetimes_;
    lifetimes.push_back({align_up(bytes), first, last, 0});
    return lifetimes.size() - 1;
  }
  void book_into(Place& place, std::size_t bytes, std::int64_t first, std::int64_t last, bool backward) {
    if (bytes == 0) return;
    place = {Region::Scratch, 0};
    patches_.push_back({&place, book(bytes, first, last, backward), backward});
  }

  void make_nodes() {
    for (std::int64_t i = r_.nodes.begin; i < last_node(); ++i) {
      NodeLayout layout;
      layout.node = NodeId(i);
      const ValueId x = node(i).inputs[0];
      const model::Value& in = r_.graph.values[x.index()];
      Node local = node(i);
      local.op = r_.local.nodes[static_cast<std::size_t>(i)].op;
      layout.op = ops::make_operator(local, in.positions, r_.precision);
      layout.needs = layout.op->needs(rows(x), r_.threads);
      layout_.nodes.push_back(std::move(layout));
    }
  }

  void find_ports() {
    for (std::size_t v = 0; v < r_.graph.values.size(); ++v) {
      const ValueId id(static_cast<std::int64_t>(v));
      const ValueUse& use = uses_[v];
      if (is_data(id) || use.users.empty()) continue;
      const std::int64_t last_use = use.users.back();
      if (use.producer < r_.nodes.begin && last_use >= r_.nodes.begin) {
        layout_.inputs.push_back(Port{.value = id, .bytes = value_bytes(id)});
      }
      if (use.producer < r_.nodes.end && last_use >= r_.nodes.end) {
        layout_.outputs.push_back(Port{.value = id, .bytes = value_bytes(id)});
      }
    }
  }

  bool is_port(const std::vector<Port>& ports, ValueId v) const {
    return std::any_of(ports.begin(), ports.end(), [v](const Port& port) { return port.value == v; });
  }

  void find_recomputed() {
    const std::vector<Range> segments = r_.training ? r_.recompute : std::vector<Range>{};
    recompute_ = plan_recompute(r_.graph, {r_.nodes.begin, last_node()}, segments,
                                [this](std::int64_t i) { return at(i).needs; });
    for (NodeLayout& layout : layout_.nodes) layout.recomputed = recompute_.again[layout.node.index()];
  }

  // The longest-living reader of the forward value decides its region.
  Region forward_region(ValueId v) {
    if (!r_.training || is_interior(v)) return Region::Scratch;
    if (is_data(v) || is_port(layout_.inputs, v)) return Region::WeightInput;
    if (has_loss() && v == node(last_node()).inputs[0]) return Region::WeightInput;  // becomes the gradient
    bool for_input = false;
    for (const std::int64_t i : uses_[v.index()].users) {
      if (!inside(i)) continue;
      if (at(i).needs.input_in_backward_weight) return Region::WeightInput;
      for_input = for_input || at(i).needs.input_in_backward_input || at(i).recomputed;
    }
    const std::int64_t producer = uses_[v.index()].producer;
    if (inside(producer)) for_input = for_input || at(producer).needs.output_in_backward_input;
    return for_input ? Region::Activation : Region::Scratch;
  }

  // Forward time runs over node indices; the loss is one more.
  void place_forward() {
    const std::int64_t end = last_node();
    for (std::size_t v = 0; v < r_.graph.values.size(); ++v) {
      const ValueId id(static_cast<std::int64_t>(v));
      if (id == r_.graph.target) continue;
      const ValueUse& use = uses_[v];
      std::int64_t last = -1;
      for (const std::int64_t i : use.users) {
        if (i >= r_.nodes.begin && i < r_.nodes.end) last = i;
      }
      const bool input_port = is_port(layout_.inputs, id);
      const bool output_port = is_port(layout_.outputs, id);
      const bool made_here = inside(use.producer);
      if (last < 0 && !made_here && !input_port) continue;
      Place& place = forward_[v];
      const Region region = forward_region(id);
      if (output_port && region == Region::Scratch && made_here) {
        place = take(Region::SendForward, value_bytes(id));
      } else if (input_port || region != Region::Scratch) {
        // Forward-only stages receive into WeightInput slots as well.
        place = take(input_port || is_data(id) ? Region::WeightInput : region, value_bytes(id));
      } else {
        const bool is_output = !r_.with_loss && id == r_.graph.output;
        book_into(place, value_bytes(id), made_here ? use.producer : r_.nodes.begin,
                  is_output || output_port ? end : std::max(last, use.producer), false);
      }
    }
    place_value_messages();
    for (std::int64_t i = r_.nodes.begin; i < end; ++i) {
      NodeLayout& layout = at(i);
      if (layout.needs.saved_bytes > 0) {
        if (r_.training && !layout.recomputed) {
          layout.forward.saved = take(layout.needs.saved_in_backward_weight ? Region::WeightInput : Region::Activation,
                                      layout.needs.saved_bytes);
          layout.backward.saved = layout.forward.saved;
        } else {
          book_into(layout.forward.saved, layout.needs.saved_bytes, i, i, false);
        }
      }
      book_into(layout.forward.workspace, layout.needs.workspace_bytes, i, i, false);
    }
    if (has_loss()) place_loss(end);
  }

  void place_value_messages() {
    for (Port& port : layout_.inputs) port.value_at = port.value_message = forward_[port.value.index()];
    for (Port& port : layout_.outputs) {
      port.value_at = port.value_message = forward_[port.value.index()];
      if (port.value_at.region != Region::SendForward) port.value_message = take(Region::SendForward, port.bytes);
    }
  }

  void place_loss(std::int64_t time) {
    LossLayout& loss = layout_.loss;
    loss.present = true;
    const ValueId logits = node(last_node()).inputs[0];
    const auto n = static_cast<std::size_t>(rows(logits));
    const std::int64_t target_features = r_.graph.values[r_.graph.target.index()].features;
    book_into(loss.target, n * static_cast<std::size_t>(target_features) * 4, time, time, false);
    book_into(loss.losses, n * sizeof(float), time, time, false);
    book_into(loss.maxima, n * sizeof(float), time, time, false);
    book_into(loss.sums, 2 * n * sizeof(float), time, time, false);
    book_into(loss.wide, 2 * n * sizeof(double), time, time, false);
    book_into(loss.classes, n * sizeof(std::int32_t), time, time, false);
  }

  // Whether some weight gradient needs the gradient of v after I is over.
  bool gradient_outlives_input_pass(ValueId v) {
    if (!r_.split_backward) return false;
    const std::int64_t producer = uses_[v.index()].producer;
    return inside(producer) && at(producer).needs.has_weight && at(producer).needs.output_gradient_in_backward_weight;
  }

  // Backward time runs over the steps of I or a joint B.
  std::int64_t backward_time(std::int64_t i) const { return backward_time_[index(i)]; }
  std::int64_t recompute_time(std::int64_t i) const { return recompute_time_[index(i)]; }
  std::size_t index(std::int64_t i) const { return static_cast<std::size_t>(i - r_.nodes.begin); }

  // Nodes from the last to the first; before the last of a segment, what the segment makes again, in forward order.
  void order_backward() {
    backward_time_.assign(layout_.nodes.size(), 0);
    recompute_time_.assign(layout_.nodes.size(), 0);
    const auto add = [this](std::int64_t i, bool recompute) {
      (recompute ? recompute_time_ : backward_time_)[index(i)] = static_cast<std::int64_t>(layout_.backward.size());
      layout_.backward.push_back({index(i), recompute});
    };
    auto segment = recompute_.segments.rbegin();
    for (std::int64_t i = last_node() - 1; i >= r_.nodes.begin; --i) {
      if (segment != recompute_.segments.rend() && segment->end == i + 1) {
        for (std::int64_t j = segment->begin; j < segment->end; ++j) {
          if (at(j).recomputed) add(j, true);
        }
        ++segment;
      }
      add(i, false);
    }
  }

  // What is made again lives from then to its last reader, in Scratch; what a W of its own action reads, from I to W.
  void place_recomputed() {
    for (NodeLayout& layout : layout_.nodes) {
      if (!layout.recomputed) continue;
      const std::int64_t i = layout.node.value;
      const ValueId v = node(i).output;
      bool for_weight = false;
      std::int64_t last = backward_time(i);
      for (const std::int64_t user : uses_[v.index()].users) {
        const ops::Needs& needs = at(user).needs;
        for_weight = for_weight || needs.input_in_backward_weight;
        if (at(user).recomputed) last = std::max(last, recompute_time(user));
        if (needs.input_in_backward_input || needs.input_in_backward_weight) last = std::max(last, backward_time(user));
      }
      place_again(again_[v.index()], value_bytes(v), for_weight, recompute_time(i), last);
      place_again(layout.backward.saved, layout.needs.saved_bytes, layout.needs.saved_in_backward_weight,
                  recompute_time(i), backward_time(i));
      book_into(layout.recompute_workspace, layout.needs.workspace_bytes, recompute_time(i), recompute_time(i), true);
    }
  }

  void place_again(Place& place, std::size_t bytes, bool for_weight, std::int64_t first, std::int64_t last) {
    if (for_weight && r_.split_backward && bytes > 0) {
      place = take(Region::WeightGradient, bytes);
    } else {
      book_into(place, bytes, first, last, true);
    }
  }

  // The second input of an Add that nobody else reads: its gradient is the sum's own.
  bool shares_gradient(std::int64_t i, std::size_t k) const {
    if (!std::holds_alternative<model::Add>(node(i).op) || k != 1) return false;
    const ValueId v = node(i).inputs[1];
    return uses_[v.index()].users.size() == 1 && inside(uses_[v.index()].producer) && v != node(i).inputs[0];
  }

  // Gradients in reverse node order. A value's gradient begins with the last of its users.
  void place_backward() {
    const std::int64_t end = last_node();
    if (has_loss()) gradient_[node(end).inputs[0].index()] = forward_[node(end).inputs[0].index()];
    for (Port& port : layout_.outputs) {
      port.gradient_at = port.gradient_message = take(Region::OutputGradient, port.bytes);
      gradient_[port.value.index()] = port.gradient_at;
      gradient_written_[port.value.index()] = true;
    }
    for (Port& port : layout_.inputs) {
      // The message is the gradient's own memory, unless the value goes on to the next stage and its gradient comes
      // from there.
      port.gradient_message = take(Region::SendBackward, port.bytes);
      Place& place = gradient_[port.value.index()];
      if (place.region == Region::None) place = port.gradient_message;
      port.gradient_at = place;
    }
    for (std::int64_t i = end - 1; i >= r_.nodes.begin; --i) place_gradients(i);
    for (std::int64_t i = r_.nodes.begin; i < end; ++i) {
      book_into(at(i).backward.workspace, at(i).needs.workspace_bytes, backward_time(i), backward_time(i), true);
    }
  }

  void place_gradients(std::int64_t i) {
    NodeLayout& layout = at(i);
    for (std::size_t k = 0; k < node(i).inputs.size(); ++k) {
      const ValueId v = node(i).inputs[k];
      if (is_data(v)) continue;
      Place& place = gradient_[v.index()];
      if (shares_gradient(i, k)) {
        layout.skip_gradient[k] = true;
        alias_of_[v.index()] = node(i).output;
        gradient_written_[v.index()] = true;
        continue;
      }
      layout.accumulate[k] = gradient_written_[v.index()];
      if (!gradient_written_[v.index()] && place.region == Region::None) allocate_gradient(v, i);
      gradient_written_[v.index()] = true;
    }
  }

  // Values whose gradients are v's own memory, v included: down the second inputs of sums.
  std::vector<ValueId> aliases(ValueId v) const {
    std::vector<ValueId> all{v};
    while (true) {
      const std::int64_t producer = uses_[all.back().index()].producer;
      if (!inside(producer) || !shares_gradient(producer, 1)) return all;
      all.push_back(node(producer).inputs[1]);
    }
  }

  void allocate_gradient(ValueId v, std::int64_t first_user) {
    bool outlives = false;
    std::int64_t last = backward_time(uses_[v.index()].producer);
    for (const ValueId alias : aliases(v)) {
      outlives = outlives || gradient_outlives_input_pass(alias);
      last = std::max(last, backward_time(uses_[alias.index()].producer));
    }
    Place& place = gradient_[v.index()];
    if (outlives) {
      place = take(Region::WeightGradient, value_bytes(v));
    } else {
      book_into(place, value_bytes(v), backward_time(first_user), last, true);
    }
  }

  void finish_scratch() {
    const std::size_t forward = place_lifetimes(forward_lifetimes_);
    const std::size_t backward = place_lifetimes(backward_lifetimes_);
    layout_.bytes[static_cast<std::size_t>(Region::Scratch)] = align_up(std::max(forward, backward));
    for (const auto& [place, lifetime, is_backward] : patches_) {
      place->offset = (is_backward ? backward_lifetimes_ : forward_lifetimes_)[lifetime].offset;
    }
  }

  Place gradient_of(ValueId v) const {
    if (!v.valid()) return {};
    const ValueId alias = alias_of_[v.index()];
    return alias.valid() ? gradient_of(alias) : gradient_[v.index()];
  }

  Place kept(ValueId v) const { return is_interior(v) ? again_[v.index()] : forward_[v.index()]; }

  void fill_nodes() {
    for (std::int64_t i = r_.nodes.begin; i < last_node(); ++i) {
      NodeLayout& layout = at(i);
      const Node& n = node(i);
      for (std::size_t k = 0; k < n.inputs.size(); ++k) {
        layout.forward.input[k] = forward_[n.inputs[k].index()];
        layout.backward.input[k] = kept(n.inputs[k]);
        if (r_.training && !is_data(n.inputs[k])) layout.input_gradient[k] = gradient_of(n.inputs[k]);
      }
      layout.forward.output = forward_[n.output.index()];
      layout.backward.output = kept(n.output);
      if (r_.training) layout.output_gradient = gradient_of(n.output);
    }
    if (layout_.loss.present) layout_.loss.logits = forward_[node(last_node()).inputs[0].index()];
    layout_.data_input = forward_[r_.graph.input.index()];
    if (!r_.with_loss && inside(uses_[r_.graph.output.index()].producer)) {
      layout_.model_output = forward_[r_.graph.output.index()];
    }
  }

  struct Patch {
    Place* place;
    std::size_t lifetime;
    bool backward;
  };

  const LayoutRequest& r_;
  std::vector<ValueUse> uses_;
  StageLayout layout_;
  RecomputePlan recompute_;
  std::vector<std::int64_t> backward_time_, recompute_time_;  // [node of the stage] index in layout_.backward
  std::vector<Place> forward_, again_, gradient_;             // [value]
  std::vector<bool> gradient_written_;                        // [value]
  std::vector<ValueId> alias_of_;                             // [value] whose gradient is this value's too
  std::vector<Lifetime> forward_lifetimes_, backward_lifetimes_;
  std::vector<Patch> patches_;
};

}  // namespace

StageLayout lay_out(const LayoutRequest& request) { return LayoutBuilder(request).run(); }

ArenaLayout lay_out_arena(const StageLayout& stage, const schedule::StageSlots& slots) {
  ArenaLayout arena;
  const auto set = [&](Region region, std::int32_t count) { arena.slots[static_cast<std::size_t>(region)] = count; };
  set(Region::Scratch, 1);
  set(Region::Activation, slots.activation_count);
  set(Region::WeightInput, slots.weight_input_count);
  set(Region::WeightGradient, slots.weight_gradient_count);
  set(Region::OutputGradient, slots.output_gradient_count);
  set(Region::SendForward, kSendRing);
  set(Region::SendBackward, kSendRing);
  for (std::size_t region = 0; region < kRegions; ++region) {
    std::size_t& end = is_message(static_cast<Region>(region)) ? arena.message_bytes : arena.bytes;
    arena.begin[region] = end;
    end += stage.bytes[region] * static_cast<std::size_t>(arena.slots[region]);
  }
  return arena;
}

RankArena lay_out_arenas(const std::vector<StageLayout>& stages,
                         const std::vector<const schedule::StageSlots*>& slots) {
  constexpr auto kScratch = static_cast<std::size_t>(Region::Scratch);
  RankArena rank;
  for (const StageLayout& stage : stages) rank.bytes = std::max(rank.bytes, stage.bytes[kScratch]);
  for (std::size_t s = 0; s < stages.size(); ++s) {
    ArenaLayout arena = lay_out_arena(stages[s], *slots[s]);
    // Scratch comes first there.
    const std::size_t scratch = stages[s].bytes[kScratch];
    for (std::size_t region = 0; region < kRegions; ++region) {
      if (region == kScratch) continue;
      std::size_t& begin = arena.begin[region];
      if (is_message(static_cast<Region>(region))) {
        begin += rank.message_bytes;
      } else {
        begin = rank.bytes + begin - std::min(begin, scratch);
      }
    }
    rank.bytes += arena.bytes - scratch;
    rank.message_bytes += arena.message_bytes;
    rank.stages.push_back(arena);
  }
  return rank;
}

}  // namespace trainer::runtime
