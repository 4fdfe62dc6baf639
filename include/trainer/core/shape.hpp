// Extents of a tensor, and axis-aligned boxes inside one.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

namespace trainer {

/// Up to kMaxDims extents, outermost first. A default Shape has no dims and one element.
class Shape {
 public:
  static constexpr int kMaxDims = 6;

  Shape() = default;
  Shape(std::initializer_list<std::int64_t> extents);

  int dims() const { return dims_; }
  std::int64_t operator[](int dim) const { return extents_[static_cast<std::size_t>(dim)]; }
  std::int64_t& operator[](int dim) { return extents_[static_cast<std::size_t>(dim)]; }
  void push_back(std::int64_t extent);
  std::int64_t elements() const;
  bool operator==(const Shape&) const = default;

 private:
  std::array<std::int64_t, kMaxDims> extents_{};
  int dims_ = 0;
};

/// "[3, 4]"
std::string to_string(const Shape& shape);

/// The sub-array [start, start + extent) of a global tensor, dim by dim.
struct Box {
  Shape start;
  Shape extent;

  std::int64_t elements() const { return extent.elements(); }
  bool operator==(const Box&) const = default;
};

/// The box that covers all of `shape`.
Box whole(const Shape& shape);

/// The overlap of two boxes of the same rank; an extent of 0 somewhere when they are disjoint.
Box intersect(const Box& a, const Box& b);

/// Copies `overlap` (global coordinates, inside both boxes) between two row-major arrays of
/// `element_size`-byte elements that hold exactly `from_box` and `to_box`.
void copy_box(const Box& overlap, const Box& from_box, const void* from, const Box& to_box, void* to,
              std::size_t element_size);

/// Half-open range of one dim.
struct Range {
  std::int64_t begin = 0;
  std::int64_t end = 0;

  std::int64_t size() const { return end - begin; }
  bool operator==(const Range&) const = default;
};

/// Part `index` of `parts` of [0, n): sizes differ by at most one, the larger parts first.
Range split_range(std::int64_t n, std::int64_t parts, std::int64_t index);

}  // namespace trainer
