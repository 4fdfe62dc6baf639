// All-reduces over the tensor ranks of one stage and replica, on staging memory booked once for each size.
#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "trainer/comm/communicator.hpp"
#include "trainer/core/tensor.hpp"

namespace trainer::runtime {

class TensorGroup {
 public:
  explicit TensorGroup(comm::Communicator& ranks) : ranks_(ranks) {}

  int size() const { return ranks_.size(); }
  comm::Communicator& ranks() { return ranks_; }

  /// Collective over the group, same order everywhere: makes room for reductions of `elements`.
  void book(std::int64_t elements);
  static std::size_t booked_bytes(std::int64_t elements, int ranks);

  /// Begins the sum of data[0, elements) over the group; one at a time. finish() waits and writes the sum to `data`.
  void start(float* data, std::int64_t elements);
  void finish();
  bool pending() const { return active_ != nullptr; }
  /// Lets a started sum make progress.
  void progress();

  double waited_seconds() const { return waited_; }

 private:
  struct Channel {
    Buffer staging;
    std::unique_ptr<comm::AllReduce> reduce;
  };
  comm::Communicator& ranks_;
  std::map<std::int64_t, Channel> channels_;
  Channel* active_ = nullptr;
  float* data_ = nullptr;
  std::int64_t elements_ = 0;
  double waited_ = 0;
};

}  // namespace trainer::runtime
