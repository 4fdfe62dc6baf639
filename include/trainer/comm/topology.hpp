// What this process may use of its machine.
#pragma once

namespace trainer::comm {

/// Cores this process may run on: the affinity mask, cut by the cgroup's CPU quota (v2 and v1), at least 1.
int usable_cores();

/// Threads for each rank when `ranks_on_node` share those cores, at least 1.
int default_threads(int cores, int ranks_on_node);

/// VmHWM of this process in bytes: its peak resident memory so far.
long long peak_resident_bytes();

}  // namespace trainer::comm
