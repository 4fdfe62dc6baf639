// Gradients over replicas and over the stages that share a tied parameter.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "trainer/comm/communicator.hpp"
#include "trainer/core/tensor.hpp"
#include "trainer/runtime/parameters.hpp"
#include "trainer/runtime/run_plan.hpp"

namespace trainer::runtime {

/// Sums each gradient over the data ranks in buckets that start as soon as the backward has completed them, then adds
/// the uses of tied parameters in the order of nodes, the same order in every layout. Losses are scaled by the global
/// batch, so sums are means.
class GradientSync {
 public:
  /// `data`: ranks of this stage and tensor place; `pipeline`: stages of this replica and tensor place, rank = stage.
  /// Collective over both.
  GradientSync(const RunPlan& plan, const plan::Coordinates& at, Parameters& parameters, comm::Communicator& data,
               comm::Communicator& pipeline);

  /// The last micro-batch's weight gradient of this node is complete: buckets that are whole now start.
  void weight_done(NodeId node);
  void progress();
  /// Waits for all buckets; every bucket has been started by then.
  void finish_replicas();
  /// Exchanges and adds the uses of tied parameters. All stages that hold one call it.
  void finish_tied();

  double waited_seconds() const { return waited_; }
  static std::size_t extra_bytes(const RunPlan& plan, const ParameterLayout& parameters, const plan::Coordinates& at);

 private:
  struct Bucket {
    NodeId first_node;  // the bucket is whole when this node is done
    std::unique_ptr<comm::AllReduce> reduce;
    bool started = false, done = false;
  };
  // One use of a tied parameter, here or on another stage.
  struct TiedUse {
    float* gradient = nullptr;  // here: its own buffer; elsewhere: `received`
    Buffer received;
    std::unique_ptr<comm::Transfer> receive;
    std::vector<std::unique_ptr<comm::Transfer>> sends;
    int world_peer = -1;  // for messages to people
  };
  struct Tied {
    std::int64_t elements = 0;
    float* sum = nullptr;  // the gradient that the optimizer reads
    std::vector<TiedUse> uses;
  };
  void make_buckets(Parameters& parameters, comm::Communicator& data, Range nodes);
  void make_tied(const RunPlan& plan, const plan::Coordinates& at, Parameters& parameters,
                 comm::Communicator& pipeline);

  std::vector<Bucket> buckets_;  // in the order in which they become whole
  std::vector<Tied> tied_;
  std::size_t oldest_ = 0;
  double waited_ = 0;
};

/// Tags on the pipeline communicator from here on belong to tied parameters, below it to activations and gradients.
inline constexpr int kTiedTagBase = 8192;

}  // namespace trainer::runtime
