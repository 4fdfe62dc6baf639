// Cores, quotas and plans of a node.
#include "trainer/comm/topology.hpp"

#include <doctest/doctest.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <string>
#include <vector>

using namespace trainer::comm;

namespace {

namespace fs = std::filesystem;

// A folder that plays /sys/fs/cgroup, and a file that plays /proc/self/cgroup.
class FakeCgroups {
 public:
  explicit FakeCgroups(const std::string& self) {
    std::string name = (fs::temp_directory_path() / "cgroups-XXXXXX").string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    root_ = name;
    write("self", self);
  }
  ~FakeCgroups() { fs::remove_all(root_); }
  FakeCgroups(const FakeCgroups&) = delete;
  FakeCgroups& operator=(const FakeCgroups&) = delete;

  void write(const std::string& path, const std::string& text) {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  double memory() const {
    return available_memory((root_ / "meminfo").string(), (root_ / "self").string(), (root_ / "fs").string());
  }
  double cores() const { return cgroup_cores((root_ / "self").string(), (root_ / "fs").string()); }

 private:
  fs::path root_;
};

std::vector<int> range(int begin, int end) {
  std::vector<int> mask(static_cast<std::size_t>(end - begin));
  std::iota(mask.begin(), mask.end(), begin);
  return mask;
}

}  // namespace

TEST_CASE("the smallest quota on the way up counts (v2)") {
  FakeCgroups cgroups("0::/a/b\n");
  CHECK(std::isinf(cgroups.cores()));
  cgroups.write("fs/a/b/cpu.max", "max 100000\n");
  CHECK(std::isinf(cgroups.cores()));
  cgroups.write("fs/a/cpu.max", "350000 100000\n");
  CHECK(cgroups.cores() == 3.5);
  cgroups.write("fs/a/b/cpu.max", "400000 100000\n");
  CHECK(cgroups.cores() == 3.5);
  cgroups.write("fs/a/b/cpu.max", "50000 100000\n");
  CHECK(cgroups.cores() == 0.5);
}

TEST_CASE("a container sees its own group at the root (v2)") {
  FakeCgroups cgroups("0::/\n");
  cgroups.write("fs/cpu.max", "200000 100000\n");
  CHECK(cgroups.cores() == 2);
}

TEST_CASE("quotas of v1, with a path that the container does not show") {
  FakeCgroups cgroups("5:memory:/x\n4:cpu,cpuacct:/docker/abc\n0::/\n");
  cgroups.write("fs/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
  cgroups.write("fs/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  CHECK(std::isinf(cgroups.cores()));
  cgroups.write("fs/cpu,cpuacct/cpu.cfs_quota_us", "600000\n");
  CHECK(cgroups.cores() == 6);
  cgroups.write("fs/cpu,cpuacct/docker/abc/cpu.cfs_quota_us", "150000\n");
  cgroups.write("fs/cpu,cpuacct/docker/abc/cpu.cfs_period_us", "50000\n");
  CHECK(cgroups.cores() == 3);
}

TEST_CASE("memory is what the machine has left, cut by the tightest group (v2)") {
  FakeCgroups cgroups("0::/a/b\n");
  CHECK(std::isinf(cgroups.memory()));
  cgroups.write("meminfo", "MemTotal: 9000 kB\nMemAvailable:    4000 kB\n");
  CHECK(cgroups.memory() == 4000.0 * 1024);
  cgroups.write("fs/a/memory.max", "max\n");
  cgroups.write("fs/a/memory.current", "5\n");
  CHECK(cgroups.memory() == 4000.0 * 1024);
  cgroups.write("fs/a/b/memory.max", "1000000\n");
  cgroups.write("fs/a/b/memory.current", "700000\n");
  CHECK(cgroups.memory() == 300000);
  // Cached files give way.
  cgroups.write("fs/a/b/memory.stat", "anon 1\ninactive_file 200000\nactive_file 100000\n");
  CHECK(cgroups.memory() == 600000);
  cgroups.write("fs/a/b/memory.current", "2000000\n");
  CHECK(cgroups.memory() == 0);
}

TEST_CASE("memory limits of v1") {
  FakeCgroups cgroups("5:memory:/x\n4:cpu,cpuacct:/docker/abc\n");
  cgroups.write("fs/memory/memory.limit_in_bytes", "9223372036854771712\n");
  cgroups.write("fs/memory/memory.usage_in_bytes", "77\n");
  CHECK(std::isinf(cgroups.memory()));
  cgroups.write("fs/memory/x/memory.limit_in_bytes", "5000\n");
  cgroups.write("fs/memory/x/memory.usage_in_bytes", "3000\n");
  cgroups.write("fs/memory/x/memory.stat", "total_inactive_file 1000\n");
  CHECK(cgroups.memory() == 3000);
}

TEST_CASE("usable cores follow the affinity mask") {
  const std::vector<int> before = affinity_mask();
  REQUIRE(!before.empty());
  CHECK(usable_cores() >= 1);
  CHECK(usable_cores() <= static_cast<int>(before.size()));
  cpu_set_t whole;
  REQUIRE(sched_getaffinity(0, sizeof(whole), &whole) == 0);
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(static_cast<std::size_t>(before.back()), &one);
  REQUIRE(sched_setaffinity(0, sizeof(one), &one) == 0);
  CHECK(affinity_mask() == std::vector<int>{before.back()});
  CHECK(usable_cores() == 1);
  sched_setaffinity(0, sizeof(whole), &whole);
}

TEST_CASE("threads share the cores") {
  CHECK(default_threads(8, 2) == 4);
  CHECK(default_threads(2, 8) == 1);
  CHECK(default_threads(7, 2) == 3);
}

TEST_CASE("the plan of a node, for ranks that are free, bound, and badly bound") {
  const std::vector<std::vector<int>> free_ranks(2, range(0, 8));
  NodePlan plan = plan_node(free_ranks, 0, INFINITY, 0);
  CHECK(plan.ranks_on_node == 2);
  CHECK(plan.cores == 8);
  CHECK(plan.threads == 4);
  CHECK(!plan.oversubscribed);
  CHECK(plan_node(free_ranks, 0, 4.9, 0).threads == 2);
  CHECK(plan_node(free_ranks, 0, INFINITY, 5).threads == 5);
  CHECK(plan_node(free_ranks, 0, INFINITY, 5).oversubscribed);
  CHECK(!plan_node(free_ranks, 0, INFINITY, 4).oversubscribed);

  const std::vector<std::vector<int>> many(8, range(0, 2));
  CHECK(plan_node(many, 3, INFINITY, 0).threads == 1);
  CHECK(plan_node(many, 3, INFINITY, 0).oversubscribed);

  // Bound to four cores each: the mask of one rank is not the node.
  const std::vector<std::vector<int>> bound{range(0, 4), range(4, 8)};
  plan = plan_node(bound, 1, INFINITY, 0);
  CHECK(plan.cores == 8);
  CHECK(plan.threads == 4);
  CHECK(!plan.oversubscribed);

  // Two ranks on one core, a third with three: each gets what it can use, and the first two must yield.
  const std::vector<std::vector<int>> uneven{{0}, {0}, range(1, 4)};
  CHECK(plan_node(uneven, 0, INFINITY, 0).threads == 1);
  CHECK(plan_node(uneven, 2, INFINITY, 0).oversubscribed);
}

TEST_CASE("cores are crowded when threads that can go nowhere else are more than they") {
  const std::vector<std::vector<int>> bound{{0}, {1}, {0}, {1}};  // four containers on two cores
  CHECK(crowded(bound, std::vector{1, 1, 1, 1}));
  CHECK(!crowded(std::vector(bound.begin(), bound.begin() + 2), std::vector{1, 1}));
  CHECK(crowded(std::vector(bound.begin(), bound.begin() + 2), std::vector{2, 1}));
  const std::vector<std::vector<int>> everywhere(3, range(0, 4));
  CHECK(!crowded(everywhere, std::vector{1, 1, 2}));
  CHECK(crowded(everywhere, std::vector{2, 1, 2}));
  CHECK(crowded(std::vector<std::vector<int>>{{0}, {0}, range(0, 4)}, std::vector{1, 1, 1}));
  CHECK(!crowded(std::vector<std::vector<int>>{{0}, range(0, 4)}, std::vector{1, 3}));
}

TEST_CASE("the plan over a communicator") {
  run_in_process(4, [](Communicator& c) {
    const NodePlan plan = plan_node(c);
    CHECK(plan.ranks_on_node == 4);
    CHECK(plan.cores == usable_cores());
    CHECK(plan.threads == default_threads(plan.cores, 4));
    CHECK(plan.oversubscribed == (plan.cores < 4));
  });
}

TEST_CASE("peak memory is that of this process, and stays when memory is given back") {
  constexpr long long kBytes = 64 << 20;
  const auto resident_bytes = [] {
    long long total = 0;
    long long resident = 0;
    std::ifstream("/proc/self/statm") >> total >> resident;
    return resident * sysconf(_SC_PAGESIZE);
  };
  long long with_memory = 0;
  {
    const std::vector<char> memory(kBytes, 1);
    with_memory = resident_bytes();
    CHECK(memory.back() == 1);
  }
  REQUIRE(with_memory >= kBytes);
  CHECK(resident_bytes() < with_memory);
  // The kernel keeps counts of some pages a thread, 64 at most, before it adds them up.
  CHECK(peak_resident_bytes() >= with_memory - 64 * sysconf(_SC_PAGESIZE));
}
