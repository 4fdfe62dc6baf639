// A server's end of what it exchanges with one rank of the mesh.
#pragma once

#include <array>
#include <limits>
#include <memory>
#include <vector>

#include "server_messages.hpp"
#include "server_rows.hpp"
#include "trainer/comm/communicator.hpp"
#include "trainer/core/tensor.hpp"
#include "trainer/runtime/server_plan.hpp"

namespace trainer::runtime {

/// Messages of a stream that are on their way at a time.
inline constexpr std::size_t kMessagesInFlight = 4;

class ServerLane {
 public:
  /// `rank` of the communicator, which must outlive it. `weights`: of the server's range; sent from where they lie.
  ServerLane(comm::Communicator& ranks, int rank, ServerStream stream, const float* weights);

  /// Takes requests as they come; whether one came.
  bool take_requests();
  /// The oldest request that was not popped; null: none.
  const ServerRequest* request() const { return count_ == 0 ? nullptr : &requests_[first_]; }
  void pop();

  /// Before anything of a push is asked for: as many rows of the stream's area travel by themselves (−1: all of it).
  void begin_push(std::int64_t rows);
  /// Gradients of a push, message by message: whether the next one is here, and all have been consumed.
  bool gradient_is_here();
  bool gradients_done() const { return consumed_ == stream_.push.size(); }
  const ServerMessage& message() const { return stream_.push[consumed_]; }
  const float* gradient() const { return slot(consumed_); }
  /// The least place of what has not been consumed.
  std::int64_t least_missing() const { return consumed_ < least_from_.size() ? least_from_[consumed_] : kAll; }
  void consume();
  /// Behind the last message of a push: makes ready for the next push.
  void end_push();

  /// Begins to answer; with `weights` they follow, and must not change until progress_reply() is true. Only elements
  /// before `until` (of the server's range) are sent, until more are allowed.
  void begin_reply(const ServerReply& reply, bool weights, std::int64_t until = kAll);
  void allow(std::int64_t until) { until_ = until; }
  bool progress_reply();
  static constexpr std::int64_t kAll = std::numeric_limits<std::int64_t>::max();

  /// What a lane for such a stream takes beside its transfers.
  static std::size_t slot_bytes(const ServerStream& stream);

 private:
  const float* slot(std::size_t message) const { return slots_.f32() + message % kMessagesInFlight * slot_elements_; }
  bool comes_as_rows(std::size_t message) const { return by_rows_ && message >= stream_.first_of_rows; }

  const ServerStream stream_;
  ServerRequest inbox_;
  std::unique_ptr<comm::Transfer> receive_request_;
  std::array<ServerRequest, 4> requests_;
  std::size_t first_ = 0, count_ = 0;

  std::size_t slot_elements_ = 0;
  Buffer slots_;
  std::vector<std::unique_ptr<comm::Transfer>> gradients_;  // [message]
  std::size_t consumed_ = 0;
  std::vector<std::int64_t> least_from_;  // [message] least place of it and those behind it
  std::unique_ptr<RowsTransfer> rows_;    // null: the stream has no area
  bool by_rows_ = false;                  // this push
  std::size_t unpacked_ = 0;              // messages before this one are in their slots, or have been

  ServerReply outbox_;
  std::unique_ptr<comm::Transfer> send_reply_;
  std::vector<std::unique_ptr<comm::Transfer>> weights_;  // [message]
  std::size_t started_ = 0, sent_ = 0, to_send_ = 0;
  std::int64_t until_ = kAll;
};

}  // namespace trainer::runtime
