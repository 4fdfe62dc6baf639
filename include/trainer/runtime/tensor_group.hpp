// Sums over the tensor ranks of one stage and replica, of what operators have computed in parts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "trainer/comm/communicator.hpp"
#include "trainer/comm/shared_memory.hpp"
#include "trainer/core/action_log.hpp"
#include "trainer/core/tensor.hpp"
#include "trainer/core/thread_pool.hpp"

namespace trainer::runtime {

/// Operators write their part of a sum to partial(). On one node that is memory of all ranks: a rank that has finished
/// its part raises a counter, and each rank adds the parts where they lie, in rank order. (More than two ranks share
/// the adding: each sums a stretch and reads the others'.) Two buffers in turn, so that nobody waits for readers: who
/// has finished part k+1 has read all parts k. Over several nodes the parts go through all-reduces, with the same bits.
class TensorGroup {
 public:
  /// Collective over `ranks`. No sum has more than `most_elements`. `log` (may be null) gets the waits.
  TensorGroup(comm::Communicator& ranks, std::int64_t most_elements, ActionLog* log = nullptr);

  int size() const { return ranks_.size(); }
  comm::Communicator& ranks() { return ranks_; }

  /// Collective over the group, same order everywhere: sums of `elements` will be asked for.
  void book(std::int64_t elements);

  /// Where the next part is to be computed; until its finish().
  float* partial();
  /// Begins the sum of partial()[0, elements) over the group; one at a time.
  void start(std::int64_t elements);
  /// Waits for the sum and writes or adds it to `to`. Does nothing when none was started.
  void finish(ThreadPool& pool, float* to, bool accumulate);
  /// Lets a started sum make progress.
  void progress(ThreadPool& pool);

 private:
  float* part_of(int rank) const;
  bool all_reached(int channel);
  void wait_for_all(int channel);
  void sum_own_stretch(ThreadPool& pool);
  void finish_shared(ThreadPool& pool, float* to, bool accumulate);

  comm::Communicator& ranks_;
  const std::int64_t most_elements_;
  std::unique_ptr<comm::SharedMemory> memory_;  // null: by messages
  std::uint64_t sequence_ = 0;                  // sums started so far
  std::vector<const float*> terms_;             // [rank]
  bool stretch_done_ = false;

  Buffer staging_;
  std::map<std::int64_t, std::unique_ptr<comm::AllReduce>> channels_;  // by elements

  bool active_ = false;
  std::int64_t elements_ = 0;
  ActionLog* log_;
};

/// Memory of a group's reductions on one rank, in bytes.
struct ReductionMemory {
  std::size_t own = 0;
  std::size_t neighbours = 0;  // of theirs that this rank reads
};
/// `sizes`: the elements that are booked. `shared`: the group is on one node.
ReductionMemory reduction_memory(const std::vector<std::int64_t>& sizes, int ranks, bool shared);

}  // namespace trainer::runtime
