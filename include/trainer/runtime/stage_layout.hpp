// Where every value of a stage lives: all memory of a stage booked before step 0, as offsets. Pure: no tensors, no
// messages, so that a plan can state a rank's memory without starting it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "trainer/model/graph.hpp"
#include "trainer/ops/operator.hpp"
#include "trainer/plan/shard.hpp"
#include "trainer/schedule/schedule.hpp"

namespace trainer::runtime {

/// Kinds of memory by who keeps it alive; all but Scratch come in slots (see schedule::StageSlots).
enum class Region : std::uint8_t {
  None,
  Scratch,         // one action
  Activation,      // forward → I
  WeightInput,     // forward → W; received inputs too
  WeightGradient,  // I → W
  OutputGradient,  // received gradient of the stage's outputs
  SendForward,     // ring of messages to the next stage
  SendBackward,    // ring of messages to the stage before
  Count
};
inline constexpr std::size_t kRegions = static_cast<std::size_t>(Region::Count);

struct Place {
  Region region = Region::None;
  std::size_t offset = 0;
  bool operator==(const Place&) const = default;
};

/// What crosses a stage boundary: one value, its gradient the other way.
struct Port {
  ValueId value;
  std::size_t bytes = 0;
  Place value_at{};       // where the stage computes with it
  Place value_message{};  // received into (the same place) or sent from (copied there if it is another)
  Place gradient_at{};    // None when nothing flows back
  Place gradient_message{};
};

/// Where one call of a node finds its operands.
struct Operands {
  std::array<Place, ops::kMaxInputs> input;
  Place output;
  Place saved;
  Place workspace;
};

/// One node as this stage runs it.
struct NodeLayout {
  NodeId node;
  std::unique_ptr<ops::Operator> op;  // null for the loss
  ops::Needs needs;
  Operands forward;
  Operands backward;        // of I and W; what is not kept for them is None
  bool recomputed = false;  // the backward begins with the node's forward, from and into `backward`'s places
  Place recompute_workspace;
  std::array<Place, ops::kMaxInputs> input_gradient;  // None: nobody wants it
  std::array<bool, ops::kMaxInputs> accumulate{};     // the gradient already holds another use's part
  std::array<bool, ops::kMaxInputs> skip_gradient{};  // the gradient is the output's own memory (second input of Add)
  Place output_gradient;
};

/// One node's turn in the backward of a stage: its I (and, in a joint B, its W), or its forward once more.
struct BackwardStep {
  std::size_t node = 0;  // index in StageLayout::nodes
  bool recompute = false;
};

struct LossLayout {
  bool present = false;
  Place logits;  // the gradient replaces them
  Place target;
  Place losses;   // [rows] float
  Place maxima;   // [rows] float
  Place sums;     // [rows][2] float
  Place wide;     // [rows][2] double, for reductions over tensor ranks
  Place classes;  // [rows] int32, for accuracy
};

struct LayoutRequest {
  const model::Graph& graph;
  const plan::LocalGraph& local;
  Range nodes;               // of the stage
  std::int64_t samples = 1;  // of a micro-batch
  int threads = 1;
  bool training = true;         // false: forward only, nothing is kept
  bool split_backward = false;  // the table has I and W apart for this stage
  ops::MatmulPrecision precision = ops::MatmulPrecision::Float32;
  bool with_loss = true;  // false: stop at the model's output, which stays readable in Scratch
  /// Ranges of nodes of the graph, ascending, that keep only what they read of others and give to others; the backward
  /// makes the rest again (see recompute.hpp).
  std::vector<Range> recompute = {};
};

struct StageLayout {
  std::int64_t samples = 0;
  bool training = true;
  bool split_backward = false;
  std::vector<NodeLayout> nodes;       // in forward order, the loss not among them
  std::vector<BackwardStep> backward;  // what I, or a joint B, does in turn
  LossLayout loss;
  std::vector<Port> inputs;                   // from the stage before
  std::vector<Port> outputs;                  // to the next stage
  Place data_input;                           // tokens or features when this stage reads them
  Place model_output;                         // when with_loss is false and the output is made here
  std::array<std::size_t, kRegions> bytes{};  // of one slot of each region
};

StageLayout lay_out(const LayoutRequest& request);

/// Buffers of the ring that a stage's messages of one direction leave from. The table's rules (and so its proof and its
/// simulated time) let a message go as soon as its receive is posted, which is when the one before has been received;
/// out of shared memory it is taken only when it is received itself, one message later: a buffer more.
inline constexpr std::int32_t kSendRing = schedule::kSendSlots + 1;

/// Where each region's slots begin for these slot counts: those of outgoing messages in memory of their own, all others
/// in the arena.
struct ArenaLayout {
  std::array<std::size_t, kRegions> begin{};
  std::array<std::int32_t, kRegions> slots{};
  std::size_t bytes = 0;
  std::size_t message_bytes = 0;
};
inline bool is_message(Region region) { return region == Region::SendForward || region == Region::SendBackward; }
ArenaLayout lay_out_arena(const StageLayout& stage, const schedule::StageSlots& slots);

/// The stages of one rank in one arena, one behind the other but for Scratch: a rank does one action at a time.
struct RankArena {
  std::vector<ArenaLayout> stages;
  std::size_t bytes = 0;
  std::size_t message_bytes = 0;
};
/// `slots`: one entry a stage.
RankArena lay_out_arenas(const std::vector<StageLayout>& stages, const std::vector<const schedule::StageSlots*>& slots);

/// Offsets for intervals of time that share one memory: greedy, largest first, lowest offset that fits.
struct Lifetime {
  std::size_t bytes = 0;
  std::int64_t first = 0;
  std::int64_t last = 0;
  std::size_t offset = 0;  // result
};
std::size_t place_lifetimes(std::vector<Lifetime>& lifetimes);

}  // namespace trainer::runtime
