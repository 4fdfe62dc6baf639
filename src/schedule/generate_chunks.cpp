// The generators with several stages a rank: published orders of compute actions.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "trainer/core/error.hpp"
#include "trainer/schedule/schedule.hpp"

namespace trainer::schedule {
namespace {

enum class Placement : std::uint8_t {
  Loop,  // stage s on rank s mod ranks
  V      // down the ranks and back up: rank r holds r and stages − 1 − r
};

Schedule empty_table(const PipelineShape& shape, Placement placement) {
  const bool divides = shape.chunks >= 1 && shape.stages % shape.chunks == 0;
  if (shape.stages < 1 || shape.micro_batches < 1 || !divides) {
    internal_error(fmt::format("a pipeline of {} stages, {} a rank, and {} micro-batches", shape.stages, shape.chunks,
                               shape.micro_batches));
  }
  Schedule schedule;
  schedule.stages = shape.stages;
  schedule.micro_batches = shape.micro_batches;
  const std::int64_t ranks = shape.ranks();
  for (std::int64_t s = 0; s < shape.stages; ++s) {
    const std::int64_t rank = placement == Placement::Loop || s < ranks ? s % ranks : shape.stages - 1 - s;
    schedule.rank_of_stage.push_back(static_cast<std::int32_t>(rank));
  }
  schedule.ranks.resize(static_cast<std::size_t>(ranks));
  return schedule;
}

/// Appends to a row; micro-batches that are not there leave no action.
class ChunkRow {
 public:
  ChunkRow(std::int64_t micro_batches, std::vector<Action>& row) : micro_batches_(micro_batches), row_(row) {}

  void add(std::int64_t stage, ActionKind kind, std::int64_t micro_batch) {
    if (micro_batch < micro_batches_) row_.push_back({StageId(stage), kind, MicroBatchId(micro_batch)});
  }

 private:
  std::int64_t micro_batches_;
  std::vector<Action>& row_;
};

/// The two stages of a rank under V, each counting its own forwards, I and W; chunk 0 is the one on the way down.
class VRow {
 public:
  VRow(const PipelineShape& shape, std::int64_t rank, std::vector<Action>& row)
      : stage_{rank, shape.stages - 1 - rank}, row_(shape.micro_batches, row) {}

  void forward(std::size_t chunk) { row_.add(stage_[chunk], ActionKind::Forward, forwards_[chunk]++); }
  void backward_input(std::size_t chunk) { row_.add(stage_[chunk], ActionKind::BackwardInput, inputs_[chunk]++); }
  void backward_weight(std::size_t chunk) { row_.add(stage_[chunk], ActionKind::BackwardWeight, weights_[chunk]++); }
  /// B as one action.
  void backward(std::size_t chunk) {
    row_.add(stage_[chunk], ActionKind::Backward, inputs_[chunk]++);
    ++weights_[chunk];
  }
  /// I and W as two actions.
  void backward_halves(std::size_t chunk) {
    backward_input(chunk);
    backward_weight(chunk);
  }
  /// Weight gradients that I has left.
  std::int64_t owed(std::size_t chunk) const { return inputs_[chunk] - weights_[chunk]; }
  std::int64_t forwards(std::size_t chunk) const { return forwards_[chunk]; }

 private:
  std::array<std::int64_t, 2> stage_;
  ChunkRow row_;
  std::array<std::int64_t, 2> forwards_{}, inputs_{}, weights_{};
};

void require_v(const PipelineShape& shape, std::string_view name) {
  if (!shape.split_backward) internal_error(fmt::format("{} with a joint backward", name));
  if (shape.chunks != 2) internal_error(fmt::format("{} with {} stages a rank", name, shape.chunks));
}

/// Fills one row of ZB-V for `micro_batches` ≥ 2 · ranks − 1.
void write_zero_bubble_v(VRow& row, std::int64_t rank, std::int64_t ranks, std::int64_t micro_batches) {
  // Warm-up: until micro-batch 0 has come back up to this rank, then one of each chunk in turn.
  for (std::int64_t i = 0; i < 2 * (ranks - rank) - 1; ++i) row.forward(0);
  for (std::int64_t i = 0; i < rank; ++i) {
    row.forward(1);
    row.forward(0);
  }
  for (std::int64_t i = 0; i < ranks - rank; ++i) {
    row.forward(1);
    row.backward_halves(1);
  }
  while (row.forwards(1) < row.forwards(0) || row.forwards(0) < micro_batches) {
    if (row.forwards(0) < micro_batches) row.forward(0);
    row.backward_halves(0);
    row.forward(1);
    row.backward_halves(1);
  }
  // Cool-down: the ranks below wait for I, so W goes last.
  for (std::int64_t i = 0; i < rank; ++i) {
    row.backward_input(0);
    row.backward_input(1);
  }
  for (std::int64_t i = 0; i < ranks - rank; ++i) {
    row.backward_input(0);
    row.backward_weight(0);
  }
  while (row.owed(1) > 0) row.backward_weight(1);
  while (row.owed(0) > 0) row.backward_weight(0);
}

/// Fills one row of DualPipe-V for `micro_batches` ≥ 2 · ranks.
void write_dualpipe_v(VRow& row, std::int64_t rank, std::int64_t ranks, std::int64_t micro_batches) {
  const std::int64_t below = ranks - rank - 1;  // ranks further down the V
  for (std::int64_t i = 0; i < 2 * below; ++i) row.forward(0);
  for (std::int64_t i = 0; i < rank + 1; ++i) {
    row.forward(0);
    row.forward(1);
  }
  for (std::int64_t i = 0; i < below; ++i) {
    row.backward_halves(1);
    row.forward(1);
  }
  // Steady state: pairs that may overlap.
  for (std::int64_t i = 0; i < micro_batches - 2 * ranks + rank + 1; ++i) {
    row.forward(0);
    row.backward(1);
    row.forward(1);
    row.backward(0);
  }
  for (std::int64_t i = 0; i < below; ++i) {
    row.backward(1);
    row.forward(1);
    row.backward(0);
  }
  // Cool-down: from the middle on, only I; the weight gradients fill the gaps that follow, the oldest first.
  std::vector<std::size_t> owed;
  for (std::int64_t i = 0; i < 2 * (rank + 1); ++i) {
    const std::size_t chunk = i % 2 == 0 ? 1 : 0;
    if (i < rank + 1) {
      row.backward(chunk);
    } else {
      row.backward_input(chunk);
      owed.push_back(chunk);
    }
  }
  std::size_t next = 0;
  for (std::int64_t i = 0; i < below; ++i) {
    row.backward_weight(owed[next++]);
    row.backward_input(0);
    owed.push_back(0);
  }
  while (next < owed.size()) row.backward_weight(owed[next++]);
}

}  // namespace

Schedule interleaved(const PipelineShape& shape) {
  Schedule schedule = empty_table(shape, Placement::Loop);
  const std::int64_t p = shape.ranks();
  if (shape.group != 0 && shape.group < p) {
    internal_error(fmt::format("groups of {} micro-batches on {} ranks", shape.group, p));
  }
  // Every group must keep all ranks busy, the last one too.
  const std::int64_t most = (shape.micro_batches + p - 1) / p * p;
  const std::int64_t group = std::min(shape.group == 0 ? p : shape.group, most);
  const std::int64_t rest = most % group;
  const std::int64_t micro_batches = rest > 0 && rest < p ? most + p - rest : most;

  struct Turn {
    std::int64_t chunk, micro_batch;
  };
  std::vector<Turn> turns;  // in the order of forwards; backwards take the chunks the other way round
  for (std::int64_t first = 0; first < micro_batches; first += group) {
    for (std::int64_t chunk = 0; chunk < shape.chunks; ++chunk) {
      for (std::int64_t i = first; i < std::min(first + group, micro_batches); ++i) turns.push_back({chunk, i});
    }
  }
  const auto count = static_cast<std::int64_t>(turns.size());
  for (std::int64_t r = 0; r < p; ++r) {
    ChunkRow row(shape.micro_batches, schedule.ranks[static_cast<std::size_t>(r)]);
    const auto forward = [&](std::int64_t k) {
      const Turn& turn = turns[static_cast<std::size_t>(k)];
      row.add(turn.chunk * p + r, ActionKind::Forward, turn.micro_batch);
    };
    const auto backward = [&](std::int64_t k) {
      const Turn& turn = turns[static_cast<std::size_t>(k)];
      const std::int64_t stage = (shape.chunks - 1 - turn.chunk) * p + r;
      if (!shape.split_backward || stage == 0) return row.add(stage, ActionKind::Backward, turn.micro_batch);
      row.add(stage, ActionKind::BackwardInput, turn.micro_batch);
      row.add(stage, ActionKind::BackwardWeight, turn.micro_batch);
    };
    // One stage a rank is 1F1B, which needs half the warm-up: no later chunk waits for it.
    const std::int64_t steps = shape.chunks == 1 ? 1 : 2;
    const std::int64_t warm_up = std::min(steps * (p - 1 - r) + (shape.chunks - 1) * group, count);
    for (std::int64_t k = 0; k < warm_up; ++k) forward(k);
    for (std::int64_t k = 0; k < count; ++k) {
      if (warm_up + k < count) forward(warm_up + k);
      backward(k);
    }
  }
  return schedule;
}

Schedule zero_bubble_v(const PipelineShape& shape) {
  require_v(shape, "ZB-V");
  Schedule schedule = empty_table(shape, Placement::V);
  const std::int64_t p = shape.ranks();
  for (std::int64_t r = 0; r < p; ++r) {
    VRow row(shape, r, schedule.ranks[static_cast<std::size_t>(r)]);
    write_zero_bubble_v(row, r, p, std::max(2 * p - 1, shape.micro_batches));
  }
  return schedule;
}

Schedule dualpipe_v(const PipelineShape& shape) {
  require_v(shape, "DualPipe-V");
  Schedule schedule = empty_table(shape, Placement::V);
  const std::int64_t p = shape.ranks();
  for (std::int64_t r = 0; r < p; ++r) {
    VRow row(shape, r, schedule.ranks[static_cast<std::size_t>(r)]);
    write_dualpipe_v(row, r, p, std::max(2 * p, shape.micro_batches));
  }
  return schedule;
}

const std::vector<Generator>& generators() {
  static const std::vector<Generator> all{
      {"gpipe", 1, false, gpipe},         {"1f1b", 1, false, one_f_one_b},    {"interleaved", 0, false, interleaved},
      {"zb-h1", 1, true, zero_bubble_h1}, {"zb-h2", 1, true, zero_bubble_h2}, {"zb-v", 2, true, zero_bubble_v},
      {"dualpipe-v", 2, true, dualpipe_v}};
  return all;
}

const Generator* find_generator(std::string_view name) {
  for (const Generator& generator : generators()) {
    if (generator.name == name) return &generator;
  }
  return nullptr;
}

}  // namespace trainer::schedule
