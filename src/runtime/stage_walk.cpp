#include "stage_walk.hpp"

#include <algorithm>

#include "trainer/core/error.hpp"

namespace trainer::runtime {

namespace {

std::int64_t most_elements(const RunPlan& shape, const plan::LocalGraph& local) {
  std::int64_t most = 0;
  for (const std::int64_t size : reduction_sizes(shape, local, 0)) most = std::max(most, size);
  return most;
}

StageLayout layout_of(const RunPlan& shape, const plan::LocalGraph& local, int threads) {
  return lay_out({.graph = shape.graph,
                  .local = local,
                  .nodes = shape.nodes(StageId(0)),
                  .samples = shape.micro_batch_samples,
                  .threads = threads,
                  .training = true,
                  .split_backward = true,
                  .precision = matmul_precision(shape.config),
                  .with_loss = true});
}

schedule::StageSlots two_slots() {
  schedule::StageSlots slots;
  slots.activation_count = slots.weight_input_count = 2;
  slots.weight_gradient_count = slots.output_gradient_count = 1;
  return slots;
}

// Values that products and norms are as fast with as with a model's own.
void fill(float* values, std::size_t count, float scale) {
  for (std::size_t i = 0; i < count; ++i) {
    values[i] = static_cast<float>(static_cast<int>((i * 2654435761u >> 8) % 2001) - 1000) * 1e-3f * scale;
  }
}

}  // namespace

RunPlan stretch_of(const RunPlan& whole, Range nodes, std::int64_t samples, std::int64_t tensor) {
  RunPlan shape;
  shape.config = whole.config;
  shape.graph = whole.graph;
  shape.mesh = {1, 1, tensor};
  shape.stage_nodes = {nodes};
  shape.stages_of_rank = {{StageId(0)}};
  shape.training = schedule::one_f_one_b({1, 2});
  shape.micro_batch_samples = samples;
  shape.parameter_uses.resize(shape.graph.parameters.size());
  for (std::int64_t i = nodes.begin; i < nodes.end; ++i) {
    for (const ParameterId p : shape.graph.nodes[static_cast<std::size_t>(i)].parameters) {
      shape.parameter_uses[p.index()].push_back({NodeId(i), StageId(0)});
    }
  }
  return shape;
}

StageWalk::StageWalk(const RunPlan& shape, std::int64_t tensor_rank, comm::Communicator& tensor_ranks,
                     const storage::Dataset& data, ThreadPool& pool)
    : shape_(shape),
      local_(plan::shard(shape.graph, shape.mesh.tensor, tensor_rank)),
      tensor_(tensor_ranks, most_elements(shape, local_)),
      layout_(layout_of(shape, local_, pool.threads())),
      arena_layout_(lay_out_arena(layout_, two_slots())),
      parameters_(lay_out_parameters(shape, local_, {0, 0, tensor_rank}), true, 0),
      runner_(shape.graph, local_, layout_, parameters_, pool, tensor_),
      batches_(data, storage::split(data.size(), shape.config.data.validation_fraction), shape.config.training.seed, 0,
               1, kSlots),
      valid_(static_cast<std::size_t>(layout_.samples)) {
  fill(parameters_.weights(), parameters_.layout().weight_elements, 0.05f);
  arena_ = Buffer(arena_layout_.bytes);
  messages_ = Buffer(arena_layout_.message_bytes);
  fill(arena_.f32(), arena_.size() / sizeof(float), 1.0f);
  const std::vector<model::Unit>& pieces = shape.graph.pieces;
  const Range nodes = shape.nodes(StageId(0));
  while (pieces[first_piece_].node_begin < nodes.begin) ++first_piece_;
  std::size_t piece = 0;
  for (const NodeLayout& node : layout_.nodes) {
    while (pieces[first_piece_ + piece].node_end <= node.node.value) ++piece;
    piece_of_.push_back(piece);
  }
  std::size_t count = 0;
  while (first_piece_ + count < pieces.size() && pieces[first_piece_ + count].node_end <= nodes.end) ++count;
  for (auto* visits : {&visits_.forward, &visits_.backward_input, &visits_.backward_weight, &visits_.backward}) {
    visits->resize(count);
  }
  marks_.reserve(2 * layout_.nodes.size() + 2);
  runner_.progress = [this] { mark(); };
  const std::int64_t size = layout_.samples * kSlots;
  batches_.set({.first = 0, .size = size, .limit = size, .held_out = false});
}

Frame StageWalk::frame_of(std::int32_t slot) {
  Frame frame{};
  for (std::size_t r = 0; r < kRegions; ++r) {
    const auto region = static_cast<Region>(r);
    const std::int32_t at = std::min(slot, arena_layout_.slots[r] - 1);
    std::byte* const memory = is_message(region) ? messages_.data() : arena_.data();
    frame[r] = memory + arena_layout_.begin[r] + layout_.bytes[r] * static_cast<std::size_t>(std::max(0, at));
  }
  return frame;
}

void StageWalk::forward(std::int32_t slot) {
  const Frame frame = frame_of(slot);
  const ops::MicroBatch batch{.samples = layout_.samples,
                              .positions = shape_.graph.positions,
                              .first_sample = static_cast<std::uint64_t>(batches_.first_of(slot)),
                              .seed = shape_.config.training.seed,
                              .training = true};
  if (std::byte* input = at(frame, layout_.data_input)) {
    batches_.load_inputs(slot, reinterpret_cast<std::int32_t*>(input), reinterpret_cast<float*>(input));
  }
  runner_.forward(frame, batch);
  if (!layout_.loss.present) return;
  const bool classes = shape_.graph.values[shape_.graph.target.index()].kind == model::ValueKind::Tokens;
  std::byte* target = at(frame, layout_.loss.target);
  batches_.load_targets(slot, classes ? reinterpret_cast<std::int32_t*>(target) : nullptr,
                        classes ? nullptr : reinterpret_cast<float*>(target));
  batches_.load_valid(slot, valid_.data());
  runner_.loss(frame, {.scale = 1e-3f, .count_hits = false, .valid = valid_.data()});
}

// What comes before a pass's first mark belongs to its first piece, what comes behind the last one to its last.
void StageWalk::collect(std::vector<std::vector<double>>& visits, bool reversed, std::size_t per_node, bool keep) {
  const std::size_t nodes = layout_.nodes.size();
  if (marks_.size() != 2 + per_node * nodes) internal_error("a pass of a stage walk has other nodes than its layout");
  std::vector<double> seconds(visits.size(), 0.0);
  for (std::size_t i = 0; i < nodes; ++i) {
    const std::size_t piece = piece_of_[reversed ? nodes - 1 - i : i];
    seconds[piece] += std::chrono::duration<double>(marks_[per_node * (i + 1)] - marks_[per_node * i]).count();
  }
  seconds[reversed ? 0 : visits.size() - 1] +=
      std::chrono::duration<double>(marks_.back() - marks_[marks_.size() - 2]).count();
  if (!keep) return;
  for (std::size_t piece = 0; piece < visits.size(); ++piece) visits[piece].push_back(seconds[piece]);
}

void StageWalk::round(bool keep) {
  const auto timed = [&](std::vector<std::vector<double>>& visits, bool reversed, std::size_t per_node,
                         const auto& pass) {
    marks_.clear();
    mark();
    pass();
    mark();
    collect(visits, reversed, per_node, keep);
  };
  const auto batch = [&](std::int32_t slot) {
    return ops::MicroBatch{.samples = layout_.samples,
                           .positions = shape_.graph.positions,
                           .first_sample = static_cast<std::uint64_t>(batches_.first_of(slot)),
                           .seed = shape_.config.training.seed,
                           .training = true};
  };
  timed(visits_.forward, false, 1, [&] { forward(0); });
  timed(visits_.forward, false, 1, [&] { forward(1); });
  timed(visits_.backward_input, true, 1, [&] { runner_.backward_input(frame_of(0), batch(0)); });
  timed(visits_.backward_weight, true, 1, [&] { runner_.backward_weight(frame_of(0), batch(0), true); });
  timed(visits_.backward, true, 2, [&] { runner_.backward(frame_of(1), batch(1), true); });
}

}  // namespace trainer::runtime
