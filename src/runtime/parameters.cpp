#include "trainer/runtime/parameters.hpp"

#include <algorithm>

#include "trainer/core/random.hpp"
#include "trainer/runtime/pass_table.hpp"

namespace trainer::runtime {

namespace {

constexpr std::size_t kAlignElements = Buffer::kAlignment / sizeof(float);

std::size_t align_elements(std::size_t elements) {
  return (elements + kAlignElements - 1) / kAlignElements * kAlignElements;
}

// Elements of one tensor whose global indices follow each other from `first`.
void set_initial(const model::Init& init, const RandomStream& stream, std::uint64_t first, float* to,
                 std::int64_t count) {
  const auto scale = static_cast<float>(init.scale);
  switch (init.kind) {
    case model::InitKind::Zero:
      std::fill_n(to, count, 0.0f);
      return;
    case model::InitKind::One:
      std::fill_n(to, count, 1.0f);
      return;
    case model::InitKind::Normal:
      for (std::int64_t i = 0; i < count; ++i) to[i] = scale * stream.normal(first + static_cast<std::uint64_t>(i));
      return;
    case model::InitKind::Uniform:
      for (std::int64_t i = 0; i < count; ++i) {
        to[i] = scale * (2.0f * stream.uniform(first + static_cast<std::uint64_t>(i)) - 1.0f);
      }
      return;
  }
}

// Global row-major index of element `i` of a box.
std::uint64_t global_index(const Box& box, const Shape& shape, std::int64_t i) {
  std::int64_t index = 0;
  std::int64_t stride = 1;
  for (int d = shape.dims() - 1; d >= 0; --d) {
    index += (box.start[d] + i % box.extent[d]) * stride;
    i /= box.extent[d];
    stride *= shape[d];
  }
  return static_cast<std::uint64_t>(index);
}

// Rows [begin, end) of a box that lies at element `at` of its parameter's memory.
Piece rows_of(const Box& box, std::int64_t at, Range rows) {
  Piece piece{box, at, 0};
  if (box.extent.dims() == 0) return piece;
  piece.begin += box.elements() / std::max<std::int64_t>(1, box.extent[0]) * rows.begin;
  piece.box.start[0] += rows.begin;
  piece.box.extent[0] = rows.size();
  return piece;
}

std::vector<Piece> share_of(const std::vector<Box>& boxes, std::int64_t replicas, std::int64_t replica) {
  std::vector<Piece> share;
  std::int64_t at = 0;
  for (const Box& box : boxes) {
    const std::int64_t rows = box.extent.dims() == 0 ? 1 : box.extent[0];
    const Range mine = split_range(rows, replicas, replica);
    if (mine.size() > 0) share.push_back(rows_of(box, at, mine));
    at += box.elements();
  }
  return share;
}

}  // namespace

namespace {

// A buffer a use, node by node.
void place_gradients(const RunPlan& plan, Range nodes, const std::vector<std::int64_t>& held_index,
                     ParameterLayout& layout) {
  for (std::int64_t i = nodes.begin; i < nodes.end; ++i) {
    const auto& parameters = plan.graph.nodes[static_cast<std::size_t>(i)].parameters;
    for (const ParameterId id : parameters) {
      const HeldParameter& held = layout.held[static_cast<std::size_t>(held_index[id.index()])];
      layout.of_node[static_cast<std::size_t>(i)].push_back({held.weight, layout.gradient_elements, held.elements});
      layout.gradient_elements += align_elements(static_cast<std::size_t>(held.elements));
    }
    if (!parameters.empty()) layout.gradient_order.push_back(NodeId(i));
  }
}

}  // namespace

ParameterLayout lay_out_parameters(const RunPlan& plan, const plan::LocalGraph& local, const plan::Coordinates& at) {
  ParameterLayout layout;
  layout.shared = plan.mesh.data > 1 && on_one_node(plan, at).data && plan.shares_weights();
  layout.delayed = plan.config.parallel.delayed_gradients;
  layout.can_take_back = plan.config.training.optimistic_step;
  layout.of_node.resize(plan.graph.nodes.size());
  const auto here = [&](const ParameterUse& use) { return plan.rank_of(use.stage) == at.pipeline; };
  std::vector<std::int64_t> held_index(plan.graph.parameters.size(), -1);
  for (std::size_t p = 0; p < plan.graph.parameters.size(); ++p) {
    const ParameterId id(static_cast<std::int64_t>(p));
    const auto& uses = plan.uses(id);
    if (std::none_of(uses.begin(), uses.end(), here)) continue;
    HeldParameter held;
    held.id = id;
    held.boxes = local.parameters[p].boxes;
    held.elements = local.parameters[p].elements();
    held.weight = layout.weight_elements;
    held.share = plan.local_steps() ? share_of(held.boxes, 1, 0) : share_of(held.boxes, plan.mesh.data, at.data);
    for (Piece& piece : held.share) {
      piece.state = layout.state_elements;
      layout.state_elements += align_elements(static_cast<std::size_t>(piece.box.elements()));
    }
    held.decay = plan.graph.parameters[p].decay;
    held.counted = here(uses.front()) && (local.parameters[p].sharded || at.tensor == 0);
    layout.weight_elements += align_elements(static_cast<std::size_t>(held.elements));
    held_index[p] = static_cast<std::int64_t>(layout.held.size());
    layout.held.push_back(std::move(held));
  }
  for (const StageId stage : stages_by_completion(plan.training, at.pipeline)) {
    place_gradients(plan, plan.nodes(stage), held_index, layout);
  }
  for (std::size_t i = 0; i < layout.of_node.size(); ++i) {
    for (std::size_t k = 0; k < layout.of_node[i].size(); ++k) {
      const ParameterId id = plan.graph.nodes[i].parameters[k];
      HeldParameter& held = layout.held[static_cast<std::size_t>(held_index[id.index()])];
      held.gradients.push_back(layout.of_node[i][k].gradient);
    }
  }
  return layout;
}

Parameters::Parameters(ParameterLayout layout, bool training, int state_count, comm::Communicator* replicas)
    : layout_(std::move(layout)) {
  for (const HeldParameter& held : layout_.held) {
    whole_.push_back(share_of(held.boxes, 1, 0));
    for (Piece& piece : whole_.back()) piece.state = held.weight + static_cast<std::size_t>(piece.begin);
  }
  take_memory(training, replicas);
  if (!training) return;
  const std::size_t elements = shared_ ? layout_.state_elements : layout_.weight_elements;
  for (int s = 0; s < state_count; ++s) states_.emplace_back(elements * sizeof(float));
  const auto copies = static_cast<std::size_t>(1 + state_count);
  if (layout_.can_take_back) before_ = Buffer(copies * elements * sizeof(float));
  for (std::size_t set = 0; set < (layout_.delayed ? 2 : 1); ++set) {
    segments_[set] = make_segments(gradient_sets_[set], state_count);
  }
}

void Parameters::swap_gradients() {
  set_ = 1 - set_;
  gradients_ = gradient_sets_[set_];
}

std::vector<optim::Segment> Parameters::make_segments(float* gradients, int state_count) {
  std::vector<optim::Segment> segments;
  const auto copies = static_cast<std::size_t>(1 + state_count);
  for (const HeldParameter& held : layout_.held) {
    for (const Piece& piece : duty(held)) {
      optim::Segment segment;
      segment.weight = weights() + held.weight + piece.begin;
      segment.gradient = gradients + held.gradients.front() + piece.begin;
      for (int s = 0; s < state_count; ++s) segment.state[s] = state(s) + piece.state;
      segment.count = piece.box.elements();
      segment.decay = held.decay;
      if (layout_.can_take_back) segment.before = before_.f32() + copies * piece.state;
      segments.push_back(segment);
    }
  }
  return segments;
}

void Parameters::take_memory(bool training, comm::Communicator* replicas) {
  const std::size_t weight_bytes = layout_.weight_elements * sizeof(float);
  const std::size_t gradient_bytes = training ? layout_.gradient_elements * sizeof(float) : 0;
  if (training && replicas != nullptr && replicas->size() > 1) {
    const bool first = replicas->rank() == 0;
    shared_ = replicas->share(gradient_bytes + (first ? weight_bytes : 0), kReplicaChannels);
    if (comm::covers(shared_.get(), replicas->size())) {
      weights_ = reinterpret_cast<float*>(shared_->part(0) + gradient_bytes);
      gradients_ = gradient_sets_[0] = gradients_of(replicas->rank());
      return;
    }
    shared_ = nullptr;
  }
  own_weights_ = Buffer(weight_bytes);
  own_gradients_ = Buffer((layout_.delayed ? 2 : 1) * gradient_bytes);
  weights_ = own_weights_.f32();
  gradients_ = gradient_sets_[0] = own_gradients_.f32();
  gradient_sets_[1] = layout_.delayed ? gradients_ + gradient_bytes / sizeof(float) : nullptr;
}

void set_initial_values(const model::Parameter& parameter, const Box& box, std::uint64_t seed, float* to,
                        ThreadPool& pool) {
  constexpr std::int64_t kChunk = 4096;
  const RandomStream stream(seed, "init/" + parameter.name);
  const std::int64_t n = box.elements();
  const std::int64_t row = parameter.shape.dims() > 0 ? box.extent[parameter.shape.dims() - 1] : 1;
  pool.for_each((n + kChunk - 1) / kChunk, [&](std::int64_t chunk, int) {
    const std::int64_t end = std::min(n, (chunk + 1) * kChunk);
    for (std::int64_t i = chunk * kChunk; i < end;) {
      const std::int64_t count = std::min(row - i % row, end - i);
      set_initial(parameter.init, stream, global_index(box, parameter.shape, i), to + i, count);
      i += count;
    }
  });
}

void Parameters::initialise(const model::Graph& graph, std::uint64_t seed, ThreadPool& pool) {
  for (const HeldParameter& held : layout_.held) {
    for (const Piece& piece : duty(held)) {
      set_initial_values(graph.parameters[held.id.index()], piece.box, seed, weights() + held.weight + piece.begin,
                         pool);
    }
  }
}

}  // namespace trainer::runtime
