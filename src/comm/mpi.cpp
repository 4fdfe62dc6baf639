// Start and end of MPI.
#include "trainer/comm/mpi.hpp"

#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <string_view>

#include "mpi_communicator.hpp"
#include "trainer/core/error.hpp"

namespace trainer::comm {

namespace {

std::string library_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  if (MPI_Get_library_version(text, &length) != MPI_SUCCESS) return {};
  return {text, static_cast<std::size_t>(length)};
}

// One request of PMI 1 and its answer.
bool ask_launcher(int socket, std::string_view request) {
  if (write(socket, request.data(), request.size()) != static_cast<ssize_t>(request.size())) return false;
  std::array<char, 256> answer{};
  return read(socket, answer.data(), answer.size()) > 0;
}

// Takes leave of a launcher that speaks PMI 1 over a socket, as MPI_Finalize does at its end; false when there is none.
// Nobody closes connections before all ranks are here.
bool leave_launcher() {
  const char* descriptor = std::getenv("PMI_FD");
  if (descriptor == nullptr) return false;
  const int socket = std::atoi(descriptor);
  return ask_launcher(socket, "cmd=barrier_in\n") && ask_launcher(socket, "cmd=finalize\n");
}

}  // namespace

bool finalize_can_hang(std::string_view library_version) {
  constexpr std::string_view kVersion = "MPICH Version:";
  const std::size_t at = library_version.find(kVersion);
  if (at == std::string_view::npos || library_version.find("ch4:ucx") == std::string_view::npos) return false;
  int major = 0, minor = 0;
  const std::string number(library_version.substr(at + kVersion.size(), 32));
  return std::sscanf(number.c_str(), " %d.%d", &major, &minor) == 2 && (major < 4 || (major == 4 && minor < 2));
}

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
  bool several_nodes = false;
  try {
    const auto all = world();
    several_nodes = all->split_node()->size() < all->size();
    all->barrier();  // MPI_Finalize waits for the others too, but at full load
  } catch (const std::exception&) {
    return;  // the others do not come; the launcher notices the missing MPI_Finalize
  }
  if (several_nodes && finalize_can_hang(library_version()) && leave_launcher()) return;
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
  // Some libraries append a page about how they were built; the first line names them.
  std::string version = library_version();
  if (version.empty()) return "unknown MPI";
  version.resize(std::min(version.size(), version.find_first_of(std::string_view("\n\0", 2))));
  for (char& c : version) c = c == '\t' ? ' ' : c;
  return version;
}

}  // namespace trainer::comm
