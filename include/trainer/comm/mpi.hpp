// Start and end of MPI, for main.
#pragma once

#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "trainer/comm/communicator.hpp"

namespace trainer::comm {

/// Initialises MPI (FUNNELED) and finalises it on destruction (after a polite barrier; not while an exception unwinds,
/// because the other ranks may never come). Works without mpiexec: one rank. Outlives all communicators.
/// Where finalize_can_hang and the ranks are on several nodes, it takes leave of mpiexec without MPI_Finalize.
class MpiSession {
 public:
  MpiSession(int* argc, char*** argv);
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  /// All ranks, with message matching of its own. Collective.
  std::unique_ptr<Communicator> world();
  /// Ends all ranks at once with this exit code; does not return. For main, after printing why.
  [[noreturn]] void abort(int code);
};

/// A message when the environment says that several ranks were started but this MPI sees one: the binary was started by
/// another MPI's mpiexec (or srun without a matching PMI). Reads PMI_SIZE, OMPI_COMM_WORLD_SIZE, PMIX_RANK,
/// SLURM_STEP_NUM_TASKS, ... Silent in a shell of salloc or sbatch, whose SLURM_NTASKS says what may be started, not
/// what was.
using Environment = std::function<const char*(const char* name)>;
std::optional<std::string> wrong_launcher_message(int mpi_size, const Environment& environment = std::getenv);

/// Whether MPI_Finalize of this library (the whole text of MPI_Get_library_version) may never return on several nodes.
/// MPICH over UCX waits for the launcher's barrier without progress once it has disconnected itself, while others still
/// need its answers; with TCP every second run hangs. MPICH 4.2 has no such barrier (pmodels/mpich pull request 6596).
bool finalize_can_hang(std::string_view library_version);

/// This process's rank as its launcher's environment tells it, without starting MPI; 0 without a launcher.
int launched_rank(const Environment& environment = std::getenv);

/// For the end of main after a signal to mpiexec: MPICH's mpiexec forgets the exit codes of processes whose output
/// closes in the moment of their end, once it has passed a signal on. A child of this process holds the output open
/// until its parent has ended, then closes stdout and, a moment later, ends too. Does nothing without a launcher.
void let_launcher_see_exit();

/// Library name and version, for --version and run records.
std::string mpi_version();

}  // namespace trainer::comm
