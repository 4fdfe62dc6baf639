// Walks one rank's list of actions. There is no second copy of a schedule in here: order comes from the table alone.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "trainer/comm/communicator.hpp"
#include "trainer/core/action_log.hpp"
#include "trainer/runtime/batch_source.hpp"
#include "trainer/runtime/gradient_sync.hpp"
#include "trainer/runtime/stage_messages.hpp"
#include "trainer/runtime/stage_runner.hpp"
#include "trainer/schedule/schedule.hpp"

namespace trainer::runtime {

/// What one pass over the table works on.
struct PassRequest {
  std::uint64_t seed = 0;
  bool training = true;   // masks of dropout
  double loss_scale = 0;  // 1 / valid targets of the global batch; 0: no gradient
  bool count_hits = false;
};

/// Sums of this rank's micro-batches in ascending order; zeros on stages without the loss.
struct PassResult {
  double loss = 0;
  std::int64_t hits = 0;
};

class Executor {
 public:
  /// The memory of `arena` (lay_out_arena) and everything referred to must stay. `messages`: rank = stage.
  /// Transfers of two executors over the same messages are kept apart by `channel` (0 or 1), not their memory: they
  /// take turns. Not collective, but peers must make theirs alike. `log` (may be null) gets what it does when.
  Executor(const model::Graph& graph, const schedule::Schedule& schedule, const schedule::StageSlots& slots,
           StageId stage, const StageLayout& layout, std::byte* arena, StageRunner& runner, StageMessages& messages,
           int channel, std::vector<int> world_ranks, ActionLog* log = nullptr);

  /// One walk over the table; `sync` may be null (forward only). Allocates nothing.
  PassResult run(const BatchSource& batches, const PassRequest& request, GradientSync* sync);

 private:
  // Messages of one direction and port: a transfer for each slot, one message at a time for each.
  struct Lane {
    std::vector<std::unique_ptr<comm::Transfer>> slots;
  };
  struct Receiver {
    std::vector<Lane> ports;
    std::vector<std::int32_t> order;  // micro-batches as the table receives them
    const std::vector<std::int32_t>* slot_of = nullptr;
    std::size_t posted = 0;
    const char* what = "";
  };
  struct Sender {
    std::vector<Lane> ports;
    std::vector<std::int32_t> ring_of;  // [micro-batch] → ring entry
    std::int32_t produced = 0;
    const char* what = "";
  };

  int world_rank(StageId stage) const { return stage.index() < world_ranks_.size() ? world_ranks_[stage.index()] : -1; }
  std::byte* slot_of(Region region, std::int32_t slot) const;
  template <class MakeTransfer>
  Lane make_lane(Place place, const MakeTransfer& make) const;
  void wire_inputs(int channel);
  void wire_outputs(int channel);
  Frame frame_of(std::int32_t micro_batch) const;
  ops::MicroBatch batch_of(const BatchSource& batches, const PassRequest& request, std::int32_t micro_batch) const;
  void post_next(Receiver& receiver);
  void receive(Receiver& receiver, std::int32_t micro_batch);
  /// Takes the next ring entry for what is about to be produced, waiting until its last message has left.
  void reserve(Sender& sender, std::int32_t micro_batch);
  void send(Sender& sender, std::int32_t micro_batch);
  void drain(Sender& sender);
  void forward(const BatchSource& batches, const PassRequest& request, std::int32_t micro_batch);
  void backward(const schedule::Action& action, const BatchSource& batches, const PassRequest& request,
                GradientSync* sync);

  const model::Graph& graph_;
  const schedule::Schedule& schedule_;
  const schedule::StageSlots& slots_;
  const StageId stage_;
  const StageLayout& layout_;
  std::byte* arena_;
  ArenaLayout arena_layout_;
  StageRunner& runner_;
  StageMessages& messages_;
  std::vector<int> world_ranks_;  // [stage] of this replica and tensor place, for messages to people
  int peer_before_ = -1, peer_after_ = -1;
  Receiver forward_receiver_, backward_receiver_;
  Sender forward_sender_, backward_sender_;
  std::vector<LossResult> losses_;  // [micro-batch]
  std::vector<std::uint8_t> valid_;
  ActionLog* log_;
};

}  // namespace trainer::runtime
