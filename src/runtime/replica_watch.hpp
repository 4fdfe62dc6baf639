// What the coordinator sees of each replica: how fast, how stale, and since when it has not been heard. Pure: times are
// passed in.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/observe/status.hpp"
#include "trainer/plan/mesh.hpp"
#include "trainer/runtime/batch_book.hpp"
#include "trainer/runtime/task_book.hpp"

namespace trainer::runtime {

class ReplicaWatch {
 public:
  /// `timeout`: seconds of silence that a replica may keep. `servers` are ranks behind the mesh.
  ReplicaWatch(const plan::Mesh& mesh, int servers, double timeout);

  /// Everybody begins to work, or goes on behind a pause.
  void begin(double now);
  void given(int replica, const StreamBatch& batch, std::int64_t clock, double now);
  /// It has computed what it was given.
  void reported(int replica, bool counts, double now);
  /// It waits for an answer of the coordinator (true), or has got one: then it must be heard again.
  void waits(int replica, bool waits, double now);
  /// It pulls, pushes, or does something else that the server beside the coordinator sees.
  void heard(int replica, double now);
  /// The one who listens stood still itself.
  void hear_all(double now);
  void pulled(int replica, std::int64_t version, double now);

  /// "" or the message that ends the run: who has been silent too long, and what it holds. `parked`: [replica] the
  /// server beside the coordinator owes it something, or it has paused.
  std::string silent(const std::vector<bool>& parked, double now) const;

  /// The same of an update of bsp: who has begun to push, but whose gradients do not come; a server's norms.
  std::string silent_push(int replica, std::int64_t step, double silence) const;
  std::string silent_server(int server, std::int64_t step, double silence) const;

  /// Rows of the replicas; `version` of the server beside the coordinator; `tasks` may be null.
  void fill(observe::RunStatus& status, const std::vector<bool>& parked, std::int64_t version, const TaskBook* tasks,
            double now) const;

 private:
  struct Replica {
    StreamBatch batch;
    bool works = false;  // has a batch in hand
    bool waits = false;
    std::int64_t clock = 0, pulled = 0;
    std::int64_t batches = 0, samples = 0, dropped = 0;
    double since = 0;  // the batch was given
    double heard = 0;
    double seconds_per_sample = 0;  // 0: not known
  };
  Replica& at(int replica) { return replicas_[static_cast<std::size_t>(replica)]; }
  std::string ranks_of(std::size_t replica) const;

  const plan::Mesh mesh_;
  const int servers_;
  const double timeout_;
  std::vector<Replica> replicas_;
};

}  // namespace trainer::runtime
