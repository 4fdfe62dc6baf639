// What this process may use of its machine.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "trainer/comm/communicator.hpp"

namespace trainer::comm {

/// Cores this process may run on: the affinity mask, cut by the cgroup's CPU quota (v2 and v1), at least 1.
int usable_cores();

/// Threads for each rank when `ranks_on_node` share those cores, at least 1.
int default_threads(int cores, int ranks_on_node);

/// Who shares this node, and how many threads each of them gets.
struct NodePlan {
  int ranks_on_node = 1;
  int cores = 1;    // that the ranks of the node may use together
  int threads = 1;  // for this rank
  /// Some core has more threads than one: waits must give the core away (WaitPolicy::yield), pools must not spin.
  bool oversubscribed = false;
};

/// Whether some cores have more threads than one, when rank r runs threads[r] threads on the cores masks[r].
bool crowded(std::span<const std::vector<int>> masks, std::span<const int> threads);

/// The plan of this rank's node; ranks elsewhere on the same machine (in other containers) count when it is asked
/// whether cores are oversubscribed. Collective over `world`. `threads` > 0 is the user's number of threads a rank.
NodePlan plan_node(Communicator& world, int threads = 0);

/// The same as a pure function: `masks` are the cores that each rank of the node may run on (equal, overlapping or
/// disjoint, as ranks are bound or not), `mine` is this rank's index there, `quota_cores` the cgroup's limit.
NodePlan plan_node(std::span<const std::vector<int>> masks, std::size_t mine, double quota_cores, int threads);

/// The processor numbers of this process's affinity mask, ascending.
std::vector<int> affinity_mask();

/// The smallest CPU quota, in cores, on the way from this process's cgroup to the root: cpu.max (v2) and
/// cpu.cfs_quota_us (v1). Infinity without one. Paths are parameters for tests.
double cgroup_cores(const std::string& cgroup_file = "/proc/self/cgroup", const std::string& mount = "/sys/fs/cgroup");

/// Bytes that this process's node can still give: MemAvailable, cut by the memory limits (v2 and v1) on the way from
/// this process's cgroup to the root, less what is in use there and cannot be reclaimed. Infinity when nothing says.
double available_memory(const std::string& meminfo = "/proc/meminfo",
                        const std::string& cgroup_file = "/proc/self/cgroup",
                        const std::string& mount = "/sys/fs/cgroup");

/// VmHWM of this process in bytes: its peak resident memory so far.
long long peak_resident_bytes();

/// Gives what the heap has free back to the system and makes the peak what is resident now; returns that, in bytes. 0
/// when the system does not let the peak be set back.
long long restart_peak_resident_bytes();

}  // namespace trainer::comm
