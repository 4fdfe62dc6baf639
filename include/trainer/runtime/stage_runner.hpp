// Computes one stage for one micro-batch: walks the nodes of a layout over the memory it is handed.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "trainer/core/thread_pool.hpp"
#include "trainer/runtime/parameters.hpp"
#include "trainer/runtime/stage_layout.hpp"
#include "trainer/runtime/tensor_group.hpp"

namespace trainer::runtime {

/// The slot of each region that a micro-batch uses now.
using Frame = std::array<std::byte*, kRegions>;

inline std::byte* at(const Frame& frame, Place place) {
  return place.region == Region::None ? nullptr : frame[static_cast<std::size_t>(place.region)] + place.offset;
}

/// What a forward through the loss gives; sums of one micro-batch over its valid targets.
struct LossResult {
  double loss = 0;        // not divided
  std::int64_t hits = 0;  // largest logit on the target; counted only when asked
};

struct LossRequest {
  float scale = 0;  // of the gradient; 0: loss only
  bool count_hits = false;
  const std::uint8_t* valid = nullptr;  // rows that count, for real targets
};

class StageRunner {
 public:
  /// All references must outlive the runner. Collective over the tensor group (books its reductions).
  StageRunner(const model::Graph& graph, const plan::LocalGraph& local, const StageLayout& layout,
              Parameters& parameters, ThreadPool& pool, TensorGroup& tensor);

  void forward(const Frame& frame, const ops::MicroBatch& batch);
  /// The loss over the forward's logits; with a scale they become their own gradient.
  LossResult loss(const Frame& frame, const LossRequest& request);
  /// What was not kept is made again here, for a backward_weight that follows too.
  void backward_input(const Frame& frame, const ops::MicroBatch& batch);
  void backward_weight(const Frame& frame, const ops::MicroBatch& batch, bool accumulate);
  /// I and W of each node in turn; a tensor reduction of an input gradient runs behind W.
  void backward(const Frame& frame, const ops::MicroBatch& batch, bool accumulate);

  /// Called between nodes (progress of messages in flight) and after each weight gradient (with the node).
  std::function<void()> progress;
  std::function<void(NodeId)> weight_done;
  /// When set, forward stops caring about speed and records the first node whose output has a value that is not finite.
  void look_for_non_finite(bool on) { look_ = on, found_ = NodeId(); }
  NodeId first_non_finite() const { return found_; }

 private:
  void forward_node(const NodeLayout& node, const Operands& operands, Place workspace, const Frame& frame,
                    const ops::MicroBatch& batch);
  void start_input_gradient(const NodeLayout& node, const Frame& frame, const ops::MicroBatch& batch);
  void finish_input_gradient(const NodeLayout& node, const Frame& frame);
  void weight_gradient(const NodeLayout& node, const Frame& frame, const ops::MicroBatch& batch, bool accumulate);
  /// Gradients of the inputs that were not computed in their messages' own memory.
  void fill_gradient_messages(const Frame& frame);
  LossResult cross_entropy(const Frame& frame, const LossRequest& request);
  LossResult squared_error(const Frame& frame, const LossRequest& request);
  std::int64_t count_hits(const Frame& frame, ConstMatrix logits, const std::int32_t* targets);
  Matrix matrix(const Frame& frame, Place place, ValueId value) const;
  bool reduces_input_gradient(const NodeLayout& node) const {
    return local_.nodes[node.node.index()].reduce_input_gradient && tensor_.size() > 1;
  }
  void step_aside() {
    tensor_.progress(pool_);
    if (progress) progress();
  }

  const model::Graph& graph_;
  const plan::LocalGraph& local_;
  const StageLayout& layout_;
  Parameters& parameters_;
  ThreadPool& pool_;
  TensorGroup& tensor_;
  bool look_ = false;
  NodeId found_;
};

}  // namespace trainer::runtime
