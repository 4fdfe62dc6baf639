// Who sits where: ranks in a mesh of named axes, tensor innermost, then data, then pipeline, so that a tensor group
// shares a node.
#pragma once

#include <cstdint>
#include <string>

namespace trainer::plan {

/// A rank's place on each axis.
struct Coordinates {
  std::int64_t data = 0;
  std::int64_t pipeline = 0;
  std::int64_t tensor = 0;
  bool operator==(const Coordinates&) const = default;
};

struct Mesh {
  std::int64_t data = 1;
  std::int64_t pipeline = 1;
  std::int64_t tensor = 1;

  std::int64_t size() const { return data * pipeline * tensor; }
  Coordinates coordinates(std::int64_t rank) const;
  std::int64_t rank(const Coordinates& at) const;
};

/// "stage 1, replica 0, tensor 1"
std::string to_string(const Coordinates& at);

}  // namespace trainer::plan
