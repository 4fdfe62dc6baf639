// Messages between ranks. The MPI implementation is the only place that includes mpi.h; the in-process one runs ranks
// as threads for tests, the faulty one wraps another with delays and reordered completion.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "trainer/comm/all_reduce.hpp"

namespace trainer::comm {

class SharedMemory;  // trainer/comm/shared_memory.hpp

/// What a wait is for, so that a hang can be explained. Strings must outlive the wait (literals).
struct WaitTag {
  const char* what = "";  // "forward activations of micro-batch"
  int peer = -1;
  std::int64_t detail = -1;  // micro-batch, bucket, ...
};

/// A prepared all-reduce over a fixed buffer: set up once (all memory then), started every step. Several may be in
/// flight; the buffer is not to be touched between start() and the test() that returns true.
class AllReduce {
 public:
  virtual ~AllReduce() = default;
  virtual void start() = 0;  // not while one is unfinished
  virtual bool test() = 0;   // progress; true when the buffer holds the sum on this rank, and when never started
};

/// A prepared send or receive of a fixed buffer (MPI persistent requests): starting allocates nothing.
class Transfer {
 public:
  virtual ~Transfer() = default;
  virtual void start() = 0;  // not while one is unfinished
  virtual bool test() = 0;   // true when complete, and when never started
};

/// One rank's end of a group of ranks. Used by one thread; outlives what it makes.
class Communicator {
 public:
  Communicator();
  virtual ~Communicator();
  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// Persistent point-to-point of `bytes` (0 is legal); the memory must stay. Messages of one (peer, tag) arrive in
  /// the order of their starts, and both sides state the same size. Tags are in [0, max_tag()), at least 16383 of them.
  virtual std::unique_ptr<Transfer> make_send(const void* data, std::size_t bytes, int peer, int tag) = 0;
  virtual std::unique_ptr<Transfer> make_receive(void* data, std::size_t bytes, int peer, int tag) = 0;
  virtual int max_tag() const = 0;

  /// Sum of `data[0, count)` over the ranks, the same bits on every rank, as `options` say (see there); by default
  /// every element is added in ascending rank order. Collective call. Memory as all_reduce_cost() says is taken at
  /// once; long buffers go through in pieces, so it is bounded: max(1 MiB, 32 KiB · ranks) · 2 by default, less for
  /// small buffers, 4 MiB at most for Ring. Several made by one communicator may be in flight, started in any order;
  /// those of AllReduceAlgorithm::Mpi in the same order on all ranks.
  std::unique_ptr<AllReduce> make_all_reduce(float* data, std::int64_t count, const AllReduceOptions& options = {});
  /// Of the default.
  static std::size_t all_reduce_extra_bytes(std::int64_t count, int ranks);
  /// What one all-reduce of this size sends from `rank`, in bytes.
  static std::int64_t all_reduce_sent_bytes(std::int64_t count, int ranks, int rank);

  // Small blocking collectives for set-up and agreement; they wait politely too.
  virtual void barrier() = 0;
  virtual void sum(std::span<double> values) = 0;  // in rank order, the same bits everywhere
  virtual void max(std::span<double> values) = 0;
  virtual void broadcast(std::span<std::byte> bytes, int root) = 0;
  /// One byte string a rank, in rank order, on every rank.
  virtual std::vector<std::string> gather_strings(const std::string& mine) = 0;

  /// Ranks of equal color, ordered by key. Collective.
  virtual std::unique_ptr<Communicator> split(int color, int key) = 0;
  /// Ranks that share this node's memory. Collective.
  virtual std::unique_ptr<Communicator> split_node() = 0;

  /// Memory shared with those ranks that are on this node: `bytes` for this rank (they may differ between ranks; 0 is
  /// legal) and `channels` counters for each. Collective. Null on every rank when the system refuses.
  virtual std::unique_ptr<SharedMemory> share(std::size_t bytes, int channels) = 0;
  /// Lets messages in flight progress, for those who wait for something else.
  virtual void progress() = 0;

 protected:
  /// Implementations accept tags in [max_tag(), max_tag() + kReservedTags): they belong to the all-reduces, which take
  /// them in the order of the collective calls. MPI promises 32768 tags at least.
  static constexpr int kReservedTags = 16384;

  /// The message library's own; null: there is none.
  virtual std::unique_ptr<AllReduce> make_library_all_reduce(float* data, std::int64_t count);

 private:
  struct TagRing;
  std::shared_ptr<TagRing> all_reduce_tags_;
};

/// How waits behave, for the whole process.
struct WaitPolicy {
  bool yield = false;       // more ranks than cores: give the core away between polls
  double hang_seconds = 0;  // longer than this throws Error(Hang) saying what is awaited; 0: never
  /// Called now and then from long waits and between nodes so that other traffic progresses; may be empty.
  std::function<void()> progress;
};
void set_wait_policy(WaitPolicy policy);
const WaitPolicy& wait_policy();

/// While it lives, every wait of this thread calls `progress` between its polls: for what others may be waiting for
/// while this rank waits for them. One at a time a thread; `progress` must not wait.
class WaitProgress {
 public:
  explicit WaitProgress(std::function<void()> progress);
  ~WaitProgress();
  WaitProgress(const WaitProgress&) = delete;
  WaitProgress& operator=(const WaitProgress&) = delete;
};

/// The one blocking wait: polls `done` (which makes progress) politely until it returns true. Returns seconds waited.
/// Throws Error(Hang). Allocates nothing. Spins some 50 µs, then yields between polls; with policy.yield it yields at
/// once and sleeps between polls after some µs, a share of the time waited so far and 1 ms at most; what is awaited in
/// shared memory wakes it.
double wait_until(const std::function<bool()>& done, const WaitTag& tag);
template <class Testable>
double wait(Testable& op, const WaitTag& tag) {
  auto poll = [&op] { return op.test(); };
  return wait_until(std::ref(poll), tag);
}

/// How in-process sends complete: at once by copying (Eager), or only when the receive was posted (Rendezvous). MPI
/// does either, by size; a program must be free of deadlock under both.
enum class SendMode { Eager, Rendezvous };

/// Ranks as threads of this process: `body(communicator)` runs once a rank; the first exception is rethrown after all
/// threads have ended (the others get Error(Internal) from their waits). With `ranks_per_node` they behave as if each
/// so many ranks had a node of their own.
void run_in_process(int ranks, const std::function<void(Communicator&)>& body, SendMode mode = SendMode::Eager,
                    int ranks_per_node = 0);

/// Wraps `inner`, which must outlive it: starts and completions of transfers, those of the all-reduces included, are
/// delayed by up to `max_delay_seconds` each and so reordered, by a counter RNG of (`seed`, rank). Order within one
/// (peer, tag) is kept. What is posted in shared memory is delayed too. Use either the wrapper or `inner`, not both.
std::unique_ptr<Communicator> make_faulty(Communicator& inner, std::uint64_t seed, double max_delay_seconds);

}  // namespace trainer::comm
