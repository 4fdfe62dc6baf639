// What a stage sends to its neighbours: where it lies until it has left, and how it travels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "trainer/comm/communicator.hpp"
#include "trainer/comm/shared_memory.hpp"
#include "trainer/core/tensor.hpp"

namespace trainer::runtime {

/// Memory for outgoing messages, and transfers between pipeline ranks. Neighbours on one node share that memory: the
/// receiver copies from it as soon as the message is there, while the sender computes on. To other nodes messages go
/// through the communicator.
class StageMessages {
 public:
  /// Collective over `pipeline`, which must outlive it; `bytes` of memory for this rank. `boundaries`: numbers of
  /// boundaries between stages, counted modulo this, tell apart those of a rank (boundary_numbers).
  StageMessages(comm::Communicator& pipeline, std::size_t bytes, int boundaries);

  /// 64-byte aligned.
  std::byte* memory();

  /// As those of the communicator; `data` of a send lies in memory(). A tag is kLanesOfBoundary · boundary + lane.
  std::unique_ptr<comm::Transfer> make_send(const void* data, std::size_t bytes, int peer, int tag);
  std::unique_ptr<comm::Transfer> make_receive(void* data, std::size_t bytes, int peer, int tag);
  static constexpr int kLanesOfBoundary = 32;

  /// Messages to other nodes move only when they are given a chance to.
  void progress() {
    if (remote_) pipeline_.progress();
  }

 private:
  comm::Communicator& pipeline_;
  const int lanes_count_;
  std::unique_ptr<comm::SharedMemory> shared_;
  std::unique_ptr<comm::SharedLanes> lanes_;  // null: everything through the communicator
  Buffer own_;
  bool remote_ = false;  // some transfer goes through the communicator
};

/// The smallest modulus under which the stages of every rank have different numbers.
int boundary_numbers(const std::vector<std::int32_t>& rank_of_stage);

}  // namespace trainer::runtime
