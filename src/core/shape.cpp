#include "trainer/core/shape.hpp"

#include <algorithm>
#include <cstring>
#include <string>

#include "trainer/core/error.hpp"

namespace trainer {

Shape::Shape(std::initializer_list<std::int64_t> extents) {
  for (const std::int64_t extent : extents) push_back(extent);
}

void Shape::push_back(std::int64_t extent) {
  if (dims_ == kMaxDims) internal_error("a shape of more than six dims");
  extents_[static_cast<std::size_t>(dims_++)] = extent;
}

std::int64_t Shape::elements() const {
  std::int64_t product = 1;
  for (int d = 0; d < dims_; ++d) product *= (*this)[d];
  return product;
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (int d = 0; d < shape.dims(); ++d) {
    if (d > 0) text += ", ";
    text += std::to_string(shape[d]);
  }
  return text + "]";
}

Box whole(const Shape& shape) {
  Box box;
  for (int d = 0; d < shape.dims(); ++d) {
    box.start.push_back(0);
    box.extent.push_back(shape[d]);
  }
  return box;
}

Box intersect(const Box& a, const Box& b) {
  if (a.start.dims() != b.start.dims()) internal_error("boxes of different rank");
  Box overlap;
  for (int d = 0; d < a.start.dims(); ++d) {
    const std::int64_t begin = std::max(a.start[d], b.start[d]);
    const std::int64_t end = std::min(a.start[d] + a.extent[d], b.start[d] + b.extent[d]);
    overlap.start.push_back(begin);
    overlap.extent.push_back(std::max<std::int64_t>(0, end - begin));
  }
  return overlap;
}

namespace {

std::size_t offset_of(const Shape& at, const Box& box) {
  std::int64_t offset = 0;
  for (int d = 0; d < at.dims(); ++d) offset = offset * box.extent[d] + (at[d] - box.start[d]);
  return static_cast<std::size_t>(offset);
}

}  // namespace

void copy_box(const Box& overlap, const Box& from_box, const void* from, const Box& to_box, void* to,
              std::size_t element_size) {
  const int dims = overlap.start.dims();
  if (overlap.elements() == 0) return;
  const auto* source = static_cast<const unsigned char*>(from);
  auto* target = static_cast<unsigned char*>(to);
  const std::size_t run = static_cast<std::size_t>(dims == 0 ? 1 : overlap.extent[dims - 1]) * element_size;
  Shape at = overlap.start;
  while (true) {
    std::memcpy(target + offset_of(at, to_box) * element_size, source + offset_of(at, from_box) * element_size, run);
    int d = dims - 2;
    for (; d >= 0; --d) {
      if (++at[d] < overlap.start[d] + overlap.extent[d]) break;
      at[d] = overlap.start[d];
    }
    if (d < 0) return;
  }
}

Range split_range(std::int64_t n, std::int64_t parts, std::int64_t index) {
  const std::int64_t base = n / parts;
  const std::int64_t larger = n % parts;
  const std::int64_t begin = index * base + std::min(index, larger);
  return {begin, begin + base + (index < larger ? 1 : 0)};
}

}  // namespace trainer
