// Shared memory between processes of one machine. Private to comm.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "trainer/comm/shared_memory.hpp"

namespace trainer::comm {

/// Equal for processes that can open each other's memory files: of one boot of one kernel and one process namespace.
std::string memory_domain();

/// Communicator::share over anonymous files of the processes themselves (memfd_create): not MPI_Win_allocate_shared,
/// whose files in /dev/shm end a program with a bus error when that is full (64 MB in a container by default), and
/// which cannot have huge pages. Collective; null on every rank when some rank could not open a neighbour's.
std::unique_ptr<SharedMemory> make_node_memory(Communicator& comm, std::size_t bytes, int channels);

}  // namespace trainer::comm
