// A file system that breaks at a chosen moment: one operation fails, the disk is full, or the machine is gone.
#pragma once

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "trainer/core/error.hpp"
#include "trainer/storage/file_system.hpp"

namespace trainer::test {

/// Counts the operations that change something (create, write, sync, close, rename, ...) from 0 and passes them on.
/// Reading is never counted and always works.
class FaultyFileSystem final : public storage::FileSystem {
 public:
  static constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();

  struct Faults {
    std::int64_t fail_at = kNever;     // this one operation throws Error(Storage) and does nothing
    std::int64_t crash_at = kNever;    // this one and all later ones are silently lost
    std::int64_t disk_bytes = kNever;  // writes past so many bytes in all are cut short and throw
  };

  explicit FaultyFileSystem(storage::FileSystem& inner) : FaultyFileSystem(inner, Faults{}) {}
  FaultyFileSystem(storage::FileSystem& inner, Faults faults)
      : inner_(inner), state_(std::make_shared<State>(faults)) {}

  std::int64_t operations() const { return state_->operations; }

  std::unique_ptr<storage::OutputFile> create(const std::string& path) override {
    if (!state_->passes("create", path)) return std::make_unique<Output>(nullptr, state_, path);
    return std::make_unique<Output>(inner_.create(path), state_, path);
  }
  std::unique_ptr<storage::OutputFile> append(const std::string& path) override {
    if (!state_->passes("append", path)) return std::make_unique<Output>(nullptr, state_, path);
    return std::make_unique<Output>(inner_.append(path), state_, path);
  }
  std::unique_ptr<storage::InputFile> open(const std::string& path) const override { return inner_.open(path); }
  bool exists(const std::string& path) const override { return inner_.exists(path); }
  std::vector<std::string> list(const std::string& directory) const override { return inner_.list(directory); }

  void make_directories(const std::string& path) override {
    if (state_->passes("make_directories", path)) inner_.make_directories(path);
  }
  void rename(const std::string& from, const std::string& to) override {
    if (state_->passes("rename", from)) inner_.rename(from, to);
  }
  /// A crash in the middle of it leaves half of a directory.
  void remove_all(const std::string& path) override {
    if (state_->passes("remove_all", path)) {
      inner_.remove_all(path);
    } else if (state_->operations == state_->faults.crash_at + 1 && inner_.exists(path + "/.")) {
      const std::vector<std::string> names = inner_.list(path);
      for (std::size_t i = 0; i < (names.size() + 1) / 2; ++i) inner_.remove_all(path + "/" + names[i]);
    }
  }
  void truncate(const std::string& path, std::uint64_t size) override {
    if (state_->passes("truncate", path)) inner_.truncate(path, size);
  }
  void sync_directory(const std::string& path) override {
    if (state_->passes("sync_directory", path)) inner_.sync_directory(path);
  }
  std::unique_ptr<storage::DirectoryLock> lock(const std::string& directory) override { return inner_.lock(directory); }

 private:
  struct State {
    explicit State(Faults f) : faults(f) {}

    /// False when the operation is to be lost.
    bool passes(const std::string& operation, const std::string& path) {
      const std::int64_t now = operations++;
      if (now >= faults.crash_at) return false;
      if (now == faults.fail_at) throw Error(ExitCode::Storage, "injected: " + operation + " of '" + path + "' failed");
      return true;
    }

    Faults faults;
    std::atomic<std::int64_t> operations = 0;
    std::atomic<std::int64_t> bytes = 0;
  };

  class Output final : public storage::OutputFile {
   public:
    Output(std::unique_ptr<storage::OutputFile> inner, std::shared_ptr<State> state, std::string path)
        : inner_(std::move(inner)), state_(std::move(state)), path_(std::move(path)) {}

    void write(std::span<const std::byte> bytes) override {
      if (!state_->passes("write", path_) || inner_ == nullptr) return;
      const auto wanted = static_cast<std::int64_t>(bytes.size());
      const std::int64_t room = std::max<std::int64_t>(0, state_->faults.disk_bytes - state_->bytes.fetch_add(wanted));
      inner_->write(bytes.first(static_cast<std::size_t>(std::min(wanted, room))));
      if (room < wanted) throw Error(ExitCode::Storage, "injected: no space left on device for '" + path_ + "'");
    }
    void sync() override {
      if (state_->passes("sync", path_) && inner_ != nullptr) inner_->sync();
    }
    void close() override {
      if (state_->passes("close", path_) && inner_ != nullptr) inner_->close();
    }

   private:
    std::unique_ptr<storage::OutputFile> inner_;
    std::shared_ptr<State> state_;
    std::string path_;
  };

  storage::FileSystem& inner_;
  std::shared_ptr<State> state_;
};

}  // namespace trainer::test
