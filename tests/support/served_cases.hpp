// Runs with parameter servers, and the same runs with all_reduce.
#pragma once

#include <string>

#include "equivalence.hpp"

namespace trainer::test {

struct ServedCase {
  Case c;  // of the mesh
  std::int64_t servers = 1;
  std::string keys;  // "parallel.consistency=ssp;…"

  std::int64_t ranks() const { return c.ranks() + servers; }
  Case served() const {
    Case with = c;
    with.extra += (with.extra.empty() ? "" : ";") + std::string("parallel.exchange=server;parallel.servers=") +
                  std::to_string(servers) + (keys.empty() ? "" : ";") + keys;
    return with;
  }
  std::string name() const { return c.name() + " servers " + std::to_string(servers) + " " + keys; }
};

}  // namespace trainer::test
