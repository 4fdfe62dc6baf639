#include "trainer/plan/mesh.hpp"

#include <fmt/format.h>

namespace trainer::plan {

Coordinates Mesh::coordinates(std::int64_t rank) const {
  return {.data = rank / tensor % data, .pipeline = rank / (tensor * data), .tensor = rank % tensor};
}

std::int64_t Mesh::rank(const Coordinates& at) const { return (at.pipeline * data + at.data) * tensor + at.tensor; }

std::string to_string(const Coordinates& at) {
  return fmt::format("stage {}, replica {}, tensor {}", at.pipeline, at.data, at.tensor);
}

}  // namespace trainer::plan
