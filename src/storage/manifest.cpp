// Prints and parses manifests. Nothing that comes from the file is believed before it was checked.
#include "manifest.hpp"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "trainer/core/error.hpp"

namespace trainer::storage {

namespace {

using nlohmann::json;

constexpr int kDeepest = 64;
constexpr std::int64_t kVersion = 1;
constexpr std::int64_t kLargest = std::numeric_limits<std::int64_t>::max();

[[noreturn]] void fail(const std::string& where, const std::string& what) {
  throw Error(ExitCode::Storage, where + ": " + what);
}

json parse_json(const std::string& text, const std::string& where) {
  std::vector<std::set<std::string>> keys;
  const auto watch = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > kDeepest) fail(where, fmt::format("JSON nested deeper than {}", kDeepest));
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second) {
      fail(where, "the key " + value.dump() + " appears twice");
    }
    return true;
  };
  try {
    return json::parse(text, watch);
  } catch (const json::exception& e) {
    fail(where, std::string("not readable as JSON: ") + e.what());
  }
}

const json& member(const json& object, const char* key, const std::string& where) {
  if (!object.is_object() || !object.contains(key)) fail(where, fmt::format("'{}' is missing", key));
  return object.at(key);
}

std::string string_of(const json& object, const char* key, const std::string& where) {
  const json& value = member(object, key, where);
  if (!value.is_string()) fail(where, fmt::format("'{}' is {}, a string was expected", key, value.type_name()));
  return value.get<std::string>();
}

std::int64_t natural(const json& value, const char* key, const std::string& where) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > static_cast<std::uint64_t>(kLargest)) {
    fail(where, fmt::format("'{}' is not an integer from 0 to 2^63 - 1", key));
  }
  return value.get<std::int64_t>();
}

std::uint64_t size_of_member(const json& object, const char* key, const std::string& where) {
  return static_cast<std::uint64_t>(natural(member(object, key, where), key, where));
}

std::uint64_t sum_of(const json& object, const char* key, const std::string& where) {
  const std::string text = string_of(object, key, where);
  if (text.size() != 16 || text.find_first_not_of("0123456789abcdef") != std::string::npos) {
    fail(where, fmt::format("'{}' is '{}', 16 hexadecimal digits were expected", key, text));
  }
  return std::stoull(text, nullptr, 16);
}

/// Extents whose product times 8 bytes fits 63 bits.
Shape shape_of(const json& object, const char* key, const std::string& where) {
  const json& value = member(object, key, where);
  if (!value.is_array() || value.size() > static_cast<std::size_t>(Shape::kMaxDims)) {
    fail(where, fmt::format("'{}' is not a list of at most {} sizes", key, Shape::kMaxDims));
  }
  Shape shape;
  std::int64_t product = 8;
  for (const json& extent : value) {
    const std::int64_t n = natural(extent, key, where);
    shape.push_back(n);
    if (n != 0 && __builtin_mul_overflow(product, n, &product)) {
      fail(where, fmt::format("'{}' is {} and overflows", key, value.dump()));
    }
  }
  return shape;
}

DType type_of(const json& object, const std::string& where) {
  const std::string name = string_of(object, "dtype", where);
  for (const DType type : {DType::F32, DType::BF16, DType::F64, DType::I32, DType::I64, DType::U8}) {
    if (name == name_of(type)) return type;
  }
  fail(where, fmt::format("unknown dtype '{}'", name));
}

void check_inside(const Box& box, const Shape& global, const std::string& where) {
  bool inside = box.start.dims() == global.dims() && box.extent.dims() == global.dims();
  for (int d = 0; inside && d < global.dims(); ++d) {
    inside = box.start[d] <= global[d] && box.extent[d] <= global[d] - box.start[d];
  }
  if (!inside) fail(where, fmt::format("the box {} is not inside of the tensor {}", to_string(box), to_string(global)));
}

StoredPiece piece_of(const json& line, const std::string& shard) {
  StoredPiece piece;
  piece.name = string_of(line, "name", shard);
  const std::string where = fmt::format("{}: tensor '{}'", shard, piece.name);
  piece.type = type_of(line, where);
  piece.global = shape_of(line, "shape", where);
  piece.box = {shape_of(line, "start", where), shape_of(line, "extent", where)};
  check_inside(piece.box, piece.global, where);
  piece.offset = size_of_member(line, "offset", where);
  piece.sum = sum_of(line, "xxh3", where);
  return piece;
}

StoredShard shard_of(const json& value, const std::string& where) {
  StoredShard shard;
  shard.file = string_of(value, "file", where);
  if (shard.file.empty() || shard.file.front() == '.' || shard.file.find('/') != std::string::npos) {
    fail(where, fmt::format("the shard '{}' is not a plain file name", shard.file));
  }
  const std::string here = fmt::format("{}: shard '{}'", where, shard.file);
  shard.bytes = size_of_member(value, "bytes", here);
  shard.header_bytes = size_of_member(value, "header_bytes", here);
  shard.header_sum = sum_of(value, "header_xxh3", here);
  const json& pieces = member(value, "pieces", here);
  if (!pieces.is_array()) fail(here, "'pieces' is not a list");
  std::uint64_t end = shard.header_bytes;
  for (const json& line : pieces) {
    StoredPiece piece = piece_of(line, here);
    if (piece.offset != end) {
      fail(here,
           fmt::format("the bytes of '{}' begin at {}, those before them end at {}", piece.name, piece.offset, end));
    }
    if (piece.bytes() > shard.bytes || end > shard.bytes - piece.bytes()) {
      fail(here, fmt::format("the bytes of '{}' end past the file's {} bytes", piece.name, shard.bytes));
    }
    end += piece.bytes();
    shard.pieces.push_back(std::move(piece));
  }
  if (end != shard.bytes) fail(here, fmt::format("the tensors end at byte {}, the file at {}", end, shard.bytes));
  return shard;
}

json list_of(const Shape& shape) {
  json list = json::array();
  for (int d = 0; d < shape.dims(); ++d) list.push_back(shape[d]);
  return list;
}

std::string quoted(const std::string& text) { return json(text).dump(); }

// The last line, of a fixed length: the sum of all bytes before it.
std::string seal(std::string_view body) {
  return fmt::format(",\n\"manifest_xxh3\": \"{}\"}}\n", hex(checksum(body.data(), body.size())));
}

}  // namespace

std::string hex(std::uint64_t value) { return fmt::format("{:016x}", value); }

std::uint64_t checksum(const void* data, std::size_t bytes) {
  return bytes == 0 ? XXH3_64bits("", 0) : XXH3_64bits(data, bytes);
}

std::string to_string(const Box& box) { return to_string(box.extent) + " at " + to_string(box.start); }

std::string print_shard(const StoredShard& shard) {
  std::string text =
      fmt::format("{{\"file\": {}, \"bytes\": {}, \"header_bytes\": {}, \"header_xxh3\": \"{}\", \"pieces\": [",
                  quoted(shard.file), shard.bytes, shard.header_bytes, hex(shard.header_sum));
  const char* separator = "\n";
  for (const StoredPiece& piece : shard.pieces) {
    text += fmt::format(
        "{} {{\"name\": {}, \"dtype\": \"{}\", \"shape\": {}, \"start\": {}, \"extent\": {}, \"offset\": {}, \"xxh3\": "
        "\"{}\"}}",
        separator, quoted(piece.name), name_of(piece.type), list_of(piece.global).dump(),
        list_of(piece.box.start).dump(), list_of(piece.box.extent).dump(), piece.offset, hex(piece.sum));
    separator = ",\n";
  }
  return text + "]}";
}

StoredShard parse_shard(const std::string& text, const std::string& where) {
  return shard_of(parse_json(text, where), where);
}

std::string print_manifest(const CheckpointRecord& record, const std::vector<std::string>& shards) {
  std::string text = fmt::format(
      "{{\"format\": \"trainer-checkpoint\",\n\"version\": {},\n\"step\": {},\n\"build\": {},\n\"config\": {},\n"
      "\"vocabulary\": {},\n\"shards\": [",
      kVersion, record.step, quoted(record.build), quoted(record.config), quoted(record.vocabulary));
  const char* separator = "\n";
  for (const std::string& shard : shards) {
    text += separator + shard;
    separator = ",\n";
  }
  text += "]";
  return text + seal(text);
}

Manifest parse_manifest(const std::string& text, const std::string& where) {
  const std::size_t tail = seal("").size();
  if (text.size() < tail)
    fail(where, fmt::format("it ends after {} bytes, so it is not a whole manifest", text.size()));
  const std::string_view body = std::string_view(text).substr(0, text.size() - tail);
  if (seal(body) != std::string_view(text).substr(body.size())) {
    fail(where, "its checksum does not fit its bytes, so it is damaged or was edited");
  }
  const json root = parse_json(text, where);
  if (string_of(root, "format", where) != "trainer-checkpoint") fail(where, "this is not a checkpoint's manifest");
  const std::int64_t version = natural(member(root, "version", where), "version", where);
  if (version != kVersion) {
    fail(where, fmt::format("version {} of the format, this program reads version {}", version, kVersion));
  }
  Manifest manifest;
  manifest.record.step = natural(member(root, "step", where), "step", where);
  manifest.record.build = string_of(root, "build", where);
  manifest.record.config = string_of(root, "config", where);
  manifest.record.vocabulary = string_of(root, "vocabulary", where);
  const json& shards = member(root, "shards", where);
  if (!shards.is_array()) fail(where, "'shards' is not a list");
  std::set<std::string> files;
  for (const json& shard : shards) {
    manifest.shards.push_back(shard_of(shard, where));
    if (!files.insert(manifest.shards.back().file).second) {
      fail(where, fmt::format("the shard '{}' appears twice", manifest.shards.back().file));
    }
  }
  return manifest;
}

void check_disjoint(const std::vector<const StoredPiece*>& pieces, const std::string& where) {
  std::vector<const StoredPiece*> sorted;
  for (const StoredPiece* piece : pieces) {
    const StoredPiece& first = *pieces.front();
    if (piece->type != first.type || piece->global != first.global) {
      fail(where,
           fmt::format("tensor '{}' is {} {} in one place and {} {} in another", piece->name, name_of(first.type),
                       to_string(first.global), name_of(piece->type), to_string(piece->global)));
    }
    if (piece->box.elements() > 0) sorted.push_back(piece);
  }
  if (sorted.size() < 2) return;
  if (sorted.front()->global.dims() == 0) fail(where, fmt::format("tensor '{}' is there twice", sorted.front()->name));
  // Only boxes whose ranges in the outermost dim meet can overlap.
  std::sort(sorted.begin(), sorted.end(),
            [](const StoredPiece* a, const StoredPiece* b) { return a->box.start[0] < b->box.start[0]; });
  for (std::size_t i = 0; i < sorted.size(); ++i) {
    const Box& a = sorted[i]->box;
    for (std::size_t j = i + 1; j < sorted.size() && sorted[j]->box.start[0] < a.start[0] + a.extent[0]; ++j) {
      if (intersect(a, sorted[j]->box).elements() == 0) continue;
      fail(where, fmt::format("tensor '{}': the boxes {} and {} overlap", sorted[i]->name, to_string(a),
                              to_string(sorted[j]->box)));
    }
  }
}

void check_covered(const std::vector<const StoredPiece*>& pieces, const std::string& where) {
  std::int64_t covered = 0;
  for (const StoredPiece* piece : pieces) covered += piece->box.elements();
  const Shape& global = pieces.front()->global;
  if (covered != global.elements()) {
    fail(where, fmt::format("tensor '{}': {} of the {} elements of {} are there", pieces.front()->name, covered,
                            global.elements(), to_string(global)));
  }
}

}  // namespace trainer::storage
