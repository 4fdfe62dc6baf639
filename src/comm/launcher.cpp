// Was this process started by the launcher of another MPI?
#include <fmt/format.h>

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

}  // namespace trainer::comm
