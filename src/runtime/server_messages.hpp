// What ranks of the mesh, servers and the coordinator (the first server) tell each other in a served run.
#pragma once

#include <cstdint>

#include "trainer/runtime/batch_book.hpp"

namespace trainer::runtime {

/// Tags of the communicator that a served run has for itself.
enum ServedTag : int { kRequestTag, kReplyTag, kGradientsTag, kWeightsTag, kNormsTag, kReportTag, kTurnTag, kRowsTag };

enum class RequestKind : std::int64_t {
  Push,   // a gradient follows, for one update; with `then` the reply is the weights as Pull has them
  Pull,   // the weights, once the consistency allows a replica at this clock to read
  Read,   // the weights as they are: all replicas pause
  Pause,  // nothing until the run goes on
};

/// A batch that a replica has computed, or is about to. Clocks count the updates of one replica (ssp and async) or of
/// the run (bsp), from 0: the batch of clock c is computed with weights that hold c of them.
struct ClockedBatch {
  std::int64_t clock = 0;
  StreamBatch batch;
};

/// From a rank of the mesh to a server; all ranks of a replica send the same, but for their `rows`.
struct ServerRequest {
  RequestKind kind = RequestKind::Pause;
  ClockedBatch pushed;
  ClockedBatch next;        // of a pull
  std::int64_t then = 0;    // 1: a pull follows the push without another request
  double loss = 0;          // of the pushed batch: a sum over its targets
  double targets = 0;       // that count
  double step_targets = 0;  // bsp: of all replicas' batches of this clock
  double scale = 1;         // ssp, async: what clipping multiplies the gradient with
  std::int64_t rows = -1;   // of a push: rows that this rank sends of its stream's area; −1: the area travels whole
};

enum class ServerStatus : std::int64_t { Running, Diverged };

/// The weights follow, in the order of the stream's messages, unless the run has diverged.
struct ServerReply {
  ServerStatus status = ServerStatus::Running;
  std::int64_t version = 0;  // updates that these weights hold
};

/// What a step was, as rank 0 tells it.
struct StepRecord {
  std::int64_t step = 0;
  double loss = 0;
  double grad_norm = 0;
  double learning_rate = 0;
  double seconds = 0;
  double sent_bytes = 0;
  std::int64_t staleness = 0;  // most updates of others between a replica's read and its update
};

/// From the first rank of a replica to the coordinator.
struct TurnReport {
  std::int64_t computed = 0;  // 1: the batch that it was given last; the rest is about that
  std::int64_t stop = 0;      // 1: a rank of the replica was asked to stop
  double loss = 0;            // a sum over its targets
  double targets = 0;
  double grad_norm = 0;      // ssp, async
  std::int64_t version = 0;  // of the coordinator's weights that it was computed with
  double sent_bytes = 0;     // by and to the replica since its last report
};

enum class Verdict : std::int64_t { None, Commit, Drop };
enum class TurnAction : std::int64_t {
  Work,  // on `next`
  Wait,  // there is nothing yet: push what counts, and ask again
  Pause
};

inline constexpr std::int64_t kTurnRecords = 8;

/// And back. The records are for the replica of rank 0 only.
struct TurnReply {
  Verdict verdict = Verdict::None;  // on the batch that was reported
  TurnAction action = TurnAction::Pause;
  ClockedBatch next;
  std::int64_t records = 0;
  StepRecord record[kTurnRecords];
};

/// What all ranks meet for while nobody computes; the coordinator knows.
struct Point {
  std::int64_t step = 0;  // that all updates so far make
  std::int64_t save = 0, evaluate = 0, finish = 0;
  std::int64_t interrupted = 0, limit_reached = 0;
  std::int64_t diverged = 0;  // 1: in step `step` + 1
  std::int64_t replica = -1;  // whose batch it was; −1: all together (bsp)
  double loss = 0, grad_norm = 0;
  std::int64_t records = 0;  // follow
};

}  // namespace trainer::runtime
