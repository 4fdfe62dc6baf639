// This rank's parameters: flat weights, gradients (a buffer a use) and optimizer state, and the boxes of the global
// tensors that they are.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "trainer/core/tensor.hpp"
#include "trainer/core/thread_pool.hpp"
#include "trainer/optim/optimizer.hpp"
#include "trainer/runtime/run_plan.hpp"

namespace trainer::runtime {

struct HeldParameter {
  ParameterId id;
  std::vector<Box> boxes;  // one behind the other in memory
  std::int64_t elements = 0;
  std::size_t weight = 0;  // element offset in weights() and each state()
  bool decay = true;
  /// This rank speaks for the parameter in norms and checkpoints (replica 0 only): not a copy on another tensor rank,
  /// not the second holder of a tied one.
  bool counted = true;
  std::vector<std::size_t> gradients;  // element offset of each use in this stage, in node order
};

struct ParameterLayout {
  std::vector<HeldParameter> held;  // in the global order of parameters
  struct Use {
    std::size_t weight = 0;
    std::size_t gradient = 0;
    std::int64_t elements = 0;
  };
  std::vector<std::vector<Use>> of_node;  // [node − first node of the stage][parameter of the node]
  std::size_t weight_elements = 0;
  std::size_t gradient_elements = 0;  // in node order, so that a backward completes them from the end
};
ParameterLayout lay_out_parameters(const RunPlan& plan, const plan::LocalGraph& local, const plan::Coordinates& at);

class Parameters {
 public:
  /// Books memory; gradients and `state_count` state tensors only when `training`. Weights are zero until initialise or
  /// loaded.
  Parameters(ParameterLayout layout, bool training, int state_count);

  /// Initial values: each element a function of (seed, parameter name, global index).
  void initialise(const model::Graph& graph, std::uint64_t seed, ThreadPool& pool);

  const ParameterLayout& layout() const { return layout_; }
  float* weights() { return weights_.f32(); }
  float* gradients() { return gradients_.f32(); }
  float* state(int index) { return states_[static_cast<std::size_t>(index)].f32(); }

  /// What the optimizer walks, in the order of layout().held; the gradient is that of the first use.
  const std::vector<optim::Segment>& segments() const { return segments_; }

 private:
  ParameterLayout layout_;
  Buffer weights_;
  Buffer gradients_;
  std::vector<Buffer> states_;
  std::vector<optim::Segment> segments_;
};

}  // namespace trainer::runtime
