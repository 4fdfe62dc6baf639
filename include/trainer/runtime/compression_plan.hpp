// What of a rank's gradients is compressed (parallel.compression), and where it lies in the exchange's memory. Pure:
// the exchange and the prediction of its memory go by the same layout.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/optim/compression.hpp"
#include "trainer/runtime/parameters.hpp"
#include "trainer/runtime/run_plan.hpp"

namespace trainer::runtime {

/// One use of a parameter whose gradient is compressed: as a whole where tensor ranks hold copies, else this rank's
/// part.
struct CompressedUse {
  const HeldParameter* held = nullptr;
  std::int64_t use = 0;  // of all stages' uses, in the order of nodes
  std::string name;      // of its random numbers
  std::size_t gradient = 0;
  std::int64_t elements = 0;
  std::int64_t kept = 0;    // top_k, random_k
  optim::PowerShape power;  // power_sgd
  // Element offsets, and bytes on the wire.
  std::size_t error = 0;   // in the errors
  std::size_t summed = 0;  // in the first sum: random_k's values, P
  std::size_t factor = 0;  // in the second sum: Q
  std::size_t index = 0;   // random_k
  std::size_t wire = 0;
  std::size_t wire_bytes = 0;
};

/// A gradient that is sent as it is, in the first sum.
struct WholeUse {
  std::size_t gradient = 0;
  std::int64_t elements = 0;
  std::size_t summed = 0;
};

/// The gradients in a range of a rank's gradient memory.
struct CompressedBucketLayout {
  std::vector<CompressedUse> uses;
  std::vector<WholeUse> whole;
  std::size_t error_elements = 0, summed_elements = 0, factor_elements = 0, index_elements = 0;
  std::size_t wire_bytes = 0;  // what one replica has to say

  /// All that a bucket takes among so many replicas.
  std::size_t bytes(config::CompressionType type, int replicas) const;
};

/// `parameters` must outlive the layout.
CompressedBucketLayout lay_out_compression(const RunPlan& plan, const ParameterLayout& parameters,
                                           const plan::Coordinates& at, Range gradients);

/// Whether this parameter is, by its name and its size as a whole. Its shape may still forbid it (power_sgd).
bool wants_compression(const RunPlan& plan, ParameterId parameter);

/// For training and its dry run: throws Error(Usage) where the configured compression would compress nothing, or names
/// what is not there.
void require_compression(const RunPlan& plan);

/// Blocks of kInt8Block of the one that sums them: replica `r` of so many.
inline Range int8_chunk(std::size_t wire_bytes, int replicas, int r) {
  return split_range(static_cast<std::int64_t>(wire_bytes / optim::kInt8BlockBytes), replicas, r);
}

}  // namespace trainer::runtime
