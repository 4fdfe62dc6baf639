// A sum over ranks that is asked for now and needed later.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "trainer/comm/communicator.hpp"

namespace trainer::runtime {

/// Sums a short vector of doubles over all ranks of a communicator without waiting, the same bits as
/// Communicator::sum: rank 0 adds in rank order and sends the sums out. One at a time. Moves on in test() alone, which
/// is to be called, now and then, for as long as others may wait for the sums (see comm::WaitProgress).
class DeferredSum {
 public:
  /// Collective. Memory: `count` doubles twice, on rank 0 once more for every other rank.
  DeferredSum(comm::Communicator& world, std::size_t count);
  static std::size_t bytes(std::size_t count, int ranks, int rank);

  /// This rank's terms go in here, before start().
  std::span<double> values() { return values_; }
  /// Waits for what an earlier sum has left unsent.
  void start();
  /// Whether sums() are here; also when never started.
  bool test();
  std::span<const double> sums() const { return sums_; }

 private:
  void send();
  bool sent();

  std::unique_ptr<comm::Communicator> ranks_;
  std::vector<double> values_, sums_;
  std::vector<double> received_;  // rank 0: [other rank][count]
  std::vector<std::unique_ptr<comm::Transfer>> receives_, sends_;
  std::size_t arrived_ = 0, sent_ = 0;  // of receives_ and sends_, in order
  bool running_ = false;
};

}  // namespace trainer::runtime
