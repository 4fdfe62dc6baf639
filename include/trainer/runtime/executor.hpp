// Walks one rank's list of actions. There is no second copy of a schedule in here: order comes from the table alone.
#pragma once

#include <cstdint>
#include <functional>
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
  double sample_delay = 0;  // ms of sleep a sample, in the forward of the first stage (parallel.injected_delay)
  /// Asked once, before this rank's first backward, at the same place of the table on every rank that shares a stage:
  /// false gives the pass up. What is left of it is walked without computing, so that messages stay in step.
  std::function<bool()> go_on = {};
};

/// Sums of this rank's micro-batches in ascending order; zeros on ranks without the loss.
struct PassResult {
  double loss = 0;
  std::int64_t hits = 0;
  bool given_up = false;  // then nothing else of this and no gradient says anything
};

/// One stage of this rank as a table's walk needs it; what it points to must stay.
struct StageProgram {
  StageId stage;
  const schedule::StageSlots* slots = nullptr;
  const StageLayout* layout = nullptr;
  ArenaLayout arena;
  StageRunner* runner = nullptr;
};

class Executor {
 public:
  /// `stages`: all of this rank, ascending; their arenas (lay_out_arenas) lie in `arena`, which must stay with
  /// everything referred to. `messages`: rank = pipeline rank. Transfers of two executors over the same messages are
  /// kept apart by `channel` (0 or 1), not their memory: they take turns. `world_ranks`: [stage] of this replica and
  /// tensor place, for messages to people. `log` (may be null) gets what is done when. Not collective, but peers must
  /// make theirs alike.
  Executor(const model::Graph& graph, const schedule::Schedule& schedule, std::vector<StageProgram> stages,
           std::byte* arena, StageMessages& messages, int channel, std::vector<int> world_ranks,
           ActionLog* log = nullptr);

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
    int world_peer = -1;
  };
  struct Sender {
    std::vector<Lane> ports;            // none where the neighbour is on this rank
    std::vector<std::int32_t> ring_of;  // [micro-batch] → ring entry
    std::int32_t produced = 0;
    const char* what = "";
    int world_peer = -1;
  };
  struct Stage : StageProgram {
    Receiver forward_receiver, backward_receiver;
    Sender forward_sender, backward_sender;
    // The neighbouring stages where they are on this rank too.
    const Stage* before = nullptr;
    const Stage* after = nullptr;
  };

  Stage& stage_of(const schedule::Action& action) {
    return stages_[static_cast<std::size_t>(place_of_[action.stage.index()])];
  }
  const Stage* here(std::int64_t stage) const;
  std::byte* slot_of(const Stage& stage, Region region, std::int32_t slot) const;
  template <class MakeTransfer>
  Lane make_lane(const Stage& stage, Place place, const MakeTransfer& make) const;
  void wire(Stage& stage, int channel, const std::vector<int>& world_ranks);
  void wire_inputs(Stage& stage, int channel);
  void wire_outputs(Stage& stage, int channel);
  Frame frame_of(const Stage& stage, std::int32_t micro_batch) const;
  ops::MicroBatch batch_of(const BatchSource& batches, const PassRequest& request, std::int32_t micro_batch) const;
  void post_next(Receiver& receiver);
  void receive(Receiver& receiver, const schedule::Action& action);
  /// Takes the next ring entry for what is about to be produced, waiting until its last message has left.
  void reserve(Sender& sender, const schedule::Action& action);
  void send(Sender& sender, const schedule::Action& action);
  void drain(Sender& sender);
  void begin_pass();
  void walk(const schedule::Action& action, const BatchSource& batches, const PassRequest& request, GradientSync* sync);
  /// The messages of an action alone.
  void walk_idly(const schedule::Action& action);
  void forward(Stage& stage, const BatchSource& batches, const PassRequest& request, std::int32_t micro_batch);
  void backward(Stage& stage, const schedule::Action& action, const BatchSource& batches, const PassRequest& request,
                GradientSync* sync);
  /// Copies what a stage has made for a neighbour on this rank into the neighbour's slot.
  void hand_on(const Stage& from, const Stage& to, const Frame& frame, std::int32_t micro_batch) const;
  void hand_back(const Stage& from, const Stage& to, const Frame& frame, std::int32_t micro_batch) const;

  const model::Graph& graph_;
  const schedule::Schedule& schedule_;
  std::byte* arena_;
  StageMessages& messages_;
  std::vector<Stage> stages_;
  std::vector<std::int32_t> place_of_;  // [stage] → index in stages_; −1: on another rank
  const std::vector<schedule::Action>* row_ = nullptr;
  std::size_t reductions_ = 0;      // of this pass so far
  std::vector<LossResult> losses_;  // [micro-batch]
  std::vector<std::uint8_t> valid_;
  ActionLog* log_;
};

}  // namespace trainer::runtime
