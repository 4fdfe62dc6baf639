// Gradients over replicas and over the stages that share a tied parameter.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "trainer/comm/communicator.hpp"
#include "trainer/core/action_log.hpp"
#include "trainer/core/tensor.hpp"
#include "trainer/runtime/compressed_exchange.hpp"
#include "trainer/runtime/parameters.hpp"
#include "trainer/runtime/run_plan.hpp"

namespace trainer::runtime {

/// How the sums over replicas of a rank at `at` are made, as parallel.all_reduce says; ranks are replicas.
comm::AllReduceOptions all_reduce_options(const RunPlan& plan, const plan::Coordinates& at);

/// Sums each gradient over the data ranks in buckets that start as soon as the backward has completed them, then adds
/// the uses of tied parameters in the order of nodes, the same order in every layout. Losses are scaled by the global
/// batch, so sums are means (Worker::pass; times the replicas with all_reduce.result "sum"). Replicas that share memory
/// each sum their duty only, reading the others' gradients where they lie; it is they who update it, in the weights
/// that all compute with. With parallel.compression each use of a parameter is exchanged compressed, and what comes of
/// that takes the place of the sum.
class GradientSync {
 public:
  /// `data`: ranks of these stages and tensor place; `pipeline`: of this replica and tensor place.
  /// Collective over both. Works on what parameters.gradients() is now. `log` (may be null) gets the waits.
  GradientSync(const RunPlan& plan, const plan::Coordinates& at, Parameters& parameters, ThreadPool& pool,
               comm::Communicator& data, comm::Communicator& pipeline, ActionLog* log = nullptr);

  /// Before the first weight gradient of a step.
  void begin_step(std::int64_t step);

  /// The last micro-batch's weight gradient of this node is complete: buckets that are whole now start.
  void weight_done(NodeId node);
  void progress();
  /// Behind the last weight gradient of a pass: finish_replicas(), unless gradients are delayed.
  void end_pass();
  /// Waits for all buckets; every bucket has been started by then. Afterwards the gradients of this rank's duty are the
  /// sums; nobody may begin to overwrite gradients before all replicas have come this far.
  void finish_replicas();
  /// Exchanges and adds the uses of tied parameters. All stages that hold one call it.
  void finish_tied();
  /// After this rank has updated its duty: waits until all replicas have, so that the weights are whole.
  void finish_update();

  /// What this rank has sent to other replicas so far, in bytes; gradients in shared memory are not sent.
  std::int64_t sent_bytes() const { return sent_bytes_ + (compressed_ ? compressed_->sent_bytes() : 0); }
  /// Null without parallel.compression, or without replicas.
  CompressedExchange* compressed() { return compressed_.get(); }
  const CompressedExchange* compressed() const { return compressed_.get(); }

  /// Of a pass that is given up: waits until no replica computes with the weights any more, so that they may change.
  void leave_pass();

 private:
  struct Bucket {
    NodeId first_node;  // the bucket is whole when this node is done
    comm::AllReduce* reduce = nullptr;
    std::unique_ptr<comm::AllReduce> plain;  // `reduce` where nothing is compressed
    std::int64_t sent_bytes = 0;             // of `plain`, each time
    std::vector<Range> duty;  // instead, where replicas share memory: elements of the gradients to sum here
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
  void make_buckets(const RunPlan& plan, const plan::Coordinates& at, comm::Communicator& data);
  static std::vector<Range> duty_of(const Parameters& parameters, Range gradients);
  void make_tied(const RunPlan& plan, const plan::Coordinates& at, comm::Communicator& pipeline);
  Tied make_tied_piece(const RunPlan& plan, const plan::Coordinates& at, comm::Communicator& pipeline,
                       const HeldParameter& held, const Piece& piece);
  bool all_reached(ReplicaChannel channel, std::uint64_t value);
  bool test(std::size_t bucket);

  Parameters& parameters_;
  ThreadPool& pool_;
  const int replicas_;
  const bool delayed_;
  std::vector<const float*> terms_;  // [replica]
  // Counts over all steps, as shared counters only rise.
  std::uint64_t buckets_before_ = 0;  // of finished steps
  std::uint64_t updates_ = 0;
  std::uint64_t passes_left_ = 0;
  std::unique_ptr<CompressedExchange> compressed_;
  std::int64_t sent_bytes_ = 0;
  std::vector<Bucket> buckets_;  // in the order in which they become whole
  std::vector<Tied> tied_;
  std::size_t oldest_ = 0;
  ActionLog* log_;
};

/// Memory that the exchange takes on one rank, in bytes.
struct GradientMemory {
  std::size_t own = 0;
  std::size_t neighbours = 0;  // of their gradients that this rank reads
};
GradientMemory gradient_memory(const RunPlan& plan, const ParameterLayout& parameters, const plan::Coordinates& at);

/// What a step's sums of float32 gradients over replicas would send as messages, by all ranks.
double uncompressed_bytes(const RunPlan& plan);

/// Tags on the pipeline communicator from here on belong to tied parameters, below it to activations and gradients.
inline constexpr int kTiedTagBase = 8192;

}  // namespace trainer::runtime
