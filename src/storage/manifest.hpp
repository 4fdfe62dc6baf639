// The manifest of a checkpoint as a value, and its JSON text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "trainer/core/shape.hpp"
#include "trainer/core/tensor.hpp"
#include "trainer/storage/checkpoint.hpp"

namespace trainer::storage {

inline constexpr const char* kManifestName = "manifest.json";

/// One box in one shard.
struct StoredPiece {
  std::string name;
  DType type = DType::F32;
  Shape global;
  Box box;
  std::uint64_t offset = 0;  // in the file
  std::uint64_t sum = 0;     // XXH3-64 of its bytes

  std::uint64_t bytes() const { return static_cast<std::uint64_t>(box.elements()) * size_of(type); }
};

struct StoredShard {
  std::string file;  // a plain name
  std::uint64_t bytes = 0;
  std::uint64_t header_bytes = 0;
  std::uint64_t header_sum = 0;
  std::vector<StoredPiece> pieces;  // in the order of their offsets
};

struct Manifest {
  CheckpointRecord record;
  std::vector<StoredShard> shards;
};

/// One shard as JSON, a line a piece.
std::string print_shard(const StoredShard& shard);
/// `where` begins the messages. Throws Error(Storage) for what print_shard cannot have written: sizes that overflow,
/// boxes outside of their tensor, bytes that leave a hole, overlap or end elsewhere than the file.
StoredShard parse_shard(const std::string& text, const std::string& where);

/// `shards` are texts of print_shard. The text ends with a checksum of itself.
std::string print_manifest(const CheckpointRecord& record, const std::vector<std::string>& shards);
/// Checks the checksum first, then everything that parse_shard checks.
Manifest parse_manifest(const std::string& text, const std::string& where);

/// All boxes of one tensor. Throws Error(Storage) when they differ in type or shape, or when two overlap.
void check_disjoint(const std::vector<const StoredPiece*>& pieces, const std::string& where);
/// Throws Error(Storage) when disjoint boxes leave a hole.
void check_covered(const std::vector<const StoredPiece*>& pieces, const std::string& where);

std::string hex(std::uint64_t value);
std::uint64_t checksum(const void* data, std::size_t bytes);
std::string to_string(const Box& box);

}  // namespace trainer::storage
