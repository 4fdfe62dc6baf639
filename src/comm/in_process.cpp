// Ranks as threads of one process: mailboxes, and collectives by exchanging byte strings.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <tuple>
#include <utility>

#include "counters.hpp"
#include "trainer/comm/communicator.hpp"
#include "trainer/comm/shared_memory.hpp"
#include "trainer/core/error.hpp"
#include "trainer/core/tensor.hpp"

namespace trainer::comm {

namespace {

// What all groups of one run share.
struct World {
  SendMode mode = SendMode::Eager;
  std::atomic<bool> failed{false};

  void check() const {
    if (!failed.load(std::memory_order_relaxed)) return;
    throw Error(ExitCode::Internal, "this rank stops waiting because another rank of the process has failed");
  }
};

struct Posting {
  const std::byte* from = nullptr;  // of a send
  std::byte* to = nullptr;          // of a receive
  std::size_t bytes = 0;
  std::atomic<bool> done{true};
  std::vector<std::byte> copy;  // of an eager send that found no receive
  bool pooled = false;          // an eager copy, owned by its channel
  Posting* next = nullptr;
};

// First in, first out, through Posting::next.
struct PostingQueue {
  Posting* first = nullptr;
  Posting* last = nullptr;

  void push(Posting* p) {
    p->next = nullptr;
    (first == nullptr ? first : last->next) = p;
    last = p;
  }
  Posting* pop() {
    Posting* const p = first;
    if (p != nullptr) first = p->next;
    return p;
  }
  void remove(const Posting* gone) {
    PostingQueue kept;
    while (Posting* p = pop()) {
      if (p != gone) kept.push(p);
    }
    *this = kept;
  }
};

// All messages of one (sender, receiver, tag). Whoever comes second copies.
class Channel {
 public:
  Channel(const World& world, std::string name) : world_(world), name_(std::move(name)) {}

  void send(Posting& mine) {
    const std::lock_guard lock(mutex_);
    if (Posting* receive = receives_.pop()) {
      deliver(mine, *receive);
    } else if (world_.mode == SendMode::Eager) {
      sends_.push(copy_of(mine));
      mine.done.store(true, std::memory_order_release);
    } else {
      sends_.push(&mine);
    }
  }

  void receive(Posting& mine) {
    const std::lock_guard lock(mutex_);
    if (Posting* send = sends_.pop()) {
      const bool pooled = send->pooled;
      deliver(*send, mine);
      if (pooled) free_copies_.push(send);
    } else {
      receives_.push(&mine);
    }
  }

  // Withdraws a posting that will not be completed.
  void forget(const Posting& posting) {
    const std::lock_guard lock(mutex_);
    sends_.remove(&posting);
    receives_.remove(&posting);
  }

 private:
  // Once done is set, a posting that is not pooled may be gone.
  void deliver(Posting& send, Posting& receive) {
    if (send.bytes != receive.bytes) {
      internal_error(fmt::format("{}: {} bytes were sent and {} are expected", name_, send.bytes, receive.bytes));
    }
    if (send.bytes > 0) std::memcpy(receive.to, send.from, send.bytes);
    receive.done.store(true, std::memory_order_release);
    send.done.store(true, std::memory_order_release);
  }

  Posting* copy_of(const Posting& send) {
    Posting* p = free_copies_.pop();
    if (p == nullptr) p = copies_.emplace_back(std::make_unique<Posting>()).get();
    p->pooled = true;
    p->copy.assign(send.from, send.from + send.bytes);
    p->from = p->copy.data();
    p->bytes = send.bytes;
    return p;
  }

  const World& world_;
  const std::string name_;
  std::mutex mutex_;
  PostingQueue sends_;
  PostingQueue receives_;
  PostingQueue free_copies_;
  std::vector<std::unique_ptr<Posting>> copies_;
};

class ChannelTransfer final : public Transfer {
 public:
  ChannelTransfer(std::shared_ptr<const World> world, std::shared_ptr<Channel> channel)
      : world_(std::move(world)), channel_(std::move(channel)) {}
  ~ChannelTransfer() override {
    if (!posting_.done.load(std::memory_order_acquire)) channel_->forget(posting_);
  }
  ChannelTransfer(const ChannelTransfer&) = delete;
  ChannelTransfer& operator=(const ChannelTransfer&) = delete;

  Posting& posting() { return posting_; }

  void start() override {
    if (!posting_.done.load(std::memory_order_acquire)) internal_error("a transfer was started twice");
    posting_.done.store(false, std::memory_order_relaxed);
    if (posting_.to != nullptr) {
      channel_->receive(posting_);
    } else {
      channel_->send(posting_);
    }
  }

  bool test() override {
    if (posting_.done.load(std::memory_order_acquire)) return true;
    world_->check();
    return false;
  }

 private:
  std::shared_ptr<const World> world_;
  std::shared_ptr<Channel> channel_;
  Posting posting_;
};

// What the ranks of one communicator share.
class Group {
 public:
  Group(std::shared_ptr<const World> world, int size) : world_(std::move(world)), size_(size) {
    for (Round& round : rounds_) round.strings.resize(static_cast<std::size_t>(size));
  }

  int size() const { return size_; }
  const std::shared_ptr<const World>& world() const { return world_; }

  std::shared_ptr<Channel> channel(int from, int to, int tag) {
    const std::lock_guard lock(mutex_);
    auto& channel = channels_[{from, to, tag}];
    if (!channel) {
      channel =
          std::make_shared<Channel>(*world_, fmt::format("the message from rank {} to rank {}, tag {}", from, to, tag));
    }
    return channel;
  }

  // The strings of all ranks, valid until the caller's next exchange. `sequence` counts the caller's exchanges: two
  // rounds are enough, because nobody begins the next but one before everybody has left this one.
  const std::vector<std::string>& exchange(int rank, std::uint64_t sequence, std::span<const std::byte> mine,
                                           const char* what) {
    Round& round = rounds_[sequence % 2];
    const std::uint64_t expected = (sequence / 2 + 1) * static_cast<std::uint64_t>(size_);
    round.strings[static_cast<std::size_t>(rank)].assign(reinterpret_cast<const char*>(mine.data()), mine.size());
    round.arrived.fetch_add(1, std::memory_order_acq_rel);
    const auto complete = [&] {
      if (round.arrived.load(std::memory_order_acquire) >= expected) return true;
      world_->check();
      return false;
    };
    wait_until(std::ref(complete), {what});
    return round.strings;
  }

  // The part of this group that the ranks of `color` make by their exchange number `sequence`.
  std::shared_ptr<Group> part(std::uint64_t sequence, int color, int size) {
    const std::lock_guard lock(mutex_);
    auto& part = parts_[{sequence, color}];
    if (!part) part = std::make_shared<Group>(world_, size);
    return part;
  }

 private:
  struct Round {
    std::vector<std::string> strings;  // by rank; each rank writes its own
    std::atomic<std::uint64_t> arrived{0};
  };

  std::shared_ptr<const World> world_;
  int size_;
  std::array<Round, 2> rounds_;
  std::mutex mutex_;
  std::map<std::tuple<int, int, int>, std::shared_ptr<Channel>> channels_;
  std::map<std::pair<std::uint64_t, int>, std::shared_ptr<Group>> parts_;
};

template <class T>
T value_at(const std::string& bytes, std::size_t index) {
  T value;
  std::memcpy(&value, bytes.data() + index * sizeof(T), sizeof(T));
  return value;
}

// Parts are counters first, then the memory, as between processes.
class InProcessMemory final : public SharedMemory {
 public:
  using Part = std::shared_ptr<Buffer>;
  InProcessMemory(std::shared_ptr<const World> world, std::vector<Part> parts, int rank, int channels)
      : world_(std::move(world)), parts_(std::move(parts)), rank_(rank), channels_(channels) {}

  std::byte* part(int rank) const override {
    const Part& part = parts_[static_cast<std::size_t>(rank)];
    return part == nullptr ? nullptr : part->data() + counter_bytes(channels_);
  }
  void post(int channel, std::uint64_t value) override { raise(counter(rank_, channel), value); }
  bool reached(int rank, int channel, std::uint64_t value) override {
    if (is_at(counter(rank, channel), value)) return true;
    world_->check();
    return false;
  }

 private:
  Counter& counter(int rank, int channel) const {
    return counter_of(parts_[static_cast<std::size_t>(rank)]->data(), channel);
  }

  std::shared_ptr<const World> world_;
  std::vector<Part> parts_;  // [rank]; null on other nodes
  int rank_;
  int channels_;
};

class InProcessCommunicator final : public Communicator {
 public:
  InProcessCommunicator(std::shared_ptr<Group> group, int rank, int node)
      : group_(std::move(group)), rank_(rank), node_(node) {}

  int rank() const override { return rank_; }
  int size() const override { return group_->size(); }
  int max_tag() const override { return 32768 - kReservedTags; }  // no more than MPI promises

  std::unique_ptr<Transfer> make_send(const void* data, std::size_t bytes, int peer, int tag) override {
    auto transfer = make_transfer(rank_, peer, peer, tag);
    transfer->posting().from = static_cast<const std::byte*>(data);
    transfer->posting().bytes = bytes;
    return transfer;
  }

  std::unique_ptr<Transfer> make_receive(void* data, std::size_t bytes, int peer, int tag) override {
    static std::byte nowhere;  // of receives of nothing: `to` also says that it is a receive
    auto transfer = make_transfer(peer, rank_, peer, tag);
    transfer->posting().to = data == nullptr ? &nowhere : static_cast<std::byte*>(data);
    transfer->posting().bytes = bytes;
    return transfer;
  }

  void barrier() override { exchange({}, "a barrier"); }

  void sum(std::span<double> values) override {
    const auto& all = exchange(std::as_bytes(values), "a sum over ranks");
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = value_at<double>(all[0], i);
      for (std::size_t r = 1; r < all.size(); ++r) values[i] += value_at<double>(all[r], i);
    }
  }

  void max(std::span<double> values) override {
    const auto& all = exchange(std::as_bytes(values), "a maximum over ranks");
    for (std::size_t i = 0; i < values.size(); ++i) {
      for (const std::string& theirs : all) {
        const double other = value_at<double>(theirs, i);
        if (other > values[i] || std::isnan(other)) values[i] = other;
      }
    }
  }

  void broadcast(std::span<std::byte> bytes, int root) override {
    const std::span<const std::byte> mine = rank_ == root ? bytes : std::span<std::byte>{};
    const std::string& theirs = exchange(mine, "a broadcast")[static_cast<std::size_t>(root)];
    if (theirs.size() != bytes.size()) {
      internal_error(fmt::format("a broadcast of {} bytes, of which {} are expected", theirs.size(), bytes.size()));
    }
    if (!bytes.empty()) std::memcpy(bytes.data(), theirs.data(), bytes.size());
  }

  std::vector<std::string> gather_strings(const std::string& mine) override {
    return exchange(std::as_bytes(std::span(mine)), "gathering strings");
  }

  std::unique_ptr<Communicator> split(int color, int key) override {
    if (color < 0) internal_error("splitting a communicator by a negative color");
    const std::array<int, 2> mine{color, key};
    const std::uint64_t sequence = exchanges_;
    const auto& all = exchange(std::as_bytes(std::span(mine)), "splitting a communicator");
    std::vector<std::pair<int, int>> members;  // key, rank here
    for (std::size_t r = 0; r < all.size(); ++r) {
      if (value_at<int>(all[r], 0) == color) members.emplace_back(value_at<int>(all[r], 1), static_cast<int>(r));
    }
    std::sort(members.begin(), members.end());
    const auto me = std::find(members.begin(), members.end(), std::pair{key, rank_});
    auto part = group_->part(sequence, color, static_cast<int>(members.size()));
    return std::make_unique<InProcessCommunicator>(std::move(part), static_cast<int>(me - members.begin()), node_);
  }

  std::unique_ptr<Communicator> split_node() override { return split(node_, rank_); }

  std::unique_ptr<SharedMemory> share(std::size_t bytes, int channels) override {
    struct Offer {
      int node;
      const InProcessMemory::Part* part;
    };
    const auto mine = std::make_shared<Buffer>(counter_bytes(channels) + bytes);
    const std::array<Offer, 1> offer{{{node_, &mine}}};
    const auto& all = exchange(std::as_bytes(std::span(offer)), "sharing memory");
    std::vector<InProcessMemory::Part> parts;
    for (const std::string& theirs : all) {
      const auto other = value_at<Offer>(theirs, 0);
      parts.push_back(other.node == node_ ? *other.part : nullptr);
    }
    barrier();  // `mine` stays until all have copied it
    return std::make_unique<InProcessMemory>(group_->world(), std::move(parts), rank_, channels);
  }

  void progress() override { group_->world()->check(); }

 private:
  std::unique_ptr<ChannelTransfer> make_transfer(int from, int to, int peer, int tag) {
    if (peer < 0 || peer >= size() || tag < 0 || tag >= max_tag() + kReservedTags) {
      internal_error(fmt::format("a transfer with rank {} of {}, tag {}", peer, size(), tag));
    }
    return std::make_unique<ChannelTransfer>(group_->world(), group_->channel(from, to, tag));
  }

  const std::vector<std::string>& exchange(std::span<const std::byte> mine, const char* what) {
    return group_->exchange(rank_, exchanges_++, mine, what);
  }

  std::shared_ptr<Group> group_;
  int rank_;
  int node_;
  std::uint64_t exchanges_ = 0;
};

}  // namespace

void run_in_process(int ranks, const std::function<void(Communicator&)>& body, SendMode mode, int ranks_per_node) {
  auto world = std::make_shared<World>();
  world->mode = mode;
  const auto group = std::make_shared<Group>(world, ranks);
  std::mutex mutex;
  std::exception_ptr first;
  const auto run = [&](int rank) {
    try {
      InProcessCommunicator comm(group, rank, ranks_per_node > 0 ? rank / ranks_per_node : 0);
      body(comm);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!first) first = std::current_exception();
      world->failed.store(true);
    }
  };
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) threads.emplace_back(run, rank);
  for (std::thread& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace trainer::comm
