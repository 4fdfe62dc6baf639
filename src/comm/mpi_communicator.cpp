// Persistent transfers and small collectives over MPI-3.1.
#include "mpi_communicator.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdint>
#include <exception>
#include <numeric>

#include "node_memory.hpp"
#include "trainer/core/error.hpp"

namespace trainer::comm {

namespace {

// MPI counts are ints: longer messages travel as several of this size.
constexpr std::size_t kLargestMessage = std::size_t{1} << 30;

bool mpi_is_running() {
  int initialized = 0;
  int finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  return initialized != 0 && finalized == 0;
}

enum class Direction { Send, Receive };

class MpiTransfer final : public Transfer {
 public:
  MpiTransfer(MPI_Comm comm, std::byte* data, std::size_t bytes, int peer, int tag, Direction direction)
      : peer_(peer), direction_(direction) {
    const std::size_t messages = std::max<std::size_t>(1, (bytes + kLargestMessage - 1) / kLargestMessage);
    requests_.reserve(messages);
    for (std::size_t m = 0; m < messages; ++m) {
      const std::size_t offset = m * kLargestMessage;
      const int count = static_cast<int>(std::min(kLargestMessage, bytes - offset));
      MPI_Request request = MPI_REQUEST_NULL;
      if (direction == Direction::Send) {
        check_mpi(MPI_Send_init(data + offset, count, MPI_BYTE, peer, tag, comm, &request), "preparing a send", peer);
      } else {
        check_mpi(MPI_Recv_init(data + offset, count, MPI_BYTE, peer, tag, comm, &request), "preparing a receive",
                  peer);
      }
      requests_.push_back(request);
    }
    done_ = requests_.size();
  }

  ~MpiTransfer() override {
    if (!mpi_is_running()) return;
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      // Unfinished only when an error unwinds. A withdrawn receive completes without its sender; a send is left to MPI.
      if (i >= done_ && direction_ == Direction::Receive && MPI_Cancel(&requests_[i]) == MPI_SUCCESS) drain(i);
      MPI_Request_free(&requests_[i]);
    }
  }
  MpiTransfer(const MpiTransfer&) = delete;
  MpiTransfer& operator=(const MpiTransfer&) = delete;

  void start() override {
    if (done_ != requests_.size()) internal_error(fmt::format("a transfer with rank {} was started twice", peer_));
    done_ = 0;
    check_mpi(MPI_Startall(static_cast<int>(requests_.size()), requests_.data()), starting(), peer_);
  }

  bool test() override {
    while (done_ < requests_.size()) {
      int complete = 0;
      MPI_Status status;
      check_mpi(MPI_Test(&requests_[done_], &complete, &status), doing(), peer_);
      if (complete == 0) return false;
      ++done_;
    }
    return true;
  }

 private:
  const char* starting() const { return direction_ == Direction::Send ? "starting a send" : "starting a receive"; }
  const char* doing() const { return direction_ == Direction::Send ? "a send" : "a receive"; }

  // Polls a while only: the process is about to end, and a peer that died in the middle of a message never completes
  // it.
  void drain(std::size_t i) {
    int complete = 0;
    for (int poll = 0; poll < 10000 && complete == 0; ++poll) {
      if (MPI_Test(&requests_[i], &complete, MPI_STATUS_IGNORE) != MPI_SUCCESS) return;
    }
  }

  int peer_;
  Direction direction_;
  std::vector<MPI_Request> requests_;
  std::size_t done_ = 0;  // of requests_, in order
};

// In place; the library may allocate.
class LibraryAllReduce final : public AllReduce {
 public:
  LibraryAllReduce(MPI_Comm comm, float* data, std::int64_t count) : comm_(comm), data_(data), count_(count) {
    requests_.resize(static_cast<std::size_t>((count + kMostElements - 1) / kMostElements), MPI_REQUEST_NULL);
    done_ = requests_.size();
  }

  void start() override {
    if (done_ != requests_.size()) internal_error("an all-reduce was started before it had finished");
    done_ = 0;
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      const std::int64_t begin = static_cast<std::int64_t>(i) * kMostElements;
      const int elements = static_cast<int>(std::min(kMostElements, count_ - begin));
      check_mpi(MPI_Iallreduce(MPI_IN_PLACE, data_ + begin, elements, MPI_FLOAT, MPI_SUM, comm_, &requests_[i]),
                "starting an all-reduce");
    }
  }

  bool test() override {
    for (; done_ < requests_.size(); ++done_) {
      int complete = 0;
      check_mpi(MPI_Test(&requests_[done_], &complete, MPI_STATUS_IGNORE), "an all-reduce");
      if (complete == 0) return false;
    }
    return true;
  }

 private:
  static constexpr std::int64_t kMostElements = std::int64_t{1} << 28;

  MPI_Comm comm_;
  float* data_;
  std::int64_t count_;
  std::vector<MPI_Request> requests_;
  std::size_t done_ = 0;  // of requests_, in order
};

int tag_bound() {
  void* value = nullptr;
  int found = 0;
  check_mpi(MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &value, &found), "reading MPI_TAG_UB");
  return found != 0 ? *static_cast<int*>(value) : 32767;  // what the standard promises
}

}  // namespace

void check_mpi(int code, const char* operation, int peer) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  const std::string with = peer >= 0 ? fmt::format(" with rank {}", peer) : "";
  throw Error(ExitCode::Internal, fmt::format("MPI failed in {}{}: {}", operation, with,
                                              std::string(text, static_cast<std::size_t>(length))));
}

MpiCommunicator::MpiCommunicator(MPI_Comm comm) : comm_(comm) {
  check_mpi(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "setting the error handler");
  check_mpi(MPI_Comm_rank(comm_, &rank_), "reading the rank");
  check_mpi(MPI_Comm_size(comm_, &size_), "reading the number of ranks");
  max_tag_ = tag_bound() - kReservedTags + 1;
}

MpiCommunicator::~MpiCommunicator() {
  // Freeing may talk to the other ranks, which may never come when an error unwinds.
  if (std::uncaught_exceptions() == 0 && mpi_is_running()) MPI_Comm_free(&comm_);
}

std::unique_ptr<Transfer> MpiCommunicator::make_send(const void* data, std::size_t bytes, int peer, int tag) {
  auto* from = const_cast<std::byte*>(static_cast<const std::byte*>(data));
  return std::make_unique<MpiTransfer>(comm_, from, bytes, peer, tag, Direction::Send);
}

std::unique_ptr<Transfer> MpiCommunicator::make_receive(void* data, std::size_t bytes, int peer, int tag) {
  return std::make_unique<MpiTransfer>(comm_, static_cast<std::byte*>(data), bytes, peer, tag, Direction::Receive);
}

std::unique_ptr<AllReduce> MpiCommunicator::make_library_all_reduce(float* data, std::int64_t count) {
  return std::make_unique<LibraryAllReduce>(comm_, data, count);
}

void MpiCommunicator::complete(MPI_Request& request, const char* what) {
  const auto poll = [&request, what] {
    int done = 0;
    MPI_Status status;
    check_mpi(MPI_Test(&request, &done, &status), what);
    return done != 0;
  };
  wait_until(std::ref(poll), {what});
}

void MpiCommunicator::barrier() {
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Ibarrier(comm_, &request), "a barrier");
  complete(request, "a barrier");
}

void MpiCommunicator::gather(std::span<const double> values, const char* what) {
  const std::size_t needed = values.size() * static_cast<std::size_t>(size_);
  if (values.size() > INT_MAX) internal_error("a small collective of more than 2^31 values");
  if (scratch_.size() < needed) scratch_.resize(needed);
  const int count = static_cast<int>(values.size());
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Iallgather(values.data(), count, MPI_DOUBLE, scratch_.data(), count, MPI_DOUBLE, comm_, &request),
            what);
  complete(request, what);
}

void MpiCommunicator::sum(std::span<double> values) {
  if (size_ == 1 || values.empty()) return;
  gather(values, "a sum over ranks");
  std::copy_n(scratch_.begin(), values.size(), values.begin());
  for (std::size_t r = 1; r < static_cast<std::size_t>(size_); ++r) {
    for (std::size_t i = 0; i < values.size(); ++i) values[i] += scratch_[r * values.size() + i];
  }
}

void MpiCommunicator::max(std::span<double> values) {
  if (size_ == 1 || values.empty()) return;
  gather(values, "a maximum over ranks");
  std::copy_n(scratch_.begin(), values.size(), values.begin());
  for (std::size_t r = 1; r < static_cast<std::size_t>(size_); ++r) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double other = scratch_[r * values.size() + i];
      if (other > values[i] || std::isnan(other)) values[i] = other;
    }
  }
}

void MpiCommunicator::broadcast(std::span<std::byte> bytes, int root) {
  for (std::size_t offset = 0; offset < bytes.size(); offset += kLargestMessage) {
    const int count = static_cast<int>(std::min(kLargestMessage, bytes.size() - offset));
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Ibcast(bytes.data() + offset, count, MPI_BYTE, root, comm_, &request), "a broadcast", root);
    complete(request, "a broadcast");
  }
}

std::vector<std::string> MpiCommunicator::gather_strings(const std::string& mine) {
  const auto ranks = static_cast<std::size_t>(size_);
  std::vector<std::int64_t> sizes(ranks);
  const auto my_size = static_cast<std::int64_t>(mine.size());
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Iallgather(&my_size, 1, MPI_INT64_T, sizes.data(), 1, MPI_INT64_T, comm_, &request), "gathering sizes");
  complete(request, "gathering sizes");

  const std::int64_t total = std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
  if (total > INT_MAX) internal_error(fmt::format("gathering {} bytes of strings, more than 2^31", total));
  const std::vector<int> counts(sizes.begin(), sizes.end());
  std::vector<int> offsets(ranks, 0);
  std::partial_sum(counts.begin(), counts.end() - 1, offsets.begin() + 1);
  std::string all(static_cast<std::size_t>(total), '\0');
  check_mpi(MPI_Iallgatherv(mine.data(), static_cast<int>(my_size), MPI_BYTE, all.data(), counts.data(), offsets.data(),
                            MPI_BYTE, comm_, &request),
            "gathering strings");
  complete(request, "gathering strings");

  std::vector<std::string> strings;
  for (std::size_t r = 0; r < ranks; ++r) {
    strings.push_back(all.substr(static_cast<std::size_t>(offsets[r]), static_cast<std::size_t>(counts[r])));
  }
  return strings;
}

// MPI_Comm_split blocks, and not politely; after a barrier it is short.
std::unique_ptr<Communicator> MpiCommunicator::split(int color, int key) {
  if (color < 0) internal_error("splitting a communicator by a negative color");
  barrier();
  MPI_Comm part = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split(comm_, color, key, &part), "splitting a communicator");
  return std::make_unique<MpiCommunicator>(part);
}

std::unique_ptr<Communicator> MpiCommunicator::split_node() {
  barrier();
  MPI_Comm part = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split_type(comm_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &part),
            "splitting a communicator by node");
  return std::make_unique<MpiCommunicator>(part);
}

std::unique_ptr<SharedMemory> MpiCommunicator::share(std::size_t bytes, int channels) {
  return make_node_memory(*this, bytes, channels);
}

void MpiCommunicator::progress() {
  int found = 0;
  check_mpi(MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, comm_, &found, MPI_STATUS_IGNORE), "looking for messages");
}

}  // namespace trainer::comm
