// Cores, quotas, peak memory: what Linux says about this process.
#include "trainer/comm/topology.hpp"

#include <fmt/format.h>
#include <malloc.h>
#include <sched.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <iterator>
#include <limits>
#include <numeric>
#include <set>
#include <sstream>
#include <string_view>

#include "trainer/core/error.hpp"

namespace trainer::comm {

namespace {

constexpr double kNoLimit = std::numeric_limits<double>::infinity();

// "max 100000" or "150000 100000" of v2.
double cores_of_cpu_max(const std::string& file) {
  std::ifstream in(file);
  std::string quota;
  double period = 0;
  if (!(in >> quota >> period) || quota == "max" || period <= 0) return kNoLimit;
  double microseconds = 0;
  const auto [end, error] = std::from_chars(quota.data(), quota.data() + quota.size(), microseconds);
  return error == std::errc() && microseconds > 0 ? microseconds / period : kNoLimit;
}

// Quota and period of v1; a quota of −1 is none.
double cores_of_cfs(const std::string& folder) {
  double quota = 0;
  double period = 0;
  if (!(std::ifstream(folder + "/cpu.cfs_quota_us") >> quota)) return kNoLimit;
  if (!(std::ifstream(folder + "/cpu.cfs_period_us") >> period)) return kNoLimit;
  return quota > 0 && period > 0 ? quota / period : kNoLimit;
}

// The smallest limit of `limit_of` at base + path and all folders above it, down to base itself. Inside a container
// the path may not exist below the mount; the base is then the container's own group.
template <class LimitOf>
double smallest_on_the_way(const std::string& base, std::string path, LimitOf limit_of) {
  double smallest = kNoLimit;
  while (true) {
    smallest = std::min(smallest, limit_of(base + path));
    const std::size_t slash = path.find_last_of('/');
    if (slash == std::string::npos) return smallest;
    path.resize(slash);
  }
}

bool lists(const std::string& controllers, std::string_view wanted) {
  std::istringstream in(controllers);
  for (std::string name; std::getline(in, name, ',');) {
    if (name == wanted) return true;
  }
  return false;
}

// The value after `name` in a file of "name value" lines; 0 when it is not there.
double value_in(const std::string& file, const std::string& wanted) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string name;
    double value = 0;
    if (words >> name >> value && name == wanted) return value;
  }
  return 0;
}

// A limit of "max", or one too large to mean anything (v1 without a limit), is none.
double memory_of_group(const std::string& limit_file, const std::string& usage_file, const std::string& stat_file,
                       const char* inactive, const char* active) {
  constexpr double kNoMachineHas = 1e18;
  double limit = 0;
  double usage = 0;
  if (!(std::ifstream(limit_file) >> limit) || limit > kNoMachineHas) return kNoLimit;
  if (!(std::ifstream(usage_file) >> usage)) return kNoLimit;
  const double cached = value_in(stat_file, inactive) + value_in(stat_file, active);
  return std::max(0.0, limit - std::max(0.0, usage - cached));
}

double memory_of_v2(const std::string& folder) {
  return memory_of_group(folder + "/memory.max", folder + "/memory.current", folder + "/memory.stat", "inactive_file",
                         "active_file");
}

double memory_of_v1(const std::string& folder) {
  return memory_of_group(folder + "/memory.limit_in_bytes", folder + "/memory.usage_in_bytes", folder + "/memory.stat",
                         "total_inactive_file", "total_active_file");
}

// The smallest limit over this process's groups: of v2, and of the v1 hierarchy that has the controller.
template <class OfV2, class OfV1>
double smallest_limit(const std::string& cgroup_file, const std::string& mount, std::string_view controller, OfV2 of_v2,
                      OfV1 of_v1) {
  double smallest = kNoLimit;
  std::ifstream in(cgroup_file);
  for (std::string line; std::getline(in, line);) {  // "0::/a/b", "4:cpu,cpuacct:/a/b"
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    if (path == "/") path.clear();
    if (controllers.empty()) {
      smallest = std::min(smallest, smallest_on_the_way(mount, path, of_v2));
      smallest = std::min(smallest, smallest_on_the_way(mount + "/unified", path, of_v2));
    } else if (lists(controllers, controller)) {
      smallest = std::min(smallest, smallest_on_the_way(mount + "/" + std::string(controller), path, of_v1));
      smallest = std::min(smallest, smallest_on_the_way(mount + "/" + controllers, path, of_v1));
    }
  }
  return smallest;
}

std::string to_text(const std::vector<int>& numbers) { return fmt::format("{}", fmt::join(numbers, " ")); }

std::vector<int> to_numbers(const std::string& text) {
  std::istringstream in(text);
  return {std::istream_iterator<int>(in), std::istream_iterator<int>()};
}

// Of the running kernel, in containers too.
std::string machine() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  return boot.empty() ? "unknown" : boot;
}

int whole_cores(double cores) { return std::max(1, static_cast<int>(std::floor(std::min(cores, 1e6)))); }

}  // namespace

std::vector<int> affinity_mask() {
  for (int cpus = 1024; cpus <= 1 << 20; cpus *= 2) {
    cpu_set_t* set = CPU_ALLOC(cpus);
    if (set == nullptr) break;
    const std::size_t bytes = CPU_ALLOC_SIZE(cpus);
    CPU_ZERO_S(bytes, set);
    std::vector<int> mask;
    const bool known = sched_getaffinity(0, bytes, set) == 0;
    for (int cpu = 0; known && cpu < cpus; ++cpu) {
      if (CPU_ISSET_S(cpu, bytes, set)) mask.push_back(cpu);
    }
    CPU_FREE(set);
    if (known) return mask;
  }
  return {0};
}

double cgroup_cores(const std::string& cgroup_file, const std::string& mount) {
  const auto of_v2 = [](const std::string& folder) { return cores_of_cpu_max(folder + "/cpu.max"); };
  return smallest_limit(cgroup_file, mount, "cpu", of_v2, cores_of_cfs);
}

double available_memory(const std::string& meminfo, const std::string& cgroup_file, const std::string& mount) {
  const double kib = value_in(meminfo, "MemAvailable:");
  return std::min(kib > 0 ? kib * 1024 : kNoLimit,
                  smallest_limit(cgroup_file, mount, "memory", memory_of_v2, memory_of_v1));
}

int usable_cores() {
  const auto mask = static_cast<int>(affinity_mask().size());
  return std::max(1, std::min(mask, whole_cores(cgroup_cores())));
}

int default_threads(int cores, int ranks_on_node) { return std::max(1, cores / std::max(1, ranks_on_node)); }

NodePlan plan_node(std::span<const std::vector<int>> masks, std::size_t mine, double quota_cores, int threads) {
  std::set<int> all;
  for (const auto& mask : masks) all.insert(mask.begin(), mask.end());
  NodePlan plan;
  plan.ranks_on_node = static_cast<int>(masks.size());
  plan.cores = std::max(1, std::min(static_cast<int>(all.size()), whole_cores(quota_cores)));
  const auto threads_of = [&](const std::vector<int>& mask) {
    if (threads > 0) return threads;
    return std::max(1, std::min(default_threads(plan.cores, plan.ranks_on_node), static_cast<int>(mask.size())));
  };
  plan.threads = threads_of(masks[mine]);

  std::vector<int> counts;
  for (const auto& mask : masks) counts.push_back(threads_of(mask));
  plan.oversubscribed = crowded(masks, counts) || std::accumulate(counts.begin(), counts.end(), 0) > plan.cores;
  return plan;
}

bool crowded(std::span<const std::vector<int>> masks, std::span<const int> threads) {
  std::set<int> all;
  int sum = 0;
  for (std::size_t r = 0; r < masks.size(); ++r) {
    all.insert(masks[r].begin(), masks[r].end());
    sum += threads[r];
    // Of ranks that can go nowhere else than into this mask.
    int inside = 0;
    for (std::size_t other = 0; other < masks.size(); ++other) {
      const bool within = std::includes(masks[r].begin(), masks[r].end(), masks[other].begin(), masks[other].end());
      if (within) inside += threads[other];
    }
    if (inside > static_cast<int>(masks[r].size())) return true;
  }
  return sum > static_cast<int>(all.size());
}

NodePlan plan_node(Communicator& world, int threads) {
  const auto node = world.split_node();
  std::vector<std::vector<int>> masks;
  for (const std::string& text : node->gather_strings(to_text(affinity_mask()))) masks.push_back(to_numbers(text));
  // Ranks of one container see the same quota; where they differ, the largest is that of a group above.
  double quota = std::min(cgroup_cores(), 1e6);
  node->max({&quota, 1});
  NodePlan plan = plan_node(masks, static_cast<std::size_t>(node->rank()), quota, threads);

  // Containers of one machine are nodes to MPI, and cannot see each other; its cores they share all the same.
  const std::string mine = machine();
  masks.clear();
  std::vector<int> counts;
  for (const std::string& text :
       world.gather_strings(fmt::format("{} {} {}", mine, plan.threads, to_text(affinity_mask())))) {
    std::istringstream in(text);
    std::string where;
    int count = 0;
    in >> where >> count;
    if (where != mine) continue;
    counts.push_back(count);
    masks.emplace_back(std::istream_iterator<int>(in), std::istream_iterator<int>());
  }
  plan.oversubscribed |= crowded(masks, counts);
  return plan;
}

long long peak_resident_bytes() {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);) {
    long long kib = 0;
    if (line.rfind("VmHWM:", 0) == 0 && std::istringstream(line.substr(6)) >> kib) return kib * 1024;
  }
  return 0;
}

long long restart_peak_resident_bytes() {
  malloc_trim(0);
  std::ofstream("/proc/self/clear_refs") << "5" << std::flush;
  const long long peak = peak_resident_bytes();
  // Where the write is refused or ignored, the peak stays above what is resident.
  const auto resident = static_cast<long long>(value_in("/proc/self/status", "VmRSS:") * 1024);
  constexpr long long kApart = 1 << 20;  // both are counted in batches
  return peak - resident <= kApart ? peak : 0;
}

}  // namespace trainer::comm
