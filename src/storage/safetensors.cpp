// Writes safetensors headers as the reference implementation does.
#include "safetensors.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "trainer/core/error.hpp"

namespace trainer::storage {

namespace {

constexpr std::size_t kLargestHeader = 100'000'000;  // what readers of the format accept

// The order of the reference's dtype enumeration, which is what "larger first" means between equal sizes.
int rank_of(DType type) {
  switch (type) {
    case DType::U8:
      return 0;
    case DType::BF16:
      return 1;
    case DType::I32:
      return 2;
    case DType::F32:
      return 3;
    case DType::F64:
      return 4;
    case DType::I64:
      return 5;
  }
  internal_error("an unknown dtype");
}

}  // namespace

void layout_safetensors(std::vector<SafetensorsEntry>& entries) {
  std::sort(entries.begin(), entries.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    if (a.type != b.type) return rank_of(a.type) > rank_of(b.type);
    return a.name < b.name;
  });
  std::uint64_t offset = 0;
  for (SafetensorsEntry& entry : entries) {
    entry.begin = offset;
    offset += static_cast<std::uint64_t>(entry.shape.elements()) * size_of(entry.type);
    entry.end = offset;
  }
}

std::string safetensors_header(const std::vector<SafetensorsEntry>& entries,
                               const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header;
  header["__metadata__"] = metadata;
  for (const SafetensorsEntry& entry : entries) {
    nlohmann::ordered_json shape = nlohmann::ordered_json::array();
    for (int d = 0; d < entry.shape.dims(); ++d) shape.push_back(entry.shape[d]);
    // push_back on the object keeps this linear: ordered_json searches all keys on operator[].
    header.push_back(
        {entry.name, {{"dtype", name_of(entry.type)}, {"shape", shape}, {"data_offsets", {entry.begin, entry.end}}}});
  }
  std::string text = header.dump();
  text.append(align_up(text.size(), 8) - text.size(), ' ');
  if (text.size() > kLargestHeader) {
    throw Error(ExitCode::Storage, fmt::format("a safetensors header of {} bytes for {} tensors: the format allows {}",
                                               text.size(), entries.size(), kLargestHeader));
  }
  std::string bytes(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) {
    bytes[i] = static_cast<char>((static_cast<std::uint64_t>(text.size()) >> (8 * i)) & 0xff);
  }
  return bytes + text;
}

}  // namespace trainer::storage
