// This rank's parameters: flat weights, gradients (a buffer a use) and optimizer state, and the boxes of the global
// tensors that they are. Replicas on one node hold one copy of the weights among them, and each only its share of the
// optimizer's state.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "trainer/comm/communicator.hpp"
#include "trainer/comm/shared_memory.hpp"
#include "trainer/core/tensor.hpp"
#include "trainer/core/thread_pool.hpp"
#include "trainer/optim/optimizer.hpp"
#include "trainer/runtime/run_plan.hpp"

namespace trainer::runtime {

/// One of a parameter's boxes, or rows of it.
struct Piece {
  Box box;
  std::int64_t begin = 0;  // first element, in the parameter's memory
  std::size_t state = 0;   // element offset in each state() where replicas divide it; else the weight's own offset
};

struct HeldParameter {
  ParameterId id;
  std::vector<Box> boxes;  // one behind the other in memory
  std::int64_t elements = 0;
  /// What this replica does for all of them: an equal share of each box's rows, the same on every stage cut (all rows
  /// where replicas exchange no gradients). It sums
  /// their squares and saves them; where replicas share memory it alone sums their gradients and updates them.
  std::vector<Piece> share;
  std::size_t weight = 0;  // element offset in weights() and each state()
  bool decay = true;
  /// This rank speaks for the parameter (its share) in norms and checkpoints: not a copy on another tensor rank, not
  /// the second holder of a tied one.
  bool counted = true;
  std::vector<std::size_t> gradients;  // element offset of each use on this rank, in node order
};

struct ParameterLayout {
  std::vector<HeldParameter> held;  // in the global order of parameters
  struct Use {
    std::size_t weight = 0;
    std::size_t gradient = 0;
    std::int64_t elements = 0;
  };
  std::vector<std::vector<Use>> of_node;  // [node][parameter of the node]; empty for nodes of other ranks
  std::size_t weight_elements = 0;
  std::size_t gradient_elements = 0;
  /// Nodes with parameters as their gradients lie in memory: the stages in reverse order of their last weight
  /// gradients, nodes of a stage in their order, so that a step completes the gradients from the end.
  std::vector<NodeId> gradient_order;
  std::size_t state_elements = 0;  // of this replica's share
  bool can_take_back = false;      // training.optimistic_step: keeps what an update changes as it was before
  bool shared = false;             // replicas are planned to lie on one node
  bool delayed = false;            // parallel.delayed_gradients: two sets of gradients
};
/// Elements of the weights that this rank updates, and of each of its states.
inline std::size_t updated_elements(const ParameterLayout& layout) {
  return layout.shared ? layout.state_elements : layout.weight_elements;
}
ParameterLayout lay_out_parameters(const RunPlan& plan, const plan::LocalGraph& local, const plan::Coordinates& at);

/// Initial values of a box of a parameter, row-major: each element a function of (seed, parameter name, global index).
void set_initial_values(const model::Parameter& parameter, const Box& box, std::uint64_t seed, float* to,
                        ThreadPool& pool);

/// Counters that replicas raise in the memory they share.
enum ReplicaChannel : int { kBucketsReady, kWeightsUpdated, kPassesLeft, kReplicaChannels };

class Parameters {
 public:
  /// Books memory; gradients and `state_count` state tensors only when `training`. Weights are zero until initialise or
  /// loaded. With `replicas` (this one's number in it is its rank; collective over it then) their memory is shared
  /// where they are on one node.
  Parameters(ParameterLayout layout, bool training, int state_count, comm::Communicator* replicas = nullptr);

  /// Initial values of what this rank sets: each element a function of (seed, parameter name, global index).
  void initialise(const model::Graph& graph, std::uint64_t seed, ThreadPool& pool);

  const ParameterLayout& layout() const { return layout_; }
  float* weights() { return weights_; }
  /// Of the pass that runs, or ran last.
  float* gradients() { return gradients_; }
  /// What the optimizer reads: those of the last pass; where gradients are delayed, of the one before.
  float* applied_gradients() { return gradient_sets_[layout_.delayed ? 1 - set_ : set_]; }
  /// Where gradients are delayed, before a pass: what gradients() was is applied from now on, and the other set
  /// written.
  void swap_gradients();
  float* state(int index) { return states_[static_cast<std::size_t>(index)].f32(); }

  /// The memory that replicas share; null: each has its own.
  comm::SharedMemory* shared() { return shared_.get(); }
  float* gradients_of(int replica) { return reinterpret_cast<float*>(shared_->part(replica)); }
  /// What this rank sums, updates and loads: its share where replicas share memory, else everything.
  const std::vector<Piece>& duty(const HeldParameter& held) const { return shared_ ? held.share : whole_[index(held)]; }

  /// What the optimizer walks, in the order of layout().held; the gradient is that of the first use, in
  /// applied_gradients().
  const std::vector<optim::Segment>& segments() const { return segments_[layout_.delayed ? 1 - set_ : set_]; }

 private:
  std::size_t index(const HeldParameter& held) const { return static_cast<std::size_t>(&held - layout_.held.data()); }
  void take_memory(bool training, comm::Communicator* replicas);
  std::vector<optim::Segment> make_segments(float* gradients, int state_count);

  ParameterLayout layout_;
  std::vector<std::vector<Piece>> whole_;  // [held]
  // A shared part is a replica's gradients; behind those of replica 0 lie the weights.
  std::unique_ptr<comm::SharedMemory> shared_;
  Buffer own_weights_, own_gradients_;
  float* weights_ = nullptr;
  float* gradients_ = nullptr;
  std::vector<Buffer> states_;
  Buffer before_;
  // Two where gradients are delayed, else the first alone.
  std::array<float*, 2> gradient_sets_ = {};
  std::array<std::vector<optim::Segment>, 2> segments_;
  std::size_t set_ = 0;  // that gradients() is
};

}  // namespace trainer::runtime
