#include "trainer/runtime/inference.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "trainer/core/error.hpp"

namespace trainer::runtime {

namespace {

RunPlan one_rank_plan(config::Config config) {
  config.parallel = config::Parallel{};
  config.parallel.data = config.parallel.pipeline = config.parallel.tensor = 1;
  config.training.batch_size = 1;
  config.training.micro_batches = 1;
  config.training.micro_batch_size = 0;
  // A causal model may see its whole context; one without a context keeps the length it was trained with.
  if (std::holds_alternative<config::GptModel>(config.model)) config.training.sequence_length = 0;
  return make_plan(std::move(config), 1);
}

}  // namespace

InferenceModel::InferenceModel(comm::Communicator& alone, const config::Config& config,
                               const storage::CheckpointReader& checkpoint, ThreadPool& pool)
    : plan_(one_rank_plan(config)), local_(plan::shard(plan_.graph, 1, 0)) {
  if (plan_.graph.values[plan_.graph.input.index()].kind != model::ValueKind::Tokens) {
    throw Error(ExitCode::Usage,
                fmt::format("{}: the model reads features, not text; \"gpt\" models and \"sequential\" ones "
                            "that begin with an \"embedding\" can do this",
                            checkpoint.path()));
  }
  layout_ = lay_out({.graph = plan_.graph,
                     .local = local_,
                     .nodes = plan_.nodes(StageId(0)),
                     .samples = 1,
                     .threads = pool.threads(),
                     .training = false,
                     .split_backward = false,
                     .precision = matmul_precision(plan_.config),
                     .with_loss = false});
  parameters_ = std::make_unique<Parameters>(lay_out_parameters(plan_, local_, {}), false, 0);
  for (const HeldParameter& held : parameters_->layout().held) {
    const model::Parameter& parameter = plan_.graph.parameters[held.id.index()];
    checkpoint.read(parameter.name, held.boxes.front(), parameters_->weights() + held.weight);
  }
  tensor_ = std::make_unique<TensorGroup>(alone, 0);
  runner_ = std::make_unique<StageRunner>(plan_.graph, local_, layout_, *parameters_, pool, *tensor_);
  const ArenaLayout arena = lay_out_arena(layout_, {});
  arena_ = Buffer(arena.bytes);
  for (std::size_t region = 0; region < kRegions; ++region) frame_[region] = arena_.data() + arena.begin[region];
}

ConstMatrix InferenceModel::logits(std::span<const std::int32_t> tokens) {
  if (static_cast<std::int64_t>(tokens.size()) > positions())
    internal_error("more tokens than the model has positions");
  auto* input = reinterpret_cast<std::int32_t*>(at(frame_, layout_.data_input));
  std::fill_n(input, positions(), 0);
  std::copy(tokens.begin(), tokens.end(), input);
  runner_->forward(frame_, {.samples = 1, .positions = positions(), .first_sample = 0, .seed = 0, .training = false});
  return {reinterpret_cast<const float*>(at(frame_, layout_.model_output)), static_cast<std::int64_t>(tokens.size()),
          vocabulary()};
}

}  // namespace trainer::runtime
