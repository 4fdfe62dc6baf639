// Integers that cannot be mixed up: a stage is not a rank is not a micro-batch.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>

namespace trainer {

template <class Tag>
struct Id {
  std::int32_t value = -1;

  constexpr Id() = default;
  constexpr explicit Id(std::int64_t v) : value(static_cast<std::int32_t>(v)) {}
  constexpr std::size_t index() const { return static_cast<std::size_t>(value); }
  constexpr bool valid() const { return value >= 0; }
  constexpr auto operator<=>(const Id&) const = default;
};

using StageId = Id<struct StageTag>;            // a pipeline stage, 0-based in the order of the model
using MicroBatchId = Id<struct MicroBatchTag>;  // a micro-batch of one step and one replica, 0-based
using NodeId = Id<struct NodeTag>;              // index into model::Graph::nodes
using ValueId = Id<struct ValueTag>;            // index into model::Graph::values
using ParameterId = Id<struct ParameterTag>;    // index into model::Graph::parameters

}  // namespace trainer

template <class Tag>
struct std::hash<trainer::Id<Tag>> {
  std::size_t operator()(trainer::Id<Tag> id) const noexcept { return std::hash<std::int32_t>{}(id.value); }
};
