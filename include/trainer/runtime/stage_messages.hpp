// What a stage sends to its neighbours: where it lies until it has left, and how it travels.
#pragma once

#include <cstddef>
#include <memory>

#include "trainer/comm/communicator.hpp"
#include "trainer/comm/shared_memory.hpp"
#include "trainer/core/tensor.hpp"

namespace trainer::runtime {

/// Memory for outgoing messages, and transfers between pipeline ranks. Neighbours on one node share that memory: the
/// receiver copies from it as soon as the message is there, while the sender computes on. To other nodes messages go
/// through the communicator.
class StageMessages {
 public:
  /// Collective over `pipeline`, which must outlive it; `bytes` of memory for this rank.
  StageMessages(comm::Communicator& pipeline, std::size_t bytes);

  /// 64-byte aligned.
  std::byte* memory();

  /// As those of the communicator; `data` of a send lies in memory(). Of the tags that a rank sends (or receives) no
  /// two are equal modulo kLanes.
  std::unique_ptr<comm::Transfer> make_send(const void* data, std::size_t bytes, int peer, int tag);
  std::unique_ptr<comm::Transfer> make_receive(void* data, std::size_t bytes, int peer, int tag);
  static constexpr int kLanes = 32;

  /// Messages to other nodes move only when they are given a chance to.
  void progress() {
    if (remote_) pipeline_.progress();
  }

 private:
  comm::Communicator& pipeline_;
  std::unique_ptr<comm::SharedMemory> shared_;
  std::unique_ptr<comm::SharedLanes> lanes_;  // null: everything through the communicator
  Buffer own_;
  bool remote_ = false;  // some transfer goes through the communicator
};

}  // namespace trainer::runtime
