// Aligned memory and views of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

namespace trainer {

enum class DType : std::uint8_t { F32, BF16, F64, I32, I64, U8 };

std::size_t size_of(DType type);
std::string_view name_of(DType type);  // as safetensors spells it: "F32", "BF16", ...

/// 64-byte aligned bytes that move and never copy; zero-filled. Large buffers come straight from the
/// kernel (page by page on first touch) with huge pages advised.
class Buffer {
 public:
  static constexpr std::size_t kAlignment = 64;

  Buffer() = default;
  explicit Buffer(std::size_t bytes);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  float* f32(std::size_t byte_offset = 0) { return reinterpret_cast<float*>(data_ + byte_offset); }
  const float* f32(std::size_t byte_offset = 0) const { return reinterpret_cast<const float*>(data_ + byte_offset); }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

constexpr std::size_t align_up(std::size_t bytes, std::size_t alignment = Buffer::kAlignment) {
  return (bytes + alignment - 1) / alignment * alignment;
}

/// A row-major matrix somebody else owns: rows × features, or a vector when features is 1.
/// Activations are matrices of (samples · positions) rows.
template <class T>
struct MatrixView {
  T* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t features = 0;

  std::int64_t elements() const { return rows * features; }
  T* row(std::int64_t i) const { return data + i * features; }
  std::span<T> span() const { return {data, static_cast<std::size_t>(elements())}; }
  explicit operator bool() const { return data != nullptr; }
  operator MatrixView<const T>() const { return {data, rows, features}; }
};

using Matrix = MatrixView<float>;
using ConstMatrix = MatrixView<const float>;
using ConstTokens = MatrixView<const std::int32_t>;

}  // namespace trainer
