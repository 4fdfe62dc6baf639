// Reads boxes of tensors from whichever shards hold them, checking every piece against its sum when it is first read.
#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <map>
#include <span>

#include "checkpoint_paths.hpp"
#include "manifest.hpp"
#include "trainer/core/error.hpp"
#include "trainer/storage/checkpoint.hpp"

namespace trainer::storage {

namespace {

constexpr std::size_t kChunk = std::size_t{4} << 20;

[[noreturn]] void fail(const std::string& what) { throw Error(ExitCode::Storage, what); }

/// A piece, its shard, and whether its sum was checked.
struct Part {
  const StoredPiece* piece = nullptr;
  std::size_t shard = 0;
  bool checked = false;
};

class Reader final : public CheckpointReader {
 public:
  Reader(const FileSystem& fs, std::string path);

  const CheckpointRecord& record() const override { return manifest_.record; }
  const std::string& path() const override { return path_; }
  const std::vector<TensorEntry>& tensors() const override { return tensors_; }
  bool has(const std::string& name) const override { return parts_.contains(name); }
  void read(const std::string& name, const Box& box, void* data) const override;
  void verify() const override;

 private:
  std::string shard_path(std::size_t shard) const { return path_ + "/" + manifest_.shards[shard].file; }
  const InputFile& file(std::size_t shard) const;
  std::vector<Part>& parts_of(const std::string& name) const;
  void read_part(Part& part, const Box& overlap, const Box& box, void* data) const;
  std::uint64_t stream_sum(std::size_t shard, std::uint64_t offset, std::uint64_t bytes) const;
  [[noreturn]] void damaged(const Part& part, std::uint64_t sum) const;

  const FileSystem& fs_;
  std::string path_;
  Manifest manifest_;
  std::vector<TensorEntry> tensors_;
  mutable std::map<std::string, std::vector<Part>> parts_;
  mutable std::vector<std::unique_ptr<InputFile>> files_;
};

Reader::Reader(const FileSystem& fs, std::string path) : fs_(fs), path_(std::move(path)) {
  const std::string manifest = path_ + "/" + kManifestName;
  if (!fs.exists(manifest)) {
    fail(fmt::format("'{}' is no whole checkpoint: it has no {}", path_, kManifestName));
  }
  manifest_ = parse_manifest(fs.read_text(manifest, kLargestManifest), manifest);
  files_.resize(manifest_.shards.size());
  for (std::size_t s = 0; s < manifest_.shards.size(); ++s) {
    for (const StoredPiece& piece : manifest_.shards[s].pieces) parts_[piece.name].push_back({&piece, s, false});
  }
  for (const auto& [name, parts] : parts_) {
    std::vector<const StoredPiece*> pieces;
    for (const Part& part : parts) pieces.push_back(part.piece);
    check_disjoint(pieces, manifest);
    tensors_.push_back({name, pieces.front()->type, pieces.front()->global});
  }
}

const InputFile& Reader::file(std::size_t shard) const {
  if (files_[shard] == nullptr) {
    const StoredShard& expected = manifest_.shards[shard];
    const std::string path = shard_path(shard);
    if (!fs_.exists(path)) fail(fmt::format("'{}' is missing, the manifest of the checkpoint lists it", path));
    std::unique_ptr<InputFile> opened = fs_.open(path);
    if (opened->size() != expected.bytes) {
      fail(fmt::format("'{}' has {} bytes, the manifest says {}: it is damaged", path, opened->size(), expected.bytes));
    }
    files_[shard] = std::move(opened);
  }
  return *files_[shard];
}

std::vector<Part>& Reader::parts_of(const std::string& name) const {
  const auto found = parts_.find(name);
  if (found != parts_.end()) return found->second;
  std::vector<std::string> names;
  for (const TensorEntry& entry : tensors_) names.push_back(entry.name);
  const std::string nearest = nearest_word(name, names);
  fail(fmt::format("the checkpoint '{}' has no tensor '{}'{}", path_, name,
                   nearest.empty() ? "" : fmt::format(", the nearest is '{}'", nearest)));
}

void Reader::damaged(const Part& part, std::uint64_t sum) const {
  fail(fmt::format("'{}': the bytes of tensor '{}' (box {}) are damaged: their checksum is {}, the manifest says {}",
                   shard_path(part.shard), part.piece->name, to_string(part.piece->box), hex(sum),
                   hex(part.piece->sum)));
}

void Reader::read(const std::string& name, const Box& box, void* data) const {
  std::vector<Part>& parts = parts_of(name);
  const Shape& global = parts.front().piece->global;
  const bool same_dims = box.start.dims() == global.dims() && box.extent.dims() == global.dims();
  if (!same_dims || intersect(box, whole(global)) != box) {
    fail(fmt::format("the checkpoint '{}' has tensor '{}' of shape {}, which does not contain the box {}", path_, name,
                     to_string(global), to_string(box)));
  }
  std::int64_t found = 0;  // the parts are disjoint, so counting elements finds every hole
  for (Part& part : parts) {
    const Box overlap = intersect(part.piece->box, box);
    if (overlap.elements() == 0) continue;
    read_part(part, overlap, box, data);
    found += overlap.elements();
  }
  if (found != box.elements()) {
    fail(fmt::format("the checkpoint '{}' has {} of the {} elements of tensor '{}', box {}", path_, found,
                     box.elements(), name, to_string(box)));
  }
}

void Reader::read_part(Part& part, const Box& overlap, const Box& box, void* data) const {
  const StoredPiece& piece = *part.piece;
  const InputFile& input = file(part.shard);
  const std::size_t element = size_of(piece.type);
  // The rows of the outermost dim that hold the overlap; all of them when the sum is still to be checked.
  Box slab = piece.box;
  std::uint64_t offset = piece.offset;
  if (part.checked && slab.start.dims() > 0) {
    const std::uint64_t row = piece.bytes() / static_cast<std::uint64_t>(slab.extent[0]);
    offset += static_cast<std::uint64_t>(overlap.start[0] - slab.start[0]) * row;
    slab.start[0] = overlap.start[0];
    slab.extent[0] = overlap.extent[0];
  }
  const std::size_t bytes = static_cast<std::size_t>(slab.elements()) * element;
  const bool direct = slab == box;
  Buffer room(direct ? 0 : bytes);
  std::byte* target = direct ? static_cast<std::byte*>(data) : room.data();
  input.read(offset, {target, bytes});
  if (!part.checked) {
    const std::uint64_t sum = checksum(target, bytes);
    if (sum != piece.sum) damaged(part, sum);
    part.checked = true;
  }
  if (!direct) copy_box(overlap, slab, target, box, data, element);
}

std::uint64_t Reader::stream_sum(std::size_t shard, std::uint64_t offset, std::uint64_t bytes) const {
  const InputFile& input = file(shard);
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(), XXH3_freeState);
  if (state == nullptr) throw std::bad_alloc();
  XXH3_64bits_reset(state.get());
  std::vector<std::byte> chunk(std::min<std::uint64_t>(kChunk, bytes));
  for (std::uint64_t done = 0; done < bytes;) {
    const std::size_t n = static_cast<std::size_t>(std::min<std::uint64_t>(chunk.size(), bytes - done));
    input.read(offset + done, std::span(chunk).first(n));
    XXH3_64bits_update(state.get(), chunk.data(), n);
    done += n;
  }
  return XXH3_64bits_digest(state.get());
}

void Reader::verify() const {
  for (std::size_t s = 0; s < manifest_.shards.size(); ++s) {
    const StoredShard& shard = manifest_.shards[s];
    const std::uint64_t sum = stream_sum(s, 0, shard.header_bytes);
    if (sum != shard.header_sum) {
      fail(fmt::format("'{}': the header is damaged: its checksum is {}, the manifest says {}", shard_path(s), hex(sum),
                       hex(shard.header_sum)));
    }
  }
  for (auto& [name, parts] : parts_) {
    std::vector<const StoredPiece*> pieces;
    for (Part& part : parts) {
      pieces.push_back(part.piece);
      const std::uint64_t sum = stream_sum(part.shard, part.piece->offset, part.piece->bytes());
      if (sum != part.piece->sum) damaged(part, sum);
      part.checked = true;
    }
    check_covered(pieces, path_ + "/" + kManifestName);
  }
}

/// Where the whole checkpoints of a directory may be, newest first: a step's folder, or the one that was making room
/// for it.
std::vector<std::string> candidates(const FileSystem& fs, const std::string& directory) {
  std::map<std::int64_t, std::string, std::greater<>> paths;
  for (const std::string& name : fs.list(directory)) {
    const auto step = step_of(name, kRetiredPrefix);
    if (step && fs.exists(directory + "/" + name + "/" + kManifestName)) paths[*step] = directory + "/" + name;
  }
  for (const std::int64_t step : checkpoint_steps(fs, directory)) paths[step] = final_path(directory, step);
  std::vector<std::string> sorted;
  for (const auto& [step, path] : paths) sorted.push_back(path);
  return sorted;
}

}  // namespace

std::unique_ptr<CheckpointReader> open_checkpoint(const FileSystem& fs, const std::string& path) {
  return std::make_unique<Reader>(fs, path);
}

std::unique_ptr<CheckpointReader> find_checkpoint(const FileSystem& fs, const std::string& path,
                                                  std::vector<std::string>& passed_over) {
  if (!fs.exists(path)) fail(fmt::format("no checkpoint: there is no '{}'", path));
  if (fs.exists(path + "/" + kManifestName)) return open_checkpoint(fs, path);
  std::vector<std::string> damaged;
  for (const std::string& candidate : candidates(fs, path)) {
    try {
      std::unique_ptr<CheckpointReader> reader = open_checkpoint(fs, candidate);
      reader->verify();
      return reader;
    } catch (const Error& error) {
      damaged.push_back(error.what());
      passed_over.push_back(error.what());
    }
  }
  if (damaged.empty()) {
    fail(fmt::format("no checkpoint in '{}': a checkpoint is a folder with a {}, or a directory with step-* folders",
                     path, kManifestName));
  }
  fail(fmt::format("no whole checkpoint in '{}': all {} are damaged, the newest so: {}", path, damaged.size(),
                   damaged.front()));
}

}  // namespace trainer::storage
