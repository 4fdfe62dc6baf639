// Was this process started by the launcher of another MPI?
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <optional>
#include <string_view>

#include "trainer/comm/mpi.hpp"

namespace trainer::comm {

namespace {

enum class Says { Size, Rank };

struct Variable {
  const char* name;
  Says says;
  const char* launcher;
  // Counts only when the one is set and the other is not. mpiexec of MPICH starts its helpers by srun, whose variables
  // then count nodes, not ranks.
  const char* only_with = nullptr;
  const char* only_without = nullptr;
};

// SLURM_NTASKS is not here: salloc and sbatch set it for what may be started. SLURM_STEP_NUM_TASKS is what srun
// started.
constexpr std::array kVariables{
    Variable{"PMI_SIZE", Says::Size, "mpiexec of MPICH or Intel MPI, or srun --mpi=pmi2"},
    Variable{"OMPI_COMM_WORLD_SIZE", Says::Size, "mpirun of Open MPI"},
    Variable{"MV2_COMM_WORLD_SIZE", Says::Size, "mpiexec of MVAPICH"},
    Variable{"MPI_LOCALNRANKS", Says::Size, "mpiexec of MPICH"},
    Variable{"FLUX_JOB_SIZE", Says::Size, "flux run", "FLUX_TASK_RANK"},
    Variable{"SLURM_STEP_NUM_TASKS", Says::Size, "srun", "SLURM_PROCID", "PMI_SIZE"},
    Variable{"PMI_RANK", Says::Rank, "a launcher that speaks PMI"},
    Variable{"OMPI_COMM_WORLD_RANK", Says::Rank, "mpirun of Open MPI"},
    Variable{"PMIX_RANK", Says::Rank, "a launcher that speaks PMIx (mpirun of Open MPI, srun --mpi=pmix)"},
    Variable{"PALS_RANKID", Says::Rank, "mpiexec of HPE Cray"},
    Variable{"SLURM_PROCID", Says::Rank, "srun", "SLURM_STEP_ID", "PMI_SIZE"},
};

std::optional<long> number_in(const Environment& environment, const char* name) {
  const char* text = environment(name);
  if (text == nullptr) return std::nullopt;
  const std::string_view view(text);
  long value = 0;
  const auto [end, error] = std::from_chars(view.data(), view.data() + view.size(), value);
  if (error != std::errc() || end != view.data() + view.size()) return std::nullopt;
  return value;
}

// Closes the descriptor and its copies: the launcher leaves some of them open in what it starts.
void close_all_of(int descriptor) {
  constexpr int kMostDescriptors = 256;
  struct stat wanted {};
  if (fstat(descriptor, &wanted) != 0) return;
  for (int other = 0; other < kMostDescriptors; ++other) {
    struct stat status {};
    if (fstat(other, &status) == 0 && status.st_dev == wanted.st_dev && status.st_ino == wanted.st_ino) close(other);
  }
}

}  // namespace

std::optional<std::string> wrong_launcher_message(int mpi_size, const Environment& environment) {
  if (mpi_size > 1) return std::nullopt;
  for (const Variable& variable : kVariables) {
    if (variable.only_with != nullptr && environment(variable.only_with) == nullptr) continue;
    if (variable.only_without != nullptr && environment(variable.only_without) != nullptr) continue;
    const std::optional<long> value = number_in(environment, variable.name);
    if (!value) continue;
    const bool several = variable.says == Says::Size ? *value > 1 : *value > 0;
    if (!several) continue;
    return fmt::format(
        "{}={} in the environment says that {} started several ranks, but this program sees only itself: it is linked "
        "with another MPI library ({}) than the launcher belongs to. Start it with the mpiexec of that library "
        "(often there are mpiexec.mpich and mpiexec.openmpi), or under Slurm with the srun --mpi=... that it speaks "
        "(srun --mpi=list). If one rank is what you want, unset {}.",
        variable.name, *value, variable.launcher, mpi_version(), variable.name);
  }
  return std::nullopt;
}

int launched_rank(const Environment& environment) {
  for (const char* name : {"PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PALS_RANKID"}) {
    if (const auto rank = number_in(environment, name)) return static_cast<int>(*rank);
  }
  return 0;
}

void let_launcher_see_exit() {
  if (std::getenv("PMI_RANK") == nullptr || launched_rank() != 0) return;
  constexpr useconds_t kPoll = 1000, kMoment = 50'000;
  constexpr int kMostPolls = 2000;
  const pid_t parent = getpid();
  if (fork() != 0) return;
  for (int i = 0; i < kMostPolls && getppid() == parent; ++i) usleep(kPoll);
  usleep(kMoment);  // the parent is no longer our parent a little before it can be waited for
  close_all_of(STDOUT_FILENO);
  usleep(kMoment);
  _exit(0);
}

}  // namespace trainer::comm
