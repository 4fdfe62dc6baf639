// The world communicator of a test program that runs under mpiexec.
#pragma once

#include "trainer/comm/communicator.hpp"

namespace trainer::test {

/// Valid while test cases run; all ranks run the same cases in the same order.
comm::Communicator& world();

}  // namespace trainer::test
