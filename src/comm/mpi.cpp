// Start and end of MPI.
#include "trainer/comm/mpi.hpp"

#include <mpi.h>

#include <cstdlib>
#include <exception>

#include "mpi_communicator.hpp"
#include "trainer/core/error.hpp"

namespace trainer::comm {

MpiSession::MpiSession(int* argc, char*** argv) {
  int provided = MPI_THREAD_SINGLE;
  check_mpi(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  if (provided < MPI_THREAD_FUNNELED) {
    throw Error(ExitCode::Internal,
                "this MPI library offers no MPI_THREAD_FUNNELED, which a trainer with threads needs: " + mpi_version());
  }
  check_mpi(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "setting the error handler");
}

MpiSession::~MpiSession() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized != 0 || std::uncaught_exceptions() > 0) return;
  try {
    world()->barrier();  // MPI_Finalize waits for the others too, but at full load
  } catch (const std::exception&) {
    return;  // the others do not come; the launcher notices the missing MPI_Finalize
  }
  MPI_Finalize();
}

std::unique_ptr<Communicator> MpiSession::world() {
  MPI_Comm comm = MPI_COMM_NULL;
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &comm), "duplicating the world communicator");
  return std::make_unique<MpiCommunicator>(comm);
}

void MpiSession::abort(int code) {
  MPI_Abort(MPI_COMM_WORLD, code);
  std::_Exit(code);
}

std::string mpi_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  if (MPI_Get_library_version(text, &length) != MPI_SUCCESS) return "unknown MPI";
  // Some libraries append a page about how they were built; the first line names them.
  std::string version(text, static_cast<std::size_t>(length));
  version.resize(std::min(version.size(), version.find_first_of(std::string_view("\n\0", 2))));
  for (char& c : version) c = c == '\t' ? ' ' : c;
  return version;
}

}  // namespace trainer::comm
