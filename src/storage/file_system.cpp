// The real file system: POSIX calls, with every return code read and every failure told with path, reason and advice.
#include "trainer/storage/file_system.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

#include "trainer/core/error.hpp"

namespace trainer::storage {

namespace {

// Linux writes at most 2 GiB − 4 KiB in one call; staying well below keeps the arithmetic plain.
constexpr std::size_t kLargestCall = std::size_t{1} << 30;

std::string_view advice(int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return "; free some space there or choose a directory on another disk";
    case EACCES:
    case EPERM:
      return "; check the permissions of the file and of the folders above it, or choose another directory";
    case EROFS:
      return "; choose a directory on a disk that can be written";
    case ENOENT:
      return "; check the spelling of the path";
    case ENOTDIR:
      return "; a part of that path is a file, not a folder: choose another path";
    case EISDIR:
      return "; the path of a file is needed here";
    case EMFILE:
    case ENFILE:
      return "; too many files are open: raise the limit (ulimit -n)";
    case EIO:
      return "; the disk reports a hardware or network error";
    case ENAMETOOLONG:
      return "; choose a shorter path";
    case ENOLCK:
    case EOPNOTSUPP:
      return "; this file system has no locks: choose a directory on another one";
    default:
      return "";
  }
}

[[noreturn]] void fail(std::string_view action, const std::string& path, int error) {
  throw Error(ExitCode::Storage,
              fmt::format("cannot {} '{}': {}{}", action, path, std::generic_category().message(error), advice(error)));
}

/// A file descriptor that closes itself.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_ = -1;
};

Descriptor open_or_fail(std::string_view action, const std::string& path, int flags) {
  int fd = -1;
  do {
    fd = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) fail(action, path, errno);
  return Descriptor(fd);
}

void sync_descriptor(int fd, const std::string& path) {
  while (::fsync(fd) != 0) {
    if (errno != EINTR) fail("sync", path, errno);
  }
}

class PosixOutputFile final : public OutputFile {
 public:
  PosixOutputFile(const std::string& path, int flags)
      : path_(path), file_(open_or_fail("create", path, O_WRONLY | O_CREAT | flags)) {}

  void write(std::span<const std::byte> bytes) override {
    if (file_.get() < 0) internal_error("a write to the closed file " + path_);
    std::size_t done = 0;
    while (done < bytes.size()) {
      const ssize_t n = ::write(file_.get(), bytes.data() + done, std::min(bytes.size() - done, kLargestCall));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail("write", path_, errno);
      if (n == 0) fail("write", path_, ENOSPC);
      done += static_cast<std::size_t>(n);
    }
  }

  void sync() override { sync_descriptor(file_.get(), path_); }

  void close() override {
    const int fd = file_.release();
    // Linux frees the descriptor even when close is interrupted; EIO and ENOSPC are late write errors.
    if (fd >= 0 && ::close(fd) != 0 && errno != EINTR) fail("close", path_, errno);
  }

 private:
  std::string path_;
  Descriptor file_;
};

class PosixInputFile final : public InputFile {
 public:
  explicit PosixInputFile(const std::string& path)
      : path_(path), file_(open_or_fail("open", path, O_RDONLY | O_NONBLOCK)) {
    struct stat status {};
    if (::fstat(file_.get(), &status) != 0) fail("open", path, errno);
    if (S_ISDIR(status.st_mode)) fail("open", path, EISDIR);
    if (!S_ISREG(status.st_mode)) {
      throw Error(ExitCode::Storage, fmt::format("cannot open '{}': not a regular file", path));
    }
    size_ = static_cast<std::uint64_t>(status.st_size);
  }

  std::uint64_t size() const override { return size_; }

  void read(std::uint64_t offset, std::span<std::byte> bytes) const override {
    std::size_t done = 0;
    while (done < bytes.size()) {
      const ssize_t n = ::pread(file_.get(), bytes.data() + done, std::min(bytes.size() - done, kLargestCall),
                                static_cast<off_t>(offset + done));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail("read", path_, errno);
      if (n == 0) {
        throw Error(ExitCode::Storage,
                    fmt::format("cannot read '{}': it ends after {} bytes, {} bytes at {} were expected", path_,
                                offset + done, bytes.size(), offset));
      }
      done += static_cast<std::size_t>(n);
    }
  }

 private:
  std::string path_;
  Descriptor file_;
  std::uint64_t size_ = 0;
};

class PosixLock final : public DirectoryLock {
 public:
  explicit PosixLock(Descriptor file) : file_(std::move(file)) {}

 private:
  Descriptor file_;
};

bool is_directory(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

std::string parent_of(const std::string& path) {
  const std::string parent = std::filesystem::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

class PosixFileSystem final : public FileSystem {
 public:
  std::unique_ptr<OutputFile> create(const std::string& path) override {
    return std::make_unique<PosixOutputFile>(path, O_TRUNC);
  }
  std::unique_ptr<OutputFile> append(const std::string& path) override {
    return std::make_unique<PosixOutputFile>(path, O_APPEND);
  }
  std::unique_ptr<InputFile> open(const std::string& path) const override {
    return std::make_unique<PosixInputFile>(path);
  }

  bool exists(const std::string& path) const override {
    struct stat status {};
    if (::stat(path.c_str(), &status) == 0) return true;
    if (errno == ENOENT || errno == ENOTDIR) return false;
    fail("look at", path, errno);
  }

  std::vector<std::string> list(const std::string& directory) const override {
    const std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir(directory.c_str()), ::closedir);
    if (folder == nullptr) {
      if (errno == ENOENT) return {};
      fail("list", directory, errno);
    }
    std::vector<std::string> names;
    errno = 0;
    while (const dirent* entry = ::readdir(folder.get())) {
      const std::string name = entry->d_name;
      if (name != "." && name != "..") names.push_back(name);
    }
    if (errno != 0) fail("list", directory, errno);
    std::sort(names.begin(), names.end());
    return names;
  }

  void make_directories(const std::string& path) override { make_directories(path, path); }

  void make_directories(const std::string& path, const std::string& wanted) {
    if (path.empty() || is_directory(path)) return;
    const std::string parent = parent_of(path);
    if (parent != path) make_directories(parent, wanted);
    if (::mkdir(path.c_str(), 0777) != 0) {
      const int error = errno;
      if (error == EEXIST && is_directory(path)) return;  // another rank was faster
      const std::string action = path == wanted ? "make the folder" : fmt::format("make '{}' for the folder", path);
      fail(action, wanted, error == EEXIST ? ENOTDIR : error);
    }
    sync_directory(parent);
  }

  void rename(const std::string& from, const std::string& to) override {
    if (::rename(from.c_str(), to.c_str()) != 0) fail(fmt::format("rename '{}' to", from), to, errno);
  }

  void remove_all(const std::string& path) override {
    std::error_code error;
    std::filesystem::remove_all(path, error);
    if (error) fail("remove", path, error.value());
  }

  void truncate(const std::string& path, std::uint64_t size) override {
    while (::truncate(path.c_str(), static_cast<off_t>(size)) != 0) {
      if (errno != EINTR) fail("truncate", path, errno);
    }
  }

  void sync_directory(const std::string& path) override {
    const Descriptor folder = open_or_fail("open the folder", path, O_RDONLY | O_DIRECTORY);
    while (::fsync(folder.get()) != 0) {
      if (errno == EINTR) continue;
      // Some network file systems cannot sync a folder; there, an entry is as durable as it will get.
      if (errno == EINVAL || errno == ENOTSUP) return;
      fail("sync the folder", path, errno);
    }
  }

  std::unique_ptr<DirectoryLock> lock(const std::string& directory) override {
    make_directories(directory);
    const std::string path = directory + "/.lock";
    Descriptor file = open_or_fail("open the lock", path, O_RDWR | O_CREAT);
    while (::flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno == EWOULDBLOCK) return nullptr;
      if (errno != EINTR) fail("lock", path, errno);
    }
    return std::make_unique<PosixLock>(std::move(file));
  }
};

}  // namespace

std::string FileSystem::read_text(const std::string& path, std::uint64_t limit) const {
  const std::unique_ptr<InputFile> file = open(path);
  if (file->size() > limit) {
    throw Error(ExitCode::Storage,
                fmt::format("cannot read '{}': it has {} bytes, at most {} are expected", path, file->size(), limit));
  }
  std::string text(file->size(), '\0');
  file->read(0, std::as_writable_bytes(std::span<char>(text)));
  return text;
}

void FileSystem::write_text(const std::string& path, const std::string& text) {
  const std::unique_ptr<OutputFile> file = create(path);
  file->write(std::as_bytes(std::span<const char>(text)));
  file->sync();
  file->close();
}

FileSystem& real_file_system() {
  static PosixFileSystem system;
  return system;
}

}  // namespace trainer::storage
