// The generators with one stage a rank: published orders of compute actions.
#include <fmt/format.h>

#include <algorithm>

#include "trainer/core/error.hpp"
#include "trainer/schedule/schedule.hpp"

namespace trainer::schedule {
namespace {

Schedule empty_table(const PipelineShape& shape) {
  if (shape.stages < 1 || shape.micro_batches < 1) {
    internal_error(fmt::format("a pipeline of {} stages and {} micro-batches; both must be at least 1", shape.stages,
                               shape.micro_batches));
  }
  if (shape.chunks != 1) internal_error(fmt::format("{} stages a rank in a schedule for one", shape.chunks));
  Schedule schedule;
  schedule.stages = shape.stages;
  schedule.micro_batches = shape.micro_batches;
  for (std::int64_t s = 0; s < shape.stages; ++s) schedule.rank_of_stage.push_back(static_cast<std::int32_t>(s));
  schedule.ranks.resize(static_cast<std::size_t>(shape.stages));
  return schedule;
}

/// Appends to the row of one stage, which is also its rank.
class RowWriter {
 public:
  RowWriter(const PipelineShape& shape, std::int64_t stage, std::vector<Action>& row, bool all_split = false)
      : stage_(stage), split_(shape.split_backward && (stage > 0 || all_split)), row_(row) {
    row_.reserve(static_cast<std::size_t>(shape.micro_batches) * (split_ ? 3 : 2));
  }

  void forward(std::int64_t micro_batch) { add(ActionKind::Forward, micro_batch); }
  void backward(std::int64_t micro_batch) {
    if (!split_) return add(ActionKind::Backward, micro_batch);
    backward_input(micro_batch);
    backward_weight(micro_batch);
  }
  void backward_input(std::int64_t micro_batch) { add(ActionKind::BackwardInput, micro_batch); }
  void backward_weight(std::int64_t micro_batch) { add(ActionKind::BackwardWeight, micro_batch); }

 private:
  void add(ActionKind kind, std::int64_t micro_batch) {
    row_.push_back({StageId(stage_), kind, MicroBatchId(micro_batch)});
  }

  std::int64_t stage_;
  bool split_;
  std::vector<Action>& row_;
};

}  // namespace

Schedule gpipe(const PipelineShape& shape) {
  Schedule schedule = empty_table(shape);
  for (std::int64_t s = 0; s < shape.stages; ++s) {
    RowWriter row(shape, s, schedule.ranks[static_cast<std::size_t>(s)]);
    for (std::int64_t i = 0; i < shape.micro_batches; ++i) row.forward(i);
    for (std::int64_t i = 0; i < shape.micro_batches; ++i) row.backward(i);
  }
  return schedule;
}

Schedule one_f_one_b(const PipelineShape& shape) {
  Schedule schedule = empty_table(shape);
  for (std::int64_t s = 0; s < shape.stages; ++s) {
    RowWriter row(shape, s, schedule.ranks[static_cast<std::size_t>(s)]);
    const std::int64_t warm_up = std::min(shape.stages - 1 - s, shape.micro_batches);
    for (std::int64_t i = 0; i < warm_up; ++i) row.forward(i);
    for (std::int64_t i = 0; i < shape.micro_batches; ++i) {
      if (warm_up + i < shape.micro_batches) row.forward(warm_up + i);
      row.backward(i);
    }
  }
  return schedule;
}

Schedule zero_bubble_h1(const PipelineShape& shape) {
  if (!shape.split_backward) internal_error("ZB-H1 with a joint backward");
  Schedule schedule = one_f_one_b(shape);
  // Stage 0 holds as many micro-batches as there are stages in 1F1B already.
  for (std::int64_t s = 1; s < shape.stages; ++s) {
    schedule.ranks[static_cast<std::size_t>(s)].clear();
    RowWriter row(shape, s, schedule.ranks[static_cast<std::size_t>(s)]);
    std::int64_t forwards = 0;
    std::int64_t weights = 0;
    while (forwards < std::min(shape.stages - 1 - s, shape.micro_batches)) row.forward(forwards++);
    for (std::int64_t i = 0; i < shape.micro_batches; ++i) {
      if (forwards < shape.micro_batches) {
        if (forwards - weights >= shape.stages) row.backward_weight(weights++);
        row.forward(forwards++);
      }
      row.backward_input(i);
      if (forwards == shape.micro_batches) row.backward_weight(weights++);
    }
    while (weights < shape.micro_batches) row.backward_weight(weights++);
  }
  return schedule;
}

Schedule zero_bubble_h2(const PipelineShape& shape) {
  if (!shape.split_backward) internal_error("ZB-H2 with a joint backward");
  Schedule schedule = empty_table(shape);
  const std::int64_t m = shape.micro_batches;
  for (std::int64_t s = 0; s < shape.stages; ++s) {
    RowWriter row(shape, s, schedule.ranks[static_cast<std::size_t>(s)], /*all_split=*/true);
    std::int64_t forwards = 0;
    std::int64_t weights = 0;
    const std::int64_t most = 2 * shape.stages - 1;  // held
    const std::int64_t warm_up = std::min(2 * (shape.stages - s) - 2, m);
    while (forwards < warm_up) row.forward(forwards++);
    for (std::int64_t i = 0; i < m; ++i) {
      if (forwards < m) {
        if (forwards - weights >= most) row.backward_weight(weights++);
        row.forward(forwards++);
      }
      row.backward_input(i);
      if (forwards == m) row.backward_weight(weights++);
    }
    while (weights < m) row.backward_weight(weights++);
  }
  return schedule;
}

Schedule forward_only(const PipelineShape& shape) {
  Schedule schedule = empty_table(shape);
  schedule.forward_only = true;
  for (std::int64_t s = 0; s < shape.stages; ++s) {
    RowWriter row(shape, s, schedule.ranks[static_cast<std::size_t>(s)]);
    for (std::int64_t i = 0; i < shape.micro_batches; ++i) row.forward(i);
  }
  return schedule;
}

Schedule forwards_of(const Schedule& training) {
  Schedule schedule = training;
  schedule.forward_only = true;
  for (std::vector<Action>& row : schedule.ranks) {
    std::erase_if(row, [](const Action& action) {
      return action.kind != ActionKind::Forward && action.kind != ActionKind::SendForward &&
             action.kind != ActionKind::RecvForward;
    });
  }
  return schedule;
}

}  // namespace trainer::schedule
