// Memory that ranks of one node share, and messages through it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "trainer/comm/communicator.hpp"

namespace trainer::comm {

/// A part of memory for each rank of a communicator, which all ranks of its node address, and counters by which they
/// tell each other how far they are. Made by Communicator::share, which it must not outlive. Used by one thread a rank.
class SharedMemory {
 public:
  virtual ~SharedMemory() = default;

  /// What `rank` asked for, 64-byte aligned and zero at the start; null when that rank is on another node. Any rank may
  /// read and write it; who does so when is for the counters to order.
  virtual std::byte* part(int rank) const = 0;

  /// Raises this rank's counter `channel` to `value` (never lowers it). Whatever this rank has written before is
  /// visible to a rank that has found the counter there.
  virtual void post(int channel, std::uint64_t value) = 0;
  /// Whether `rank`'s counter is at `value` or above. When it is not, other traffic of this rank progresses.
  virtual bool reached(int rank, int channel, std::uint64_t value) = 0;
};

/// Whether all `ranks` of the communicator that made it are on this node; null memory is not.
bool covers(const SharedMemory* memory, int ranks);

/// [rank] a number of the node that it is on, as far as sharing memory goes: equal for those that could. Collective.
std::vector<int> node_of_rank(Communicator& comm);

/// Point-to-point through shared memory: the receiver copies out of the sender's part, with no help of the sender. A
/// send is complete when the receiver has copied. A lane goes from one rank to one other and keeps its order; the
/// number of a lane is free to choose, but one rank neither sends two lanes of one number nor receives two.
/// The memory needs channels(lanes) channels, and its parts begin with record_bytes(lanes) that belong to the lanes.
class SharedLanes {
 public:
  SharedLanes(SharedMemory& memory, int rank, int lanes);
  static int channels(int lanes) { return 2 * lanes; }
  static std::size_t record_bytes(int lanes);

  /// Ranks of this node; the others are for Communicator::make_send and make_receive.
  bool reaches(int rank) const { return memory_.part(rank) != nullptr; }

  /// As those of the communicator; `data` of a send lies in this rank's part, behind the records. Transfers must not
  /// outlive the lanes. At most kMostInFlight messages of a lane may be unreceived.
  std::unique_ptr<Transfer> make_send(const void* data, std::size_t bytes, int peer, int lane);
  std::unique_ptr<Transfer> make_receive(void* data, std::size_t bytes, int peer, int lane);
  static constexpr std::uint64_t kMostInFlight = 8;

 private:
  class Send;
  class Receive;
  std::uint64_t& record(int rank, int lane, std::uint64_t message) const;

  SharedMemory& memory_;
  const int rank_;
  const int lanes_;
  std::vector<std::uint64_t> sent_, awaited_, taken_;  // [lane] messages so far: started, and copied
};

}  // namespace trainer::comm
