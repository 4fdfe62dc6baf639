// A server's end of what it exchanges with one rank of the mesh.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "server_messages.hpp"
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

  /// Gradients of a push, message by message: whether the next one is here, and all have been consumed.
  bool gradient_is_here();
  bool gradients_done() const { return consumed_ == stream_.push.size(); }
  const ServerMessage& message() const { return stream_.push[consumed_]; }
  const float* gradient() const { return slot(consumed_); }
  void consume();
  /// Behind the last message of a push: makes ready for the next push.
  void end_push();

  /// Begins to answer; with `weights` they follow, and must not change until progress_reply() is true.
  void begin_reply(const ServerReply& reply, bool weights);
  bool progress_reply();

  /// What a lane for such a stream takes beside its transfers.
  static std::size_t slot_bytes(const ServerStream& stream);

 private:
  const float* slot(std::size_t message) const { return slots_.f32() + message % kMessagesInFlight * slot_elements_; }

  const ServerStream stream_;
  ServerRequest inbox_;
  std::unique_ptr<comm::Transfer> receive_request_;
  std::array<ServerRequest, 4> requests_;
  std::size_t first_ = 0, count_ = 0;

  std::size_t slot_elements_ = 0;
  Buffer slots_;
  std::vector<std::unique_ptr<comm::Transfer>> gradients_;  // [message]
  std::size_t consumed_ = 0;

  ServerReply outbox_;
  std::unique_ptr<comm::Transfer> send_reply_;
  std::vector<std::unique_ptr<comm::Transfer>> weights_;  // [message]
  std::size_t started_ = 0, sent_ = 0, to_send_ = 0;
};

}  // namespace trainer::runtime
