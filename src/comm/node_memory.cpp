#include "node_memory.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <sstream>
#include <utility>
#include <vector>

#include "counters.hpp"
#include "trainer/core/error.hpp"

namespace trainer::comm {

namespace {

// A mapping of a whole file; empty when it could not be made.
class Mapping {
 public:
  Mapping() = default;
  /// `own`: small ones are touched at once, as a Buffer's memory is; a neighbour's pages are his to touch first.
  Mapping(int file, std::size_t bytes, bool own) {
    constexpr std::size_t kHugePage = std::size_t{2} << 20;
    const bool huge = bytes >= 2 * kHugePage;
    const int flags = MAP_SHARED | (own && !huge ? MAP_POPULATE : 0);
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, file, 0);
    if (memory == MAP_FAILED) return;
    if (huge) madvise(memory, bytes, MADV_HUGEPAGE);  // where the kernel allows them here
    data_ = static_cast<std::byte*>(memory);
    bytes_ = bytes;
  }
  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Mapping() {
    if (data_ != nullptr) munmap(data_, bytes_);
  }
  std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

class File {
 public:
  explicit File(int descriptor) : descriptor_(descriptor) {}
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  int descriptor() const { return descriptor_; }
  // Inode and size, which nothing else of this machine has; empty when it is not open.
  std::string identity() const {
    struct stat facts {};
    if (descriptor_ < 0 || fstat(descriptor_, &facts) != 0) return {};
    return fmt::format("{}:{}:{}", facts.st_dev, facts.st_ino, facts.st_size);
  }

 private:
  int descriptor_;
};

class NodeMemory final : public SharedMemory {
 public:
  NodeMemory(Communicator& comm, std::vector<Mapping> parts, int channels)
      : comm_(comm), channels_(channels), parts_(std::move(parts)) {}

  std::byte* part(int rank) const override {
    std::byte* data = parts_[static_cast<std::size_t>(rank)].data();
    return data == nullptr ? nullptr : data + counter_bytes(channels_);
  }
  void post(int channel, std::uint64_t value) override { raise(counter(comm_.rank(), channel), value); }
  bool reached(int rank, int channel, std::uint64_t value) override {
    if (is_at(counter(rank, channel), value)) return true;
    comm_.progress();
    return false;
  }

 private:
  Counter& counter(int rank, int channel) const {
    return counter_of(parts_[static_cast<std::size_t>(rank)].data(), channel);
  }

  Communicator& comm_;
  const int channels_;
  std::vector<Mapping> parts_;  // [rank]; empty on other nodes
};

// What a rank tells the others about its file.
struct Offer {
  std::string domain, path, identity;
  std::size_t bytes = 0;

  std::string text() const { return fmt::format("{}\n{}\n{}\n{}", domain, path, identity, bytes); }
  static Offer parse(const std::string& text) {
    Offer offer;
    std::istringstream in(text);
    std::getline(in, offer.domain);
    std::getline(in, offer.path);
    std::getline(in, offer.identity);
    in >> offer.bytes;
    return offer;
  }
};

}  // namespace

std::string memory_domain() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  struct stat processes {};
  if (boot.empty() || stat("/proc/self/ns/pid", &processes) != 0) return {};
  return fmt::format("{} {}", boot, processes.st_ino);
}

std::unique_ptr<SharedMemory> make_node_memory(Communicator& comm, std::size_t bytes, int channels) {
  const auto ranks = static_cast<std::size_t>(comm.size());
  const auto me = static_cast<std::size_t>(comm.rank());
  Offer mine{memory_domain(), {}, {}, counter_bytes(channels) + bytes};
  const File file(memfd_create("trainer", MFD_CLOEXEC));
  const bool made = file.descriptor() >= 0 && ftruncate(file.descriptor(), static_cast<off_t>(mine.bytes)) == 0;
  if (made) {
    mine.path = fmt::format("/proc/{}/fd/{}", getpid(), file.descriptor());
    mine.identity = file.identity();
  }
  const std::vector<std::string> offers = comm.gather_strings(mine.text());
  std::vector<Mapping> parts(ranks);
  double failed = made && !mine.domain.empty() ? 0 : 1;
  for (std::size_t r = 0; r < ranks && failed == 0; ++r) {
    const Offer offer = Offer::parse(offers[r]);
    if (offer.domain != mine.domain) continue;
    const File theirs(r == me ? dup(file.descriptor()) : open(offer.path.c_str(), O_RDWR | O_CLOEXEC));
    if (!offer.identity.empty() && theirs.identity() == offer.identity)
      parts[r] = {theirs.descriptor(), offer.bytes, r == me};
    if (parts[r].data() == nullptr) failed = 1;
  }
  comm.max({&failed, 1});  // nobody closes its file before all have opened it
  if (failed > 0) return nullptr;
  return std::make_unique<NodeMemory>(comm, std::move(parts), channels);
}

}  // namespace trainer::comm
