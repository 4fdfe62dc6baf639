// Profiles and cluster descriptions as JSON files.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/plan/cost_model.hpp"

namespace trainer::plan {

/// The profile as JSON; parse_profile(to_json(p), …) is p.
std::string to_json(const CostModel& profile);
/// Throws Error(Usage) that names `source`, the JSON path, what was found and what was expected.
CostModel parse_profile(const std::string& text, const std::string& source);

/// Nodes that are alike, one behind the other.
struct NodeGroup {
  std::int64_t count = 1;
  std::int64_t cores = 1;
  std::int64_t ranks = 1;       // on each; the cores are divided among them
  double core_flops = 0;        // multiply-adds in registers, a second
  double memory = 0;            // bytes of a node; 0: not said
  double memory_bandwidth = 0;  // of a core, bytes a second
};

/// Machines that are not here.
struct Cluster {
  std::vector<NodeGroup> groups;
  Link within, between;

  std::int64_t ranks() const;  // that it has room for
  std::int64_t nodes() const;
};
/// Keys: "nodes": [{"count", "cores", "ranks", "gflops_per_core", "memory", "memory_bandwidth_gb_s"}], "within_node"
/// and "between_nodes": {"latency_us", "bandwidth_gb_s"}. Throws Error(Usage) as parse_profile does.
Cluster parse_cluster(const std::string& text, const std::string& source);

/// [rank] the node of each of the first `ranks` ranks, filled in order, and the speed of a rank there. Throws
/// Error(Usage) where the cluster has no room for them.
struct RankPlaces {
  std::vector<int> node_of_rank;
  std::vector<double> rank_flops;
  std::vector<double> rank_memory;  // bytes a rank may take; 0: not said
};
RankPlaces place(const Cluster& cluster, std::int64_t ranks);

}  // namespace trainer::plan
