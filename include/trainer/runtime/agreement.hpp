// Errors that one rank meets and all ranks leave with.
#pragma once

#include <functional>

#include "trainer/comm/communicator.hpp"

namespace trainer::runtime {

/// Collective: runs `local` on every rank. When it threw anywhere, every rank throws the Error of the lowest such rank
/// (named in the message when it is not rank 0).
void agree(comm::Communicator& world, const std::function<void()>& local);

}  // namespace trainer::runtime
