// Writes checkpoints so that a crash at any moment leaves the last whole one readable.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <span>

#include "checkpoint_paths.hpp"
#include "manifest.hpp"
#include "safetensors.hpp"
#include "trainer/core/error.hpp"
#include "trainer/storage/checkpoint.hpp"

namespace trainer::storage {

namespace {

std::string shard_name(int writer) { return fmt::format("shard-{:05d}.safetensors", writer); }

void check_piece(const Piece& piece) {
  const bool same_dims =
      piece.box.start.dims() == piece.global.dims() && piece.box.extent.dims() == piece.global.dims();
  if (!same_dims || intersect(piece.box, whole(piece.global)) != piece.box) {
    internal_error(
        fmt::format("the piece {} of '{}' {} to save", to_string(piece.box), piece.name, to_string(piece.global)));
  }
}

/// Entries of the pieces that have bytes, named "NAME@K" with K counting the boxes of one name in this shard.
std::vector<SafetensorsEntry> entries_of(const std::vector<Piece>& pieces,
                                         std::map<std::string, std::string>& metadata) {
  std::vector<SafetensorsEntry> entries;
  std::map<std::string, int> boxes;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const Piece& piece = pieces[i];
    check_piece(piece);
    if (piece.box.elements() == 0 && piece.global.elements() != 0) continue;
    SafetensorsEntry entry{fmt::format("{}@{}", piece.name, boxes[piece.name]++), piece.type, piece.box.extent, i};
    metadata[entry.name] = fmt::format("{} of {}", to_string(piece.box), to_string(piece.global));
    entries.push_back(std::move(entry));
  }
  layout_safetensors(entries);
  return entries;
}

/// What the ranks say about their shards must make one whole before it is worth a name.
void check_shards(const FileSystem& fs, const std::string& partial, const std::vector<StoredShard>& shards) {
  std::map<std::string, std::vector<const StoredPiece*>> tensors;
  for (const StoredShard& shard : shards) {
    const std::string path = partial + "/" + shard.file;
    const std::uint64_t size = fs.open(path)->size();
    if (size != shard.bytes) {
      throw Error(
          ExitCode::Storage,
          fmt::format("cannot finish the checkpoint: '{}' has {} bytes, {} were written; is '{}' one shared directory "
                      "for all ranks?",
                      path, size, shard.bytes, partial));
    }
    for (const StoredPiece& piece : shard.pieces) tensors[piece.name].push_back(&piece);
  }
  for (const auto& [name, pieces] : tensors) {
    check_disjoint(pieces, partial);
    check_covered(pieces, partial);
  }
}

/// Gives the partial folder its name. A folder that has the name already stays readable until the new one has it.
void replace(FileSystem& fs, const std::string& directory, std::int64_t step) {
  const std::string final = final_path(directory, step);
  const std::string retired = retired_path(directory, step);
  if (fs.exists(final)) {
    fs.remove_all(retired);
    fs.rename(final, retired);
    fs.sync_directory(directory);
  }
  fs.rename(partial_path(directory, step), final);
  fs.sync_directory(directory);
  if (fs.exists(retired)) fs.remove_all(retired);
}

/// Renames before removing, so that a crash halfway leaves nothing that looks like a checkpoint.
void discard(FileSystem& fs, const std::string& directory, const std::string& name) {
  const std::string removed = fmt::format("{}/{}{}", directory, kRemovedPrefix, name);
  fs.remove_all(removed);
  fs.rename(directory + "/" + name, removed);
  fs.sync_directory(directory);
  fs.remove_all(removed);
}

/// A retired folder whose successor did not get the name before a crash is the checkpoint of its step again.
void restore_or_remove(FileSystem& fs, const std::string& directory, const std::string& retired,
                       const std::string& final) {
  if (fs.exists(final + "/" + kManifestName)) {
    fs.remove_all(directory + "/" + retired);
    return;
  }
  if (fs.exists(final)) fs.remove_all(final);
  fs.rename(directory + "/" + retired, final);
  fs.sync_directory(directory);
}

/// Whether the manifest is whole and every shard has its size; what a look at a folder can tell without reading it all.
bool looks_whole(const FileSystem& fs, const std::string& path) {
  try {
    const std::string manifest = path + "/" + kManifestName;
    for (const StoredShard& shard : parse_manifest(fs.read_text(manifest, kLargestManifest), manifest).shards) {
      if (fs.open(path + "/" + shard.file)->size() != shard.bytes) return false;
    }
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

std::string partial_path(const std::string& directory, std::int64_t step) {
  return fmt::format("{}/.partial-{:08d}", directory, step);
}

std::string final_path(const std::string& directory, std::int64_t step) {
  return fmt::format("{}/{}{:08d}", directory, kStepPrefix, step);
}

std::string retired_path(const std::string& directory, std::int64_t step) {
  return fmt::format("{}/{}{:08d}", directory, kRetiredPrefix, step);
}

std::optional<std::int64_t> step_of(const std::string& name, std::string_view prefix) {
  if (name.compare(0, prefix.size(), prefix) != 0) return std::nullopt;
  const std::string digits = name.substr(prefix.size());
  if (digits.size() < 8 || digits.size() > 18) return std::nullopt;
  if (digits.find_first_not_of("0123456789") != std::string::npos) return std::nullopt;
  return std::stoll(digits);
}

std::string write_shard(FileSystem& fs, const std::string& partial, int writer, const std::vector<Piece>& pieces) {
  std::map<std::string, std::string> metadata{{"format", "pt"}};
  const std::vector<SafetensorsEntry> entries = entries_of(pieces, metadata);
  const std::string header = safetensors_header(entries, metadata);

  StoredShard shard;
  shard.file = shard_name(writer);
  shard.header_bytes = header.size();
  shard.header_sum = checksum(header.data(), header.size());
  shard.bytes = header.size() + (entries.empty() ? 0 : entries.back().end);

  const std::unique_ptr<OutputFile> file = fs.create(partial + "/" + shard.file);
  file->write(std::as_bytes(std::span<const char>(header)));
  for (const SafetensorsEntry& entry : entries) {
    const Piece& piece = pieces[entry.source];
    const std::span bytes(static_cast<const std::byte*>(piece.data), entry.end - entry.begin);
    shard.pieces.push_back({piece.name, piece.type, piece.global, piece.box, header.size() + entry.begin,
                            checksum(bytes.data(), bytes.size())});
    file->write(bytes);
  }
  file->sync();
  file->close();
  fs.sync_directory(partial);
  return print_shard(shard);
}

std::string commit(FileSystem& fs, const std::string& directory, const CheckpointRecord& record,
                   const std::vector<std::string>& shards) {
  const std::string partial = partial_path(directory, record.step);
  std::vector<StoredShard> parsed;
  std::set<std::string> files;
  for (const std::string& shard : shards) {
    parsed.push_back(parse_shard(shard, partial));
    if (!files.insert(parsed.back().file).second) internal_error("two writers of " + parsed.back().file);
  }
  check_shards(fs, partial, parsed);
  for (const std::string& name : fs.list(partial)) {
    if (!files.contains(name)) fs.remove_all(partial + "/" + name);  // of a run that did not get this far
  }
  fs.sync_directory(partial);
  fs.write_text(partial + "/" + kManifestName, print_manifest(record, shards));
  fs.sync_directory(partial);
  replace(fs, directory, record.step);
  return final_path(directory, record.step);
}

void clean_up(FileSystem& fs, const std::string& directory, std::int64_t keep) {
  for (const std::string& name : fs.list(directory)) {
    if (const auto step = step_of(name, kRetiredPrefix)) {
      restore_or_remove(fs, directory, name, final_path(directory, *step));
    } else if (step_of(name, kPartialPrefix) || name.compare(0, kRemovedPrefix.size(), kRemovedPrefix) == 0) {
      fs.remove_all(directory + "/" + name);
    }
  }
  // Damaged ones do not count, and go only when enough newer ones are whole.
  std::int64_t kept = 0;
  for (const std::int64_t step : checkpoint_steps(fs, directory)) {
    const std::string path = final_path(directory, step);
    if (kept >= std::max<std::int64_t>(1, keep)) {
      discard(fs, directory, path.substr(directory.size() + 1));
    } else if (looks_whole(fs, path)) {
      ++kept;
    }
  }
}

void remove_checkpoints(FileSystem& fs, const std::string& directory) {
  for (const std::string& name : fs.list(directory)) {
    const bool unfinished = step_of(name, kPartialPrefix) || name.starts_with(kRemovedPrefix);
    if (unfinished || step_of(name, kRetiredPrefix)) fs.remove_all(directory + "/" + name);
  }
  std::vector<std::string> names;
  for (const std::string& name : fs.list(directory)) {
    if (step_of(name, kStepPrefix)) names.push_back(name);  // in ascending order
  }
  for (const std::string& name : names) discard(fs, directory, name);
}

std::vector<std::int64_t> checkpoint_steps(const FileSystem& fs, const std::string& directory) {
  std::vector<std::int64_t> steps;
  for (const std::string& name : fs.list(directory)) {
    const auto step = step_of(name, kStepPrefix);
    if (step && fs.exists(directory + "/" + name + "/" + kManifestName)) steps.push_back(*step);
  }
  std::sort(steps.rbegin(), steps.rend());
  return steps;
}

}  // namespace trainer::storage
