// Whole tensors with known values, cut into boxes and saved.
#pragma once

#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "trainer/storage/checkpoint.hpp"

namespace trainer::test {

using storage::CheckpointReader;
using storage::CheckpointRecord;
using storage::Piece;

struct GlobalTensor {
  DType type = DType::F32;
  Shape shape;
  std::vector<unsigned char> bytes;
};
using Tensors = std::map<std::string, GlobalTensor>;

inline GlobalTensor random_tensor(DType type, const Shape& shape, std::mt19937_64& random) {
  GlobalTensor tensor{type, shape, {}};
  tensor.bytes.resize(static_cast<std::size_t>(shape.elements()) * size_of(type));
  for (unsigned char& byte : tensor.bytes) byte = static_cast<unsigned char>(random());
  return tensor;
}

/// Disjoint boxes that cover the shape: one that is cut at random places again and again.
inline std::vector<Box> random_cut(const Shape& shape, int cuts, std::mt19937_64& random) {
  std::vector<Box> boxes{whole(shape)};
  for (int c = 0; c < cuts && shape.dims() > 0; ++c) {
    Box& box = boxes[random() % boxes.size()];
    const int dim = static_cast<int>(random() % static_cast<std::uint64_t>(shape.dims()));
    if (box.extent[dim] < 2) continue;
    const auto first = static_cast<std::int64_t>(1 + random() % static_cast<std::uint64_t>(box.extent[dim] - 1));
    Box second = box;
    second.start[dim] += first;
    second.extent[dim] -= first;
    box.extent[dim] = first;
    boxes.push_back(second);
  }
  return boxes;
}

inline std::vector<unsigned char> bytes_of(const GlobalTensor& tensor, const Box& box) {
  std::vector<unsigned char> bytes(static_cast<std::size_t>(box.elements()) * size_of(tensor.type));
  copy_box(box, whole(tensor.shape), tensor.bytes.data(), box, bytes.data(), size_of(tensor.type));
  return bytes;
}

inline CheckpointRecord record_of(std::int64_t step, const std::string& config = R"({"model": {"type": "mlp"}})") {
  return {step, config, "ab\xC3\xA9", "test build"};
}

/// Cuts every tensor into random boxes, deals them to `writers` shards, and commits.
inline std::string save(storage::FileSystem& fs, const std::string& directory, std::int64_t step,
                        const Tensors& tensors, int writers, std::uint64_t seed,
                        const std::string& config = record_of(0).config) {
  std::mt19937_64 random(seed);
  std::vector<std::vector<Piece>> pieces(static_cast<std::size_t>(writers));
  std::vector<std::vector<unsigned char>> memory;
  for (const auto& [name, tensor] : tensors) {
    for (const Box& box : random_cut(tensor.shape, 5, random)) {
      memory.push_back(bytes_of(tensor, box));
      pieces[random() % pieces.size()].push_back({name, tensor.type, tensor.shape, box, memory.back().data()});
    }
  }
  const std::string partial = storage::partial_path(directory, step);
  fs.make_directories(partial);
  std::vector<std::string> shards;
  for (int w = 0; w < writers; ++w) {
    shards.push_back(storage::write_shard(fs, partial, w, pieces[static_cast<std::size_t>(w)]));
  }
  return storage::commit(fs, directory, record_of(step, config), shards);
}

inline std::vector<unsigned char> read(const CheckpointReader& reader, const std::string& name,
                                       const GlobalTensor& tensor, const Box& box) {
  std::vector<unsigned char> bytes(static_cast<std::size_t>(box.elements()) * size_of(tensor.type), 0xAA);
  reader.read(name, box, bytes.data());
  return bytes;
}

inline bool holds(const CheckpointReader& reader, const Tensors& tensors) {
  if (reader.tensors().size() != tensors.size()) return false;
  for (const auto& [name, tensor] : tensors) {
    if (!reader.has(name) || read(reader, name, tensor, whole(tensor.shape)) != tensor.bytes) return false;
  }
  return true;
}

inline Tensors some_tensors(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  Tensors tensors;
  tensors["h.0.attn.c_attn.weight"] = random_tensor(DType::F32, {12, 7}, random);
  tensors["optimizer.exp_avg.h.0.attn.c_attn.weight"] = random_tensor(DType::F32, {12, 7}, random);
  tensors["bias"] = random_tensor(DType::BF16, {9}, random);
  tensors["step"] = random_tensor(DType::I64, {}, random);
  tensors["table"] = random_tensor(DType::U8, {3, 4, 5}, random);
  tensors["empty"] = random_tensor(DType::F64, {0, 4}, random);
  return tensors;
}

}  // namespace trainer::test
