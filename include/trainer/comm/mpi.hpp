// Start and end of MPI, for main.
#pragma once

#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "trainer/comm/communicator.hpp"

namespace trainer::comm {

/// Initialises MPI (FUNNELED) and finalises it on destruction (after a polite barrier; not while an exception unwinds,
/// because the other ranks may never come). Works without mpiexec: one rank. Outlives all communicators.
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

/// Library name and version, for --version and run records.
std::string mpi_version();

}  // namespace trainer::comm
