// Every way to lay a model over a number of ranks, as far as sizes alone say.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/config/config.hpp"
#include "trainer/model/graph.hpp"

namespace trainer::plan {

/// A mesh and how a replica's share of the batch is cut.
struct LayoutSize {
  std::int64_t data = 1, pipeline = 1, tensor = 1;  // in ranks
  std::int64_t micro_batches = 1;
  std::int64_t samples = 1;  // of a micro-batch
  bool operator==(const LayoutSize&) const = default;
};

/// Layouts that cannot be, and why: one entry a reason.
struct RejectedLayouts {
  std::string reason;
  std::int64_t count = 0;
  std::string example;  // "data 1 × pipeline 16 × tensor 1"
};
class Rejections {
 public:
  void add(const std::string& reason, const std::string& example);
  /// In the order of their first example.
  const std::vector<RejectedLayouts>& all() const { return all_; }

 private:
  std::vector<RejectedLayouts> all_;
};

/// All products data × pipeline × tensor of `ranks` with every cut of the batch, in ascending order of (data, pipeline,
/// tensor, micro-batches). One rank a stage at least as many units as stages; the batch is the configuration's.
std::vector<LayoutSize> legal_sizes(const config::Config& config, const model::Graph& graph, std::int64_t ranks,
                                    Rejections& rejected);

/// Micro-batch sizes, tensor ranks and shares of the model that those layouts compute with: a rank that holds half of
/// the weights finds more of them in its caches.
struct PieceSize {
  std::int64_t samples = 1, tensor = 1, pipeline = 1;
  auto operator<=>(const PieceSize&) const = default;
};
std::vector<PieceSize> piece_sizes(const std::vector<LayoutSize>& layouts);

/// "data 2 × pipeline 2 × tensor 1"
std::string to_string(const LayoutSize& layout);

}  // namespace trainer::plan
