// Rows of an embedding's gradient on their way from a rank of the mesh to a server: their numbers, then the rows.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "trainer/comm/communicator.hpp"
#include "trainer/core/tensor.hpp"
#include "trainer/runtime/server_plan.hpp"

namespace trainer::runtime {

/// One end: memory for the most rows of an area, and its transfers.
class RowsTransfer {
 public:
  /// The communicator must outlive it.
  RowsTransfer(const RowsArea& area, comm::Communicator& ranks, int peer, bool sends);

  /// Sending: packs the rows of `gradients` that are not zero in all bits and returns how many, or −1 when they are
  /// more than may travel alone.
  std::int64_t pack(const float* gradients);
  /// Sends or receives `rows` of them.
  void start(std::int64_t rows);
  bool test();

  /// Received: elements [begin, begin + count) of the area, with zeros in all other rows.
  void unpack(std::int64_t begin, std::int64_t count, float* to) const;

  /// What a push of so many rows moves.
  std::int64_t bytes(std::int64_t rows) const;
  static std::size_t memory_bytes(const RowsArea& area);

 private:
  const RowsArea area_;
  std::vector<std::int32_t> numbers_;  // ascending
  Buffer rows_;
  std::unique_ptr<comm::Transfer> move_numbers_;
  std::vector<std::unique_ptr<comm::Transfer>> move_rows_;
  std::int64_t count_ = 0;
  std::size_t moving_ = 0, moved_ = 0;
};

}  // namespace trainer::runtime
