// A file that grows by whole records and whose failures never stop the training.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "trainer/core/observer.hpp"

namespace trainer::observe {

class AppendFile {
 public:
  /// Opens or creates `path`, cut to its first `keep` bytes. Throws Error(Storage).
  AppendFile(std::string path, std::int64_t keep, Observer* warnings);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  /// One write. A record that does not fit is taken back whole; the first failure is told, later ones are silent, and
  /// records that fit again are written again.
  void append(std::string_view record);

 private:
  bool write_whole(std::string_view record);
  void tell(int error);

  std::string path_;
  Observer* warnings_;
  int descriptor_ = -1;
  std::int64_t size_ = 0;  // of whole records
  bool torn_ = false;      // part of a record may lie past size_
  bool told_ = false;
};

/// Creates `directory` and those above it. Throws Error(Storage).
void create_directory(const std::string& directory);

}  // namespace trainer::observe
