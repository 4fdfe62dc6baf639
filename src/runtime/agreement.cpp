#include "trainer/runtime/agreement.hpp"

#include <fmt/format.h>

#include <new>
#include <string>

namespace trainer::runtime {

void agree(comm::Communicator& world, const std::function<void()>& local) {
  std::string mine;  // exit code, a space, the message; empty when all went well
  try {
    local();
  } catch (const Error& error) {
    mine = fmt::format("{} {}", static_cast<int>(error.code()), error.what());
  } catch (const std::bad_alloc&) {
    mine = fmt::format("{} {}", static_cast<int>(ExitCode::Usage), kOutOfMemory);
  } catch (const std::exception& error) {
    mine = fmt::format("{} internal error: {}", static_cast<int>(ExitCode::Internal), error.what());
  }
  const auto all = world.gather_strings(mine);
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    if (all[rank].empty()) continue;
    const std::size_t space = all[rank].find(' ');
    const auto code = static_cast<ExitCode>(std::stoi(all[rank].substr(0, space)));
    const std::string message = all[rank].substr(space + 1);
    throw AgreedError(code, rank == 0 ? message : fmt::format("rank {}: {}", rank, message));
  }
}

}  // namespace trainer::runtime
