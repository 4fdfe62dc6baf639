// Checkpoints: boxes of named global tensors in safetensors shards, and a manifest that makes them one whole.
//
//   runs/gpt/step-00000050/manifest.json            written last, before the folder gets its name
//                          shard-00000.safetensors  one a writing rank; keys "NAME@K", K numbers the box
//   runs/gpt/.partial-00000050/                     while it is being written; removed by the next run
//   runs/gpt/.retired-00000050/                     whole, while another of the same step takes its name
//
// These functions are local to a rank; the runtime agrees on success between them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "trainer/core/shape.hpp"
#include "trainer/core/tensor.hpp"
#include "trainer/storage/file_system.hpp"

namespace trainer::storage {

/// One box of a global tensor, in this rank's memory, row-major and contiguous.
struct Piece {
  std::string name;  // "h.0.ln_1.weight", "optimizer.exp_avg.h.0.ln_1.weight"
  DType type = DType::F32;
  Shape global;
  Box box;
  const void* data = nullptr;
};

/// What the manifest says beside the tensors.
struct CheckpointRecord {
  std::int64_t step = 0;
  std::string config;      // config::to_json of the run
  std::string vocabulary;  // of the tokenizer
  std::string build;       // version, kernels, libraries: for people
};

/// Writes this rank's shard into the partial folder (which exists), synced. Returns the shard's lines for the manifest,
/// a JSON text to hand to commit(). Throws Error(Storage).
std::string write_shard(FileSystem& fs, const std::string& partial, int writer, const std::vector<Piece>& pieces);

/// On one rank, after all shards are there: manifest, syncs, rename to its final name. Returns the final path. A crash
/// at any moment leaves a whole checkpoint whole, also one of the same step that is being replaced. Throws
/// Error(Storage), and leaves what was there, when the boxes do not cover every tensor exactly once.
std::string commit(FileSystem& fs, const std::string& directory, const CheckpointRecord& record,
                   const std::vector<std::string>& shards);

std::string partial_path(const std::string& directory, std::int64_t step);
std::string final_path(const std::string& directory, std::int64_t step);

/// Removes partial folders and all but the newest `keep` whole checkpoints. Damaged ones (by manifest and sizes) do not
/// count, and stay while they are newer than the last that is kept. For the holder of the directory's lock.
void clean_up(FileSystem& fs, const std::string& directory, std::int64_t keep);

/// Removes all checkpoints, whole or not, the newest last.
void remove_checkpoints(FileSystem& fs, const std::string& directory);

/// Steps of checkpoints that have a manifest, newest first. Whether their bytes are whole only reading tells.
std::vector<std::int64_t> checkpoint_steps(const FileSystem& fs, const std::string& directory);

struct TensorEntry {
  std::string name;
  DType type = DType::F32;
  Shape shape;
};

/// An opened checkpoint. Opening reads the manifest only; every box is checked against its sum when it is first read.
/// Throws Error(Storage) naming file and tensor. For one thread at a time; the file system must outlive it.
class CheckpointReader {
 public:
  virtual ~CheckpointReader() = default;
  virtual const CheckpointRecord& record() const = 0;
  virtual const std::string& path() const = 0;
  virtual const std::vector<TensorEntry>& tensors() const = 0;  // sorted by name
  virtual bool has(const std::string& name) const = 0;
  /// Reads `box` of the global tensor `name` into `data` (contiguous), from whichever shards hold it. The element type
  /// must be the stored one. Throws when boxes leave a hole.
  virtual void read(const std::string& name, const Box& box, void* data) const = 0;
  /// Reads every byte and checks every sum and that boxes cover every tensor exactly once.
  virtual void verify() const = 0;
};
std::unique_ptr<CheckpointReader> open_checkpoint(const FileSystem& fs, const std::string& path);

/// `path` is one checkpoint or the directory that holds them (then the newest that passes verify(); why newer ones did
/// not is appended to `passed_over`). Reads all bytes of a directory's newest: let one rank find, and the others open
/// what it found. Throws Error(Storage) when there is none.
std::unique_ptr<CheckpointReader> find_checkpoint(const FileSystem& fs, const std::string& path,
                                                  std::vector<std::string>& passed_over);

}  // namespace trainer::storage
