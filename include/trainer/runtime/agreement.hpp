// Errors that one rank meets and all ranks leave with.
#pragma once

#include <functional>

#include "trainer/comm/communicator.hpp"
#include "trainer/core/error.hpp"

namespace trainer::runtime {

/// An Error that every rank throws alike, so that one of them can speak for all.
class AgreedError : public Error {
 public:
  using Error::Error;
};

/// Collective: runs `local` on every rank. When it threw anywhere, every rank throws the error of the lowest such rank
/// as AgreedError (the rank is named in the message when it is not 0).
void agree(comm::Communicator& world, const std::function<void()>& local);

}  // namespace trainer::runtime
