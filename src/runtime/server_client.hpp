// A mesh rank's end of what it exchanges with the servers: gradients out, weights in.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "server_messages.hpp"
#include "trainer/comm/communicator.hpp"
#include "trainer/core/action_log.hpp"
#include "trainer/runtime/parameters.hpp"
#include "trainer/runtime/server_plan.hpp"

namespace trainer::runtime {

class ServerClient {
 public:
  /// `ranks`: those of the run, mesh first, then servers. All referred to must outlive it. `log` may be null.
  ServerClient(comm::Communicator& ranks, const RunPlan& plan, const ServerPlan& servers, const plan::Coordinates& at,
               Parameters& parameters, ActionLog* log);
  ~ServerClient();

  /// Sends what the request asks for to every server: gradients behind a push, nothing else may touch them until this
  /// returns; and takes the weights where the request (`then` of a push) has some come. They are not touched when the
  /// run has diverged. Returns what the servers say: of the first one, and Diverged when any does. Waits.
  ServerReply exchange(const ServerRequest& request);

  /// Bytes of gradients and weights between this rank and the servers so far.
  std::int64_t moved_bytes() const { return moved_bytes_; }

  /// What packing takes on a rank.
  static std::size_t memory_bytes(const RunPlan& plan, const ServerPlan& servers, const plan::Coordinates& at);

 private:
  class Link;
  std::vector<std::unique_ptr<Link>> links_;  // [server]
  const int first_server_;
  ActionLog* log_;
  std::int64_t moved_bytes_ = 0;
};

}  // namespace trainer::runtime
