// Messages through shared memory.
#include "trainer/comm/shared_memory.hpp"

#include <fmt/format.h>

#include <cstring>
#include <map>
#include <string>

#include "node_memory.hpp"
#include "trainer/core/error.hpp"
#include "trainer/core/tensor.hpp"

namespace trainer::comm {

bool covers(const SharedMemory* memory, int ranks) {
  for (int rank = 0; rank < ranks; ++rank) {
    if (memory == nullptr || memory->part(rank) == nullptr) return false;
  }
  return true;
}

std::vector<int> node_of_rank(Communicator& comm) {
  std::vector<int> nodes;
  std::map<std::string, int> numbers;
  int rank = 0;
  for (const std::string& domain : comm.gather_strings(memory_domain())) {
    // Who cannot say where it is shares with nobody.
    const std::string name = domain.empty() ? fmt::format("rank {}", rank) : domain;
    nodes.push_back(numbers.try_emplace(name, static_cast<int>(numbers.size())).first->second);
    ++rank;
  }
  return nodes;
}

SharedLanes::SharedLanes(SharedMemory& memory, int rank, int lanes)
    : memory_(memory),
      rank_(rank),
      lanes_(lanes),
      sent_(static_cast<std::size_t>(lanes)),
      awaited_(static_cast<std::size_t>(lanes)),
      taken_(static_cast<std::size_t>(lanes)) {}

std::size_t SharedLanes::record_bytes(int lanes) {
  return align_up(static_cast<std::size_t>(lanes) * kMostInFlight * sizeof(std::uint64_t));
}

// Where in the sender's part message `message` (from 0) of a lane lies. Written before it is posted.
std::uint64_t& SharedLanes::record(int rank, int lane, std::uint64_t message) const {
  auto* records = reinterpret_cast<std::uint64_t*>(memory_.part(rank));
  return records[static_cast<std::uint64_t>(lane) * kMostInFlight + message % kMostInFlight];
}

class SharedLanes::Send final : public Transfer {
 public:
  Send(SharedLanes& lanes, std::uint64_t offset, int peer, int lane)
      : lanes_(lanes), offset_(offset), peer_(peer), lane_(lane) {}

  void start() override {
    if (!done_) internal_error("a transfer through shared memory was started twice");
    done_ = false;
    std::uint64_t& sent = lanes_.sent_[static_cast<std::size_t>(lane_)];
    lanes_.record(lanes_.rank_, lane_, sent) = offset_;
    number_ = ++sent;
    lanes_.memory_.post(lane_, number_);
  }

  bool test() override {
    done_ = done_ || lanes_.memory_.reached(peer_, lanes_.lanes_ + lane_, number_);
    return done_;
  }

 private:
  SharedLanes& lanes_;
  const std::uint64_t offset_;
  const int peer_, lane_;
  std::uint64_t number_ = 0;
  bool done_ = true;
};

class SharedLanes::Receive final : public Transfer {
 public:
  Receive(SharedLanes& lanes, void* data, std::size_t bytes, int peer, int lane)
      : lanes_(lanes), data_(data), bytes_(bytes), peer_(peer), lane_(lane) {}

  void start() override {
    if (!done_) internal_error("a transfer through shared memory was started twice");
    done_ = false;
    number_ = ++lanes_.awaited_[static_cast<std::size_t>(lane_)];
  }

  // Messages are acknowledged by counting, so one is taken only after those before it.
  bool test() override {
    if (done_) return true;
    SharedMemory& memory = lanes_.memory_;
    std::uint64_t& taken = lanes_.taken_[static_cast<std::size_t>(lane_)];
    if (!memory.reached(peer_, lane_, number_) || taken + 1 != number_) return false;
    if (bytes_ > 0) std::memcpy(data_, memory.part(peer_) + lanes_.record(peer_, lane_, number_ - 1), bytes_);
    memory.post(lanes_.lanes_ + lane_, number_);
    taken = number_;
    done_ = true;
    return true;
  }

 private:
  SharedLanes& lanes_;
  void* data_;
  const std::size_t bytes_;
  const int peer_, lane_;
  std::uint64_t number_ = 0;
  bool done_ = true;
};

std::unique_ptr<Transfer> SharedLanes::make_send(const void* data, std::size_t bytes, int peer, int lane) {
  const std::byte* part = memory_.part(rank_);
  if (lane < 0 || lane >= lanes_ || peer == rank_ || !reaches(peer) || data < part + record_bytes(lanes_)) {
    internal_error(
        fmt::format("a send of {} bytes to rank {} on lane {} of {} of shared memory", bytes, peer, lane, lanes_));
  }
  const auto offset = static_cast<std::uint64_t>(static_cast<const std::byte*>(data) - part);
  return std::make_unique<Send>(*this, offset, peer, lane);
}

std::unique_ptr<Transfer> SharedLanes::make_receive(void* data, std::size_t bytes, int peer, int lane) {
  if (lane < 0 || lane >= lanes_ || peer == rank_ || !reaches(peer)) {
    internal_error(fmt::format("a receive from rank {} on lane {} of {} of shared memory", peer, lane, lanes_));
  }
  return std::make_unique<Receive>(*this, data, bytes, peer, lane);
}

}  // namespace trainer::comm
