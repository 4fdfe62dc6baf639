// A communicator whose transfers start and complete late and out of order, to shake out what relies on timing.
#include <algorithm>
#include <chrono>
#include <list>
#include <utility>

#include "trainer/comm/communicator.hpp"
#include "trainer/comm/shared_memory.hpp"
#include "trainer/core/error.hpp"
#include "trainer/core/random.hpp"

namespace trainer::comm {

namespace {

using Clock = std::chrono::steady_clock;

// Which messages must keep their order among themselves.
struct Lane {
  int communicator = 0;
  bool send = false;
  int peer = 0;
  int tag = 0;
  bool operator==(const Lane&) const = default;
};

class FaultyTransfer;
class FaultyMemory;

// The delays of a communicator and of all that are split off it, and what is held back: starts of transfers and posts
// in shared memory. Shared, because polling any transfer makes all of them progress, as in MPI.
class Delays {
 public:
  Delays(std::uint64_t seed, int rank, double max_seconds)
      : stream_(seed + static_cast<std::uint64_t>(rank) * 0x9e3779b97f4a7c15ull, "faulty communicator"),
        max_seconds_(max_seconds) {}

  // Mostly short, sometimes long: cubes of uniform numbers.
  Clock::time_point next_time() {
    const double u = static_cast<double>(stream_.uniform(draws_++));
    return Clock::now() +
           std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(u * u * u * max_seconds_));
  }
  void hold_back(FaultyTransfer* transfer) { held_.push_back(transfer); }
  void forget(FaultyTransfer* transfer) { held_.remove(transfer); }
  void start_due() { start_those_due(Clock::now()); }
  void start_all() { start_those_due(Clock::time_point::max()); }
  int next_communicator() { return communicators_++; }
  void add(FaultyMemory* memory) { memories_.push_back(memory); }
  void remove(FaultyMemory* memory) { memories_.remove(memory); }

 private:
  void start_those_due(Clock::time_point now);

  RandomStream stream_;
  double max_seconds_;
  std::uint64_t draws_ = 0;
  int communicators_ = 0;
  std::list<FaultyTransfer*> held_;  // in the order of their starts
  std::list<FaultyMemory*> memories_;
};

class FaultyTransfer final : public Transfer {
 public:
  FaultyTransfer(std::shared_ptr<Delays> delays, std::unique_ptr<Transfer> inner, Lane lane)
      : delays_(std::move(delays)), inner_(std::move(inner)), lane_(lane) {}
  ~FaultyTransfer() override { delays_->forget(this); }
  FaultyTransfer(const FaultyTransfer&) = delete;
  FaultyTransfer& operator=(const FaultyTransfer&) = delete;

  void start() override {
    if (state_ != State::Done) internal_error("a transfer was started twice");
    state_ = State::HeldBack;
    due_ = delays_->next_time();
    delays_->hold_back(this);
    delays_->start_due();
  }

  bool test() override {
    delays_->start_due();
    if (state_ == State::Started && inner_->test()) {
      state_ = State::Withheld;
      due_ = delays_->next_time();
    }
    if (state_ == State::Withheld && Clock::now() >= due_) state_ = State::Done;
    return state_ == State::Done;
  }

  const Lane& lane() const { return lane_; }
  bool due(Clock::time_point now) const { return now >= due_; }
  void start_inner() {
    inner_->start();
    state_ = State::Started;
  }

 private:
  enum class State { Done, HeldBack, Started, Withheld };

  std::shared_ptr<Delays> delays_;
  std::unique_ptr<Transfer> inner_;
  Lane lane_;
  State state_ = State::Done;
  Clock::time_point due_;
};

// Posts become visible late, in their order.
class FaultyMemory final : public SharedMemory {
 public:
  FaultyMemory(std::shared_ptr<Delays> delays, std::unique_ptr<SharedMemory> inner)
      : delays_(std::move(delays)), inner_(std::move(inner)) {
    delays_->add(this);
  }
  ~FaultyMemory() override {
    post_those_due(Clock::time_point::max());
    delays_->remove(this);
  }
  FaultyMemory(const FaultyMemory&) = delete;
  FaultyMemory& operator=(const FaultyMemory&) = delete;

  std::byte* part(int rank) const override { return inner_->part(rank); }
  void post(int channel, std::uint64_t value) override {
    held_.push_back({delays_->next_time(), channel, value});
    delays_->start_due();
  }
  bool reached(int rank, int channel, std::uint64_t value) override {
    delays_->start_due();
    return inner_->reached(rank, channel, value);
  }
  void post_those_due(Clock::time_point now) {
    for (; !held_.empty() && held_.front().due <= now; held_.pop_front()) {
      inner_->post(held_.front().channel, held_.front().value);
    }
  }

 private:
  struct Post {
    Clock::time_point due;
    int channel;
    std::uint64_t value;
  };
  std::shared_ptr<Delays> delays_;
  std::unique_ptr<SharedMemory> inner_;
  std::list<Post> held_;
};

void Delays::start_those_due(Clock::time_point now) {
  for (FaultyMemory* memory : memories_) memory->post_those_due(now);
  for (auto it = held_.begin(); it != held_.end();) {
    const auto same_lane = [&](const FaultyTransfer* earlier) { return earlier->lane() == (*it)->lane(); };
    if (!(*it)->due(now) || std::any_of(held_.begin(), it, same_lane)) {
      ++it;
      continue;
    }
    (*it)->start_inner();
    it = held_.erase(it);
  }
}

class FaultyCommunicator final : public Communicator {
 public:
  FaultyCommunicator(Communicator& inner, std::shared_ptr<Delays> delays)
      : inner_(inner), delays_(std::move(delays)), id_(delays_->next_communicator()) {}
  FaultyCommunicator(std::unique_ptr<Communicator> inner, std::shared_ptr<Delays> delays)
      : FaultyCommunicator(*inner, std::move(delays)) {
    owned_ = std::move(inner);
  }

  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  int max_tag() const override { return inner_.max_tag(); }

  std::unique_ptr<Transfer> make_send(const void* data, std::size_t bytes, int peer, int tag) override {
    return wrap(inner_.make_send(data, bytes, peer, tag), Lane{id_, true, peer, tag});
  }
  std::unique_ptr<Transfer> make_receive(void* data, std::size_t bytes, int peer, int tag) override {
    return wrap(inner_.make_receive(data, bytes, peer, tag), Lane{id_, false, peer, tag});
  }

  void barrier() override { inner().barrier(); }
  void sum(std::span<double> values) override { inner().sum(values); }
  void max(std::span<double> values) override { inner().max(values); }
  void broadcast(std::span<std::byte> bytes, int root) override { inner().broadcast(bytes, root); }
  std::vector<std::string> gather_strings(const std::string& mine) override { return inner().gather_strings(mine); }
  std::unique_ptr<Communicator> split(int color, int key) override { return wrap(inner().split(color, key)); }
  std::unique_ptr<Communicator> split_node() override { return wrap(inner().split_node()); }
  std::unique_ptr<SharedMemory> share(std::size_t bytes, int channels) override {
    auto memory = inner().share(bytes, channels);
    if (memory == nullptr) return nullptr;
    return std::make_unique<FaultyMemory>(delays_, std::move(memory));
  }
  void progress() override {
    delays_->start_due();
    inner_.progress();
  }

 private:
  // For a blocking call, which polls no transfer of ours: what others may be waiting for must be on its way.
  Communicator& inner() {
    delays_->start_all();
    return inner_;
  }
  std::unique_ptr<Transfer> wrap(std::unique_ptr<Transfer> transfer, const Lane& lane) {
    return std::make_unique<FaultyTransfer>(delays_, std::move(transfer), lane);
  }
  std::unique_ptr<Communicator> wrap(std::unique_ptr<Communicator> part) {
    return std::make_unique<FaultyCommunicator>(std::move(part), delays_);
  }

  std::unique_ptr<Communicator> owned_;  // a part that was split off here
  Communicator& inner_;
  std::shared_ptr<Delays> delays_;
  int id_;
};

}  // namespace

std::unique_ptr<Communicator> make_faulty(Communicator& inner, std::uint64_t seed, double max_delay_seconds) {
  return std::make_unique<FaultyCommunicator>(inner, std::make_shared<Delays>(seed, inner.rank(), max_delay_seconds));
}

}  // namespace trainer::comm
