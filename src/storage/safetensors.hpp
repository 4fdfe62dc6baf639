// The header of a safetensors file: u64 length, JSON padded with spaces to a multiple of 8, then the tensors back to
// back.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "trainer/core/shape.hpp"
#include "trainer/core/tensor.hpp"

namespace trainer::storage {

struct SafetensorsEntry {
  std::string name;
  DType type = DType::F32;
  Shape shape;
  std::size_t source = 0;   // the caller's index of this tensor
  std::uint64_t begin = 0;  // relative to the end of the header; set by layout_safetensors
  std::uint64_t end = 0;
};

/// Puts entries in the reference order (larger element types first, then name) and gives each its bytes.
void layout_safetensors(std::vector<SafetensorsEntry>& entries);

/// The bytes before the first tensor, for entries that were laid out. Throws Error(Storage) past the format's limit.
std::string safetensors_header(const std::vector<SafetensorsEntry>& entries,
                               const std::map<std::string, std::string>& metadata);

}  // namespace trainer::storage
