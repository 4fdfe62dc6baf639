#include "trainer/plan/layouts.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace trainer::plan {

namespace {

std::vector<std::int64_t> divisors(std::int64_t n) {
  std::vector<std::int64_t> result;
  for (std::int64_t d = 1; d * d <= n; ++d) {
    if (n % d != 0) continue;
    result.push_back(d);
    if (d * d != n) result.push_back(n / d);
  }
  std::sort(result.begin(), result.end());
  return result;
}

// Of the attention with the fewest; 0: there is none.
std::int64_t fewest_heads(const model::Graph& graph) {
  std::int64_t fewest = 0;
  for (const model::Node& node : graph.nodes) {
    const auto* attention = std::get_if<model::Attention>(&node.op);
    if (attention && (fewest == 0 || attention->total_heads < fewest)) fewest = attention->total_heads;
  }
  return fewest;
}

// The widest matrix: more tensor ranks than that have nothing to divide.
std::int64_t widest(const model::Graph& graph) {
  std::int64_t most = 1;
  for (const model::Node& node : graph.nodes) {
    if (const auto* linear = std::get_if<model::Linear>(&node.op)) most = std::max({most, linear->in, linear->out});
  }
  return most;
}

}  // namespace

void Rejections::add(const std::string& reason, const std::string& example) {
  const auto found = std::find_if(all_.begin(), all_.end(), [&](const auto& r) { return r.reason == reason; });
  if (found != all_.end()) {
    ++found->count;
  } else {
    all_.push_back({reason, 1, example});
  }
}

std::string to_string(const LayoutSize& layout) {
  return fmt::format("data {} × pipeline {} × tensor {}", layout.data, layout.pipeline, layout.tensor);
}

std::vector<LayoutSize> legal_sizes(const config::Config& config, const model::Graph& graph, std::int64_t ranks,
                                    Rejections& rejected) {
  const std::int64_t batch = config.training.batch_size;
  const auto units = static_cast<std::int64_t>(graph.units.size());
  const std::int64_t heads = fewest_heads(graph);
  const std::int64_t width = widest(graph);
  std::vector<LayoutSize> all;
  for (const std::int64_t data : divisors(ranks)) {
    for (const std::int64_t pipeline : divisors(ranks / data)) {
      const LayoutSize mesh{data, pipeline, ranks / data / pipeline, 1, 1};
      std::string reason;
      if (batch % data != 0) {
        reason = fmt::format("training.batch_size {} is not a multiple of the replicas", batch);
      } else if (pipeline > units) {
        reason = fmt::format("more stages than the model's {} units to cut between", units);
      } else if (heads > 0 && mesh.tensor > heads) {
        reason = fmt::format("more tensor ranks than the {} attention heads", heads);
      } else if (mesh.tensor > width) {
        reason = fmt::format("more tensor ranks than features of the widest layer, {}", width);
      }
      if (!reason.empty()) {
        rejected.add(reason, to_string(mesh));
        continue;
      }
      for (const std::int64_t micro_batches : divisors(batch / data)) {
        all.push_back({data, pipeline, mesh.tensor, micro_batches, batch / data / micro_batches});
      }
    }
  }
  return all;
}

std::vector<PieceSize> piece_sizes(const std::vector<LayoutSize>& layouts) {
  std::vector<PieceSize> sizes;
  for (const LayoutSize& layout : layouts) sizes.push_back({layout.samples, layout.tensor, layout.pipeline});
  std::sort(sizes.begin(), sizes.end());
  sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
  return sizes;
}

}  // namespace trainer::plan
