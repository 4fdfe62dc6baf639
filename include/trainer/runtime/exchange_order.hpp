// One serial order for what several parameter servers did side by side: pure, from their logs.
#pragma once

#include <cstdint>
#include <vector>

#include "trainer/runtime/exchange_log.hpp"

namespace trainer::runtime {

/// What a serial replay does next. Pull: the server's parameters are copied to the replica. Compute: the replica makes
/// the gradient of its batch from what it has pulled. Push: the server takes it (and, but for bsp, applies it). Apply:
/// the server applies what was pushed since its last Apply, in the order of replicas.
struct ReplayAction {
  enum class Kind : std::uint8_t { Pull, Compute, Push, Apply };
  Kind kind = Kind::Pull;
  int server = -1;           // −1: Compute
  std::int64_t replica = 0;  // −1: Apply
  std::int64_t clock = 0;
  std::int64_t version = 0;  // of the server: read by a Pull, before a Push or an Apply
  std::int64_t first = 0, count = 0;
  bool operator==(const ReplayAction&) const = default;
};

/// Which of a server's operations: (from, to], and what its parameters have seen before.
struct ReplayPart {
  std::int64_t from = 0;
  std::int64_t to = 0;
  std::int64_t version = 0;
};

/// A topological order: each server's operations in the order of its log, a Compute behind the replica's pulls from all
/// servers and before its first push; batches that nobody has pushed are not computed. Replicas may be in the middle of
/// a batch at no end of the parts. Throws Error(Storage), naming file and line, for logs that contradict themselves or
/// each other. `paths`: [server] for messages.
std::vector<ReplayAction> serial_order(const std::vector<ExchangeLog>& logs, const std::vector<ReplayPart>& parts,
                                       const std::vector<std::string>& paths);

/// That they are the logs of all servers of one run. Throws Error(Storage).
void require_one_run(const std::vector<ExchangeLog>& logs, const std::vector<std::string>& paths);

}  // namespace trainer::runtime
