// A model on one rank that only goes forward: for generation and for looking at logits.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "trainer/comm/communicator.hpp"
#include "trainer/runtime/stage_runner.hpp"
#include "trainer/storage/checkpoint.hpp"

namespace trainer::runtime {

class InferenceModel {
 public:
  /// One sample at a time, of up to `positions()` tokens. `alone` is a communicator of one rank. Throws Error(Usage)
  /// when the checkpoint's model does not read tokens.
  InferenceModel(comm::Communicator& alone, const config::Config& config, const storage::CheckpointReader& checkpoint,
                 ThreadPool& pool);

  std::int64_t positions() const { return plan_.graph.positions; }
  std::int64_t vocabulary() const { return plan_.graph.values[plan_.graph.output.index()].features; }

  /// Logits [tokens.size(), vocabulary] in memory that the next call overwrites. At most positions() tokens: attention
  /// is causal, so what pads the rest changes nothing.
  ConstMatrix logits(std::span<const std::int32_t> tokens);

 private:
  RunPlan plan_;
  plan::LocalGraph local_;
  StageLayout layout_;
  std::unique_ptr<Parameters> parameters_;
  std::unique_ptr<TensorGroup> tensor_;
  std::unique_ptr<StageRunner> runner_;
  Buffer arena_;
  Frame frame_{};
};

}  // namespace trainer::runtime
