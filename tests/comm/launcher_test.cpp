// What the environment says about who started the ranks.
#include <doctest/doctest.h>

#include <map>
#include <string>

#include "trainer/comm/mpi.hpp"

using trainer::comm::wrong_launcher_message;

namespace {

using Variables = std::map<std::string, std::string>;

trainer::comm::Environment environment(const Variables& variables) {
  return [&](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  };
}

std::optional<std::string> message(int mpi_size, const Variables& variables) {
  return wrong_launcher_message(mpi_size, environment(variables));
}

TEST_CASE("whether MPI_Finalize may hang is known by library, device and version") {
  const auto text = [](const std::string& version, const std::string& device) {
    return "MPICH Version:\t" + version + "\nMPICH Release date:\tunknown\nMPICH Device:\t" + device + "\n";
  };
  CHECK(finalize_can_hang(text("4.0.2", "ch4:ucx")));
  CHECK(finalize_can_hang(text("3.4", "ch4:ucx")));
  CHECK(finalize_can_hang(text("4.1.2", "ch4:ucx")));
  CHECK(!finalize_can_hang(text("4.2.0", "ch4:ucx")));
  CHECK(!finalize_can_hang(text("5.0.0b1", "ch4:ucx")));
  CHECK(!finalize_can_hang(text("4.0.2", "ch4:ofi")));
  CHECK(!finalize_can_hang(text("4.0.2", "ch3:nemesis")));
  CHECK(!finalize_can_hang("Open MPI v4.1.4, package: Debian OpenMPI"));
  CHECK(!finalize_can_hang(""));
}

}  // namespace

TEST_CASE("several ranks that see one are told what was found") {
  const Variables cases[] = {
      {{"PMI_SIZE", "4"}, {"PMI_RANK", "0"}},
      {{"OMPI_COMM_WORLD_SIZE", "2"}, {"OMPI_COMM_WORLD_RANK", "0"}, {"PMIX_RANK", "0"}},
      {{"MPI_LOCALNRANKS", "2"}},
      {{"PMIX_RANK", "1"}, {"PMIX_NAMESPACE", "slurm.pmix.1.0"}},
      {{"PALS_RANKID", "3"}},
      {{"FLUX_JOB_SIZE", "2"}, {"FLUX_TASK_RANK", "0"}},
      // srun without a PMI, rank 0 and rank 1
      {{"SLURM_NTASKS", "2"}, {"SLURM_STEP_ID", "0"}, {"SLURM_STEP_NUM_TASKS", "2"}, {"SLURM_PROCID", "0"}},
      {{"SLURM_NTASKS", "2"}, {"SLURM_STEP_ID", "0"}, {"SLURM_PROCID", "1"}},
      // one rank on each of two nodes
      {{"PMI_SIZE", "2"}, {"MPI_LOCALNRANKS", "1"}},
  };
  for (const Variables& variables : cases) {
    const auto said = message(1, variables);
    REQUIRE(said);
    CHECK(said->find("mpiexec") != std::string::npos);
    bool names_one = false;
    for (const auto& [name, value] : variables) names_one |= said->find(name + "=" + value) != std::string::npos;
    CHECK(names_one);
    CHECK(!message(2, variables));
  }
}

TEST_CASE("one rank that is meant to be one is left alone") {
  const Variables cases[] = {
      {},
      {{"PMI_SIZE", "1"}, {"PMI_RANK", "0"}, {"MPI_LOCALNRANKS", "1"}},
      {{"OMPI_COMM_WORLD_SIZE", "1"}, {"OMPI_COMM_WORLD_RANK", "0"}, {"PMIX_RANK", "0"}},
      // a shell of salloc on the login node
      {{"SLURM_NTASKS", "64"}, {"SLURM_JOB_ID", "7"}, {"SLURM_NNODES", "2"}},
      // a batch script
      {{"SLURM_NTASKS", "64"}, {"SLURM_PROCID", "0"}, {"SLURM_NODEID", "0"}, {"SLURM_LOCALID", "0"}},
      // a shell of salloc in an interactive step
      {{"SLURM_NTASKS", "64"}, {"SLURM_STEP_ID", "4294967290"}, {"SLURM_STEP_NUM_TASKS", "1"}, {"SLURM_PROCID", "0"}},
      // mpiexec -n 1 of MPICH, whose helpers srun started on two nodes
      {{"PMI_SIZE", "1"}, {"SLURM_STEP_ID", "0"}, {"SLURM_STEP_NUM_TASKS", "2"}, {"SLURM_PROCID", "1"}},
      {{"PMI_SIZE", "many"}},
      {{"PMI_SIZE", ""}},
  };
  for (const Variables& variables : cases) CHECK_MESSAGE(!message(1, variables), message(1, variables).value_or(""));
}

TEST_CASE("the library says its name in one line") {
  const std::string version = trainer::comm::mpi_version();
  CHECK(!version.empty());
  CHECK(version.find('\n') == std::string::npos);
}

TEST_CASE("a launched process knows its rank before MPI starts") {
  const auto rank = [](const Variables& variables) { return trainer::comm::launched_rank(environment(variables)); };
  CHECK(rank({}) == 0);
  CHECK(rank({{"PMI_RANK", "3"}, {"PMI_SIZE", "4"}}) == 3);
  CHECK(rank({{"OMPI_COMM_WORLD_RANK", "2"}, {"PMIX_RANK", "2"}}) == 2);
  CHECK(rank({{"PMIX_RANK", "1"}}) == 1);
  CHECK(rank({{"PMI_RANK", "no number"}}) == 0);
}
