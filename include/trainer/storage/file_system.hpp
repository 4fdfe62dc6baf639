// All files outside of MPI go through this interface, so that tests can break the disk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace trainer::storage {

/// A file being written. Nothing is promised until sync() returned. Throws Error(Storage) with path and reason.
class OutputFile {
 public:
  virtual ~OutputFile() = default;
  virtual void write(std::span<const std::byte> bytes) = 0;
  virtual void sync() = 0;  // fsync
  virtual void close() = 0;
};

/// Random access to a file's bytes.
class InputFile {
 public:
  virtual ~InputFile() = default;
  virtual std::uint64_t size() const = 0;
  /// Reads exactly bytes.size() bytes at offset; throws on a short file.
  virtual void read(std::uint64_t offset, std::span<std::byte> bytes) const = 0;
};

/// Held until destruction or the end of the process.
class DirectoryLock {
 public:
  virtual ~DirectoryLock() = default;
};

class FileSystem {
 public:
  virtual ~FileSystem() = default;
  virtual std::unique_ptr<OutputFile> create(const std::string& path) = 0;
  virtual std::unique_ptr<OutputFile> append(const std::string& path) = 0;
  virtual std::unique_ptr<InputFile> open(const std::string& path) const = 0;
  virtual bool exists(const std::string& path) const = 0;
  virtual std::vector<std::string> list(const std::string& directory) const = 0;  // names, sorted; {} if absent
  virtual void make_directories(const std::string& path) = 0;                     // durable on return
  virtual void rename(const std::string& from, const std::string& to) = 0;
  virtual void remove_all(const std::string& path) = 0;  // no error if absent
  virtual void truncate(const std::string& path, std::uint64_t size) = 0;
  virtual void sync_directory(const std::string& path) = 0;
  /// Exclusive over processes, by DIRECTORY/.lock, which stays; makes the directory. nullptr when another process holds
  /// it.
  virtual std::unique_ptr<DirectoryLock> lock(const std::string& directory) = 0;

  std::string read_text(const std::string& path, std::uint64_t limit) const;  // Error(Storage) past the limit
  void write_text(const std::string& path, const std::string& text);          // create, write, sync, close
};

FileSystem& real_file_system();

}  // namespace trainer::storage
