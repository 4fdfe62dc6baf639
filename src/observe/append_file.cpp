// POSIX append with a way back from a full disk.
#include "append_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "trainer/core/error.hpp"

namespace trainer::observe {

AppendFile::AppendFile(std::string path, std::int64_t keep, Observer* warnings)
    : path_(std::move(path)), warnings_(warnings), size_(keep) {
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  struct stat status {};
  const bool opened = descriptor_ >= 0 && ::fstat(descriptor_, &status) == 0;
  if (opened && (!S_ISREG(status.st_mode) || ::ftruncate(descriptor_, keep) == 0)) return;
  const int error = errno;
  if (descriptor_ >= 0) ::close(descriptor_);
  throw Error(ExitCode::Storage, fmt::format("{}: cannot be opened for writing ({}); choose another directory "
                                             "or change its permissions",
                                             path_, std::strerror(error)));
}

AppendFile::~AppendFile() { ::close(descriptor_); }

void AppendFile::append(std::string_view record) {
  if (write_whole(record)) {
    size_ += static_cast<std::int64_t>(record.size());
    return;
  }
  const int error = errno;
  torn_ = true;
  if (::ftruncate(descriptor_, size_) == 0) torn_ = false;
  tell(error);
}

bool AppendFile::write_whole(std::string_view record) {
  if (torn_ && ::ftruncate(descriptor_, size_) != 0) return false;
  torn_ = false;
  while (!record.empty()) {
    const ssize_t written = ::write(descriptor_, record.data(), record.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return false;
    record.remove_prefix(static_cast<std::size_t>(written));
  }
  return true;
}

void AppendFile::tell(int error) {
  if (std::exchange(told_, true)) return;
  const std::string message = fmt::format(
      "{}: cannot be written ({}); the training goes on, and what is not written is lost", path_, std::strerror(error));
  if (warnings_ != nullptr) {
    warnings_->warning(message);
  } else {
    std::fputs(("warning: " + message + "\n").c_str(), stderr);
  }
}

void create_directory(const std::string& directory) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (!error) return;
  throw Error(ExitCode::Storage, fmt::format("{}: the directory cannot be created ({})", directory, error.message()));
}

}  // namespace trainer::observe
