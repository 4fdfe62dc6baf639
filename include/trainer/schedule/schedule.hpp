// A pipeline schedule as data: for each pipeline rank the list of actions it performs in a step. The executor walks
// this table, the verifier proves things about it, the simulator times it and the printer shows it; there is no other
// copy.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/core/id.hpp"

namespace trainer::schedule {

/// What one action does, for one stage and one micro-batch.
enum class ActionKind : std::uint8_t {
  Forward,          // "2F0"
  Backward,         // "2B0"   input and weight gradients, layer by layer
  BackwardInput,    // "2I0"
  BackwardWeight,   // "2W0"
  SendForward,      // "2SEND_F0"  the stage's outputs to stage 3
  RecvForward,      // "2RECV_F0"  the stage's inputs from stage 1
  SendBackward,     // "2SEND_B0"  the gradient of its inputs to stage 1
  RecvBackward,     // "2RECV_B0"  the gradient of its outputs from stage 3
  ReduceGradients,  // "2REDUCE_GRAD"  over data ranks; no micro-batch
};

struct Action {
  StageId stage;
  ActionKind kind = ActionKind::Forward;
  MicroBatchId micro_batch;
  bool operator==(const Action&) const = default;
};

std::string to_string(const Action& action);
/// Inverse of to_string; nullopt for anything else.
std::optional<Action> parse_action(std::string_view text);

struct Schedule {
  std::int64_t stages = 0;
  std::int64_t micro_batches = 0;
  bool forward_only = false;
  std::vector<std::int32_t> rank_of_stage;  // pipeline rank that holds each stage
  std::vector<std::vector<Action>> ranks;   // ranks[r]: in order
  bool operator==(const Schedule&) const = default;
};

/// A row a rank, cells separated by commas: PyTorch's CSV of compute actions; communication in it too when present.
std::string to_csv(const Schedule& schedule);

/// PyTorch's table of steps: a row a rank, a column a step in which each rank does at most one action; cells are empty
/// where it waits for another rank. Compute actions only. The table must be valid.
std::string to_step_csv(const Schedule& schedule);

/// A table read from text, and where in the text each action stood.
struct CsvTable {
  Schedule schedule;
  std::vector<std::vector<std::int32_t>> cells;  // [rank][action] → cell of the row, from 1
};
/// Reads either form of CSV, PyTorch's "(0F3;7B1)OVERLAP_F_B" cells among them (its parts one after the other). Stages
/// and micro-batches are those that the cells name. Throws Error(Usage) that names row and cell, from 1.
CsvTable parse_csv(std::string_view text);

struct PipelineShape {
  std::int64_t stages = 1;
  std::int64_t micro_batches = 1;  // ≥ 1, also fewer than stages
  bool split_backward = true;      // I and W apart (stage 0 joins them where not said: it has no gradient to send)
  std::int64_t chunks = 1;         // stages a rank; divides stages
  std::int64_t group = 0;          // interleaved only: micro-batches a chunk takes in turn, ≥ ranks(); 0: ranks()
  std::int64_t ranks() const { return stages / chunks; }
};

// Generators: compute actions only. Those of the first group need chunks == 1: rank r holds stage r.
/// All forwards, then all backwards in ascending micro-batch.
Schedule gpipe(const PipelineShape& shape);
/// Warm-up of min(stages − 1 − rank, micro_batches) forwards, steady 1F1B, cool-down.
Schedule one_f_one_b(const PipelineShape& shape);
/// ZB-H1 (Qi, Wan, Huang, Lin: Zero Bubble Pipeline Parallelism, 2023): 1F1B whose weight gradients wait until a stage
/// would hold more than `stages` micro-batches, and fill the gaps of the cool-down. Needs split_backward.
Schedule zero_bubble_h1(const PipelineShape& shape);
/// ZB-H2 of the same paper: twice the warm-up, so that the first backward finds every rank at work; holds up to
/// 2 · stages − 1 micro-batches. Stage 0 splits its backward too. Needs split_backward.
Schedule zero_bubble_h2(const PipelineShape& shape);
/// Evaluation.
Schedule forward_only(const PipelineShape& shape);
/// Evaluation by the stages of a training table where they are: its forwards in its order, with their messages. What
/// waits for what is a part of that in the training table, so this runs where that does.
Schedule forwards_of(const Schedule& training);

// Several stages a rank. An order for more micro-batches with those that are not there left out serves where a
// published order needs more than there are.
/// Interleaved 1F1B (Narayanan et al.: Efficient Large-Scale Language Model Training on GPU Clusters, 2021): stage s on
/// rank s mod ranks(); a rank takes `group` micro-batches through a chunk before it turns to the next one.
Schedule interleaved(const PipelineShape& shape);
/// ZB-V (Qi, Wan, Huang, Lin: Pipeline Parallelism with Controllable Memory, 2024): two stages a rank, r and
/// stages − 1 − r, in the order that is without a bubble where F = I = W. Needs split_backward; all stages split.
Schedule zero_bubble_v(const PipelineShape& shape);
/// DualPipe-V (DeepSeek 2025, the cut in half of DualPipe): places as ZB-V; each F of the steady state goes with a
/// whole B of the other stage. The overlap of the two is left to the executor. Needs split_backward.
Schedule dualpipe_v(const PipelineShape& shape);

/// A generator as the command line and the tests find it.
struct Generator {
  std::string_view name;       // "zb-h1"
  std::int64_t chunks = 1;     // stages a rank; 0: any number ≥ 1
  bool always_splits = false;  // needs split_backward
  Schedule (*make)(const PipelineShape&);
};
/// All that train, in the order of this file.
const std::vector<Generator>& generators();
/// nullptr where there is none of that name.
const Generator* find_generator(std::string_view name);

// Passes: Schedule → Schedule.
/// Adds a send right behind the action that makes a value (I or B for gradients) and a receive right before the one
/// that needs it (and before it those of messages that left earlier over the same boundary: they come out in order),
/// where producer and consumer sit on different ranks. Where a rank holds several stages and receives so
/// late that finite buffers would make the table stand still (interleaving in large groups), they are brought forward
/// to where the message arrives under equal times. Sends and receives already there are replaced.
Schedule add_communication(Schedule schedule);
/// Adds one ReduceGradients a stage, behind its last weight gradient and the send that follows it, so that a neighbour
/// never waits for the reduction. Those already there are replaced. The two passes commute.
Schedule add_reductions(Schedule schedule);

/// Where each micro-batch's buffers live, per stage. A receive is posted when the one before it (same stage and
/// direction) has completed, the first at the start of the step; its buffer is taken from that moment. Slots are
/// coloured greedily over those intervals of the rank's own table, so a post never has to wait for a free slot, and no
/// colouring has fewer. An interval covers its first and last action. Where a neighbouring stage sits on the same rank,
/// the action that makes the value stands for the posted receive. A micro-batch that needs no buffer of a kind has slot
/// −1.
struct StageSlots {
  /// Activations that only I reads: from forward to I or B (forward only: to F).
  std::vector<std::int32_t> activation;  // [micro_batch] → slot
  std::int32_t activation_count = 0;
  /// Activations that W reads, the stage's inputs among them: from the posted receive (first stage: from forward) to W
  /// or B (forward only: to F).
  std::vector<std::int32_t> weight_input;
  std::int32_t weight_input_count = 0;
  /// Output gradients that I leaves for W: from I to W; joined B uses one for its own time. Forward only: none.
  std::vector<std::int32_t> weight_gradient;
  std::int32_t weight_gradient_count = 0;
  /// Received gradients of the stage's outputs: from the posted receive to B (to W where I and W are apart, since W may
  /// read it). Last stage and forward only: none.
  std::vector<std::int32_t> output_gradient;
  std::int32_t output_gradient_count = 0;
};
/// One entry a stage. Call on a schedule with communication added. Outgoing messages use rings of kSendSlots buffers:
/// message k of a (stage, direction), counted in the order in which F (or I or B) makes them, is made in entry
/// k % kSendSlots, once the send of message k − kSendSlots has completed.
inline constexpr std::int32_t kSendSlots = 2;
std::vector<StageSlots> assign_slots(const Schedule& schedule);

/// A violated promise, drawn for a person: the sentence and the part of the grid it is about.
struct Violation {
  std::string message;
  std::int32_t rank = -1;      // of the action that it is about; −1: of the whole table
  std::int32_t position = -1;  // of that action in its row; −1: it is missing
};
/// Checks, in this order: every stage and micro-batch forward once and backward once (B, or I before W) on the rank
/// that holds the stage; F before I; W (and B) of a stage in ascending micro-batch, and its reduction (if any stage has
/// one) behind them; each send matched by one receive and the reverse, behind what makes the value and before what
/// needs it, in the order of the sends, wherever neighbouring stages sit on different ranks; no deadlock under
/// rendezvous sends, with posted receives and send rings as the executor has them (see StageSlots). nullopt: valid, the
/// executor can run it. A deadlock names the smallest cycle as ranks, actions and peers. Linear in the number of
/// actions.
std::optional<Violation> verify(const Schedule& schedule);

/// [rank] (stage, micro-batch) pairs held at most from F to W or B.
std::vector<std::int64_t> most_held(const Schedule& schedule);
/// The first forward with which a rank holds more than `cap` of them; nullopt: all ranks stay within it.
std::optional<Violation> over_cap(const Schedule& schedule, std::int64_t cap);

/// Times for the simulator, seconds.
struct StageTimes {
  double forward = 1, backward_input = 1, backward_weight = 1;
};
struct Timing {
  double step = 0;                         // until the last rank is done
  std::vector<double> busy;                // [rank] computing
  std::vector<std::vector<double>> start;  // [rank][action] when each began
  double bubble() const;                   // 1 − Σ busy / (ranks · step)
};
/// Runs the table with these times (one entry a stage) and a time a message takes; receives cost nothing to the
/// receiver. A table without communication is timed as add_communication would complete it. The table must be valid.
Timing simulate(const Schedule& schedule, const std::vector<StageTimes>& times, double transfer = 0);
/// The same of one pass among many where no rank waits for the others at the end of each (an optimistic optimizer
/// step): `step` is what one more pass adds, `start` that of a pass by itself.
Timing simulate_without_barrier(const Schedule& schedule, const std::vector<StageTimes>& times, double transfer = 0);

/// For people: a row a rank, time from left to right, cells like "F0" and "B0---" ("2F0" where a rank holds several
/// stages), dots where the rank idles. A table that stands still is drawn up to there, with the actions that wait.
std::string draw(const Schedule& schedule, const std::vector<StageTimes>& times);

}  // namespace trainer::schedule
