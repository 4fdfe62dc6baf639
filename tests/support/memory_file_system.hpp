// A file system in memory that knows what a crash may take: file contents that were not synced, and directory entries
// whose directory was not synced. For one process; thread-safe.
#pragma once

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "trainer/core/error.hpp"
#include "trainer/storage/file_system.hpp"

namespace trainer::test {

class MemoryFileSystem final : public storage::FileSystem {
 public:
  /// What is left after a power cut now: of every directory its state after some operation since its last sync (a
  /// journal keeps the order within one), of every file its synced bytes, its newest bytes, or the newest up to some
  /// length.
  void lose_unsynced(std::uint64_t seed) {
    const std::lock_guard guard(mutex_);
    std::mt19937_64 random(seed);
    crash(*root_, random);
  }

  std::unique_ptr<storage::OutputFile> create(const std::string& path) override { return open_output(path, true); }
  std::unique_ptr<storage::OutputFile> append(const std::string& path) override { return open_output(path, false); }

  std::unique_ptr<storage::InputFile> open(const std::string& path) const override {
    const std::lock_guard guard(mutex_);
    const auto node = find(path);
    if (node == nullptr || node->directory) fail("no file", path);
    return std::make_unique<Input>(mutex_, node, path);
  }

  bool exists(const std::string& path) const override {
    const std::lock_guard guard(mutex_);
    return find(path) != nullptr;
  }

  std::vector<std::string> list(const std::string& directory) const override {
    const std::lock_guard guard(mutex_);
    const auto node = find(directory);
    if (node == nullptr) return {};
    if (!node->directory) fail("no directory", directory);
    std::vector<std::string> names;
    for (const auto& [name, child] : node->entries()) names.push_back(name);
    return names;
  }

  // Durable at once, as the real one is.
  void make_directories(const std::string& path) override {
    const std::lock_guard guard(mutex_);
    std::shared_ptr<Node> node = root_;
    for (const std::string& part : parts(path)) {
      if (!node->directory) fail("no directory", path);
      if (!node->entries().contains(part)) {
        Entries changed = node->entries();
        changed[part] = std::make_shared<Node>(true);
        node->history = {changed};
      }
      node = node->entries().at(part);
    }
    if (!node->directory) fail("no directory", path);
  }

  void rename(const std::string& from, const std::string& to) override {
    const std::lock_guard guard(mutex_);
    const auto [from_parent, from_name] = parent(from);
    const auto [to_parent, to_name] = parent(to);
    if (from_parent != to_parent) fail("renames between directories are not modelled", from);
    Entries changed = from_parent->entries();
    if (!changed.contains(from_name)) fail("no file", from);
    const auto target = changed.find(to_name);
    if (target != changed.end() && target->second->directory && !target->second->entries().empty())
      fail("not empty", to);
    changed[to_name] = changed.at(from_name);
    changed.erase(from_name);
    from_parent->history.push_back(changed);
  }

  void remove_all(const std::string& path) override {
    const std::lock_guard guard(mutex_);
    const auto node = find(path);
    if (node == nullptr) return;
    empty(*node);
    const auto [folder, name] = parent(path);
    Entries changed = folder->entries();
    changed.erase(name);
    folder->history.push_back(changed);
  }

  void truncate(const std::string& path, std::uint64_t size) override {
    const std::lock_guard guard(mutex_);
    const auto node = find(path);
    if (node == nullptr || node->directory) fail("no file", path);
    node->bytes.resize(size);
  }

  void sync_directory(const std::string& path) override {
    const std::lock_guard guard(mutex_);
    const auto node = find(path);
    if (node == nullptr || !node->directory) fail("no directory", path);
    node->history = {node->entries()};
  }

  std::unique_ptr<storage::DirectoryLock> lock(const std::string& directory) override {
    const std::lock_guard guard(mutex_);
    if (!locked_->insert(directory).second) return nullptr;
    return std::make_unique<Lock>(locked_, directory);
  }

 private:
  struct Node;
  using Entries = std::map<std::string, std::shared_ptr<Node>>;
  struct Node {
    explicit Node(bool is_directory) : directory(is_directory) {}
    const Entries& entries() const { return history.back(); }

    bool directory;
    std::vector<std::byte> bytes, synced;  // of a file
    std::vector<Entries> history{{}};      // of a directory: synced state first, newest last
  };

  class Output final : public storage::OutputFile {
   public:
    Output(std::mutex& mutex, std::shared_ptr<Node> node) : mutex_(mutex), node_(std::move(node)) {}
    void write(std::span<const std::byte> bytes) override {
      const std::lock_guard guard(mutex_);
      node_->bytes.insert(node_->bytes.end(), bytes.begin(), bytes.end());
    }
    void sync() override {
      const std::lock_guard guard(mutex_);
      node_->synced = node_->bytes;
    }
    void close() override {}

   private:
    std::mutex& mutex_;
    std::shared_ptr<Node> node_;
  };

  class Input final : public storage::InputFile {
   public:
    Input(std::mutex& mutex, std::shared_ptr<Node> node, std::string path)
        : mutex_(mutex), node_(std::move(node)), path_(std::move(path)) {}
    std::uint64_t size() const override { return node_->bytes.size(); }
    void read(std::uint64_t offset, std::span<std::byte> bytes) const override {
      const std::lock_guard guard(mutex_);
      if (offset > node_->bytes.size() || bytes.size() > node_->bytes.size() - offset) fail("short file", path_);
      std::copy_n(node_->bytes.begin() + static_cast<std::ptrdiff_t>(offset), bytes.size(), bytes.begin());
    }

   private:
    std::mutex& mutex_;
    std::shared_ptr<Node> node_;
    std::string path_;
  };

  class Lock final : public storage::DirectoryLock {
   public:
    Lock(std::shared_ptr<std::set<std::string>> locked, std::string directory)
        : locked_(std::move(locked)), directory_(std::move(directory)) {}
    ~Lock() override { locked_->erase(directory_); }

   private:
    std::shared_ptr<std::set<std::string>> locked_;
    std::string directory_;
  };

  [[noreturn]] static void fail(const std::string& what, const std::string& path) {
    throw Error(ExitCode::Storage, what + ": '" + path + "'");
  }

  static std::vector<std::string> parts(const std::string& path) {
    std::vector<std::string> found(1);
    for (const char c : path) {
      if (c == '/') {
        found.emplace_back();
      } else {
        found.back() += c;
      }
    }
    std::erase_if(found, [](const std::string& part) { return part.empty() || part == "."; });
    return found;
  }

  std::shared_ptr<Node> walk(const std::vector<std::string>& names) const {
    std::shared_ptr<Node> node = root_;
    for (const std::string& name : names) {
      if (!node->directory || !node->entries().contains(name)) return nullptr;
      node = node->entries().at(name);
    }
    return node;
  }
  /// "a/." is a only when a is a directory.
  std::shared_ptr<Node> find(const std::string& path) const {
    const auto node = walk(parts(path));
    return node != nullptr && !node->directory && path.ends_with("/.") ? nullptr : node;
  }

  std::pair<std::shared_ptr<Node>, std::string> parent(const std::string& path) const {
    std::vector<std::string> names = parts(path);
    if (names.empty()) fail("no name", path);
    const std::string name = names.back();
    names.pop_back();
    const auto folder = walk(names);
    if (folder == nullptr || !folder->directory) fail("no directory", path);
    return {folder, name};
  }

  std::unique_ptr<storage::OutputFile> open_output(const std::string& path, bool truncate) {
    const std::lock_guard guard(mutex_);
    const auto [folder, name] = parent(path);
    if (!folder->entries().contains(name)) {
      Entries changed = folder->entries();
      changed[name] = std::make_shared<Node>(false);
      folder->history.push_back(changed);
    }
    const auto node = folder->entries().at(name);
    if (node->directory) fail("a directory", path);
    if (truncate) node->bytes.clear();
    return std::make_unique<Output>(mutex_, node);
  }

  static void empty(Node& node) {
    if (!node.directory) return;
    for (const auto& [name, child] : Entries(node.entries())) {
      empty(*child);
      Entries changed = node.entries();
      changed.erase(name);
      node.history.push_back(changed);
    }
  }

  static void crash(Node& node, std::mt19937_64& random) {
    if (node.directory) {
      node.history = {Entries(node.history[random() % node.history.size()])};
      for (const auto& [name, child] : node.entries()) crash(*child, random);
      return;
    }
    const std::uint64_t choice = random() % 3;
    if (choice == 0) node.bytes = node.synced;
    if (choice == 1 && node.bytes != node.synced) node.bytes.resize(random() % (node.bytes.size() + 1));
    node.synced = node.bytes;
  }

  mutable std::mutex mutex_;
  std::shared_ptr<Node> root_ = std::make_shared<Node>(true);
  std::shared_ptr<std::set<std::string>> locked_ = std::make_shared<std::set<std::string>>();
};

}  // namespace trainer::test
