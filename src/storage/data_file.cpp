// Reads and unpacks files of data sets.
#include "data_file.hpp"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <span>

#include "trainer/storage/file_system.hpp"

namespace trainer::storage {

namespace {

[[noreturn]] void missing(const std::string& path) {
  const std::filesystem::path whole(path);
  const std::string folder = whole.has_parent_path() ? whole.parent_path().string() : ".";
  std::string hint;
  try {
    const std::string near = nearest_word(whole.filename().string(), real_file_system().list(folder));
    if (!near.empty()) hint = fmt::format("; there is '{}'", (whole.parent_path() / near).string());
  } catch (const Error&) {
    // The folder cannot be read either, so there is nothing to suggest.
  }
  std::error_code ignored;
  throw data_error(path, fmt::format("no such file (working directory '{}'){}",
                                     std::filesystem::current_path(ignored).string(), hint));
}

/// inflate() with the clean-up that it needs.
class Inflater {
 public:
  Inflater() {
    if (inflateInit2(&stream_, 16 + MAX_WBITS) != Z_OK) throw std::bad_alloc();
  }
  ~Inflater() { inflateEnd(&stream_); }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;
  z_stream& stream() { return stream_; }

 private:
  z_stream stream_{};
};

std::vector<std::uint8_t> gunzip(const std::vector<std::uint8_t>& packed, const std::string& path) {
  constexpr std::size_t kLargestCall = std::numeric_limits<uInt>::max() / 2;
  Inflater inflater;
  z_stream& z = inflater.stream();
  std::vector<std::uint8_t> out(std::max<std::size_t>(4096, packed.size() * 4));
  std::size_t used = 0, made = 0;
  while (true) {
    if (made == out.size()) out.resize(out.size() * 2);
    const std::size_t give = std::min(packed.size() - used, kLargestCall);
    const std::size_t room = std::min(out.size() - made, kLargestCall);
    z.next_in = const_cast<Bytef*>(packed.data() + used);
    z.avail_in = static_cast<uInt>(give);
    z.next_out = out.data() + made;
    z.avail_out = static_cast<uInt>(room);
    const int status = inflate(&z, Z_NO_FLUSH);
    used += give - z.avail_in;
    made += room - z.avail_out;
    if (status == Z_STREAM_END) {
      if (used == packed.size()) break;
      if (inflateReset(&z) != Z_OK) throw std::bad_alloc();  // a file may hold several gzip members
      continue;
    }
    if (status == Z_BUF_ERROR || (status == Z_OK && used == packed.size() && z.avail_out != 0)) {
      throw data_error(path, fmt::format("the gzip data ends early, after {} packed bytes; was the download cut off?",
                                         packed.size()));
    }
    if (status != Z_OK) {
      throw data_error(path, fmt::format("the gzip data is damaged near packed byte {}: {}", used,
                                         z.msg == nullptr ? "unknown reason" : z.msg));
    }
  }
  out.resize(made);
  out.shrink_to_fit();
  return out;
}

}  // namespace

Error data_error(const std::string& path, const std::string& what) {
  return Error(ExitCode::Data, fmt::format("data file '{}': {}", path, what));
}

std::vector<std::uint8_t> read_data_file(const std::string& path) {
  std::vector<std::uint8_t> bytes;
  try {
    const FileSystem& fs = real_file_system();
    if (!fs.exists(path)) missing(path);
    const std::unique_ptr<InputFile> file = fs.open(path);
    bytes.resize(file->size());
    file->read(0, std::as_writable_bytes(std::span(bytes)));
  } catch (const Error& error) {
    if (error.code() == ExitCode::Data) throw;
    throw data_error(path, error.what());
  }
  if (bytes.empty()) throw data_error(path, "the file is empty");
  if (bytes.size() >= 2 && bytes[0] == 0x1f && bytes[1] == 0x8b) {
    bytes = gunzip(bytes, path);
    if (bytes.empty()) throw data_error(path, "the file is empty once unpacked");
  }
  return bytes;
}

void check_feature_model(const ModelInput& model, const std::string& path, const std::string& what, bool classes) {
  if (model.tokens) {
    throw data_error(
        path, fmt::format("{} gives numbers, but the model begins with an embedding and takes tokens; use data.type "
                          "'text', or a model without an embedding",
                          what));
  }
  if (classes && !model.classes) {
    throw data_error(
        path, fmt::format("{} gives classes, but the loss is for real targets; use the loss cross_entropy", what));
  }
  if (!classes && model.classes) {
    throw data_error(
        path, fmt::format("{} gives real targets, but the loss is for classes; use a loss for real targets", what));
  }
}

}  // namespace trainer::storage
