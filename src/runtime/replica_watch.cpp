#include "replica_watch.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace trainer::runtime {

namespace {

// Of a new measurement in what is shown of a replica's speed.
constexpr double kNewShare = 0.3;

constexpr const char* kGoesOn = "The run ends here, and goes on from its newest checkpoint with --resume";

}  // namespace

ReplicaWatch::ReplicaWatch(const plan::Mesh& mesh, int servers, double timeout)
    : mesh_(mesh), servers_(servers), timeout_(timeout), replicas_(static_cast<std::size_t>(mesh.data)) {}

void ReplicaWatch::begin(double now) {
  for (Replica& replica : replicas_) {
    replica.heard = now;
    replica.works = replica.waits = false;
  }
}

void ReplicaWatch::given(int r, const StreamBatch& batch, std::int64_t clock, double now) {
  Replica& replica = at(r);
  replica.batch = batch;
  replica.works = true;
  replica.clock = clock;
  replica.since = now;
}

void ReplicaWatch::reported(int r, bool counts, double now) {
  Replica& replica = at(r);
  const double pace = (now - replica.since) / static_cast<double>(std::max<std::int64_t>(1, replica.batch.size));
  double& known = replica.seconds_per_sample;
  known = known == 0 ? pace : (1 - kNewShare) * known + kNewShare * pace;
  replica.works = false;
  if (!counts) {
    ++replica.dropped;
    return;
  }
  ++replica.batches;
  replica.samples += replica.batch.size;
}

void ReplicaWatch::waits(int r, bool waits, double now) {
  at(r).waits = waits;
  heard(r, now);
}

void ReplicaWatch::heard(int r, double now) { at(r).heard = now; }

void ReplicaWatch::hear_all(double now) {
  for (Replica& replica : replicas_) replica.heard = now;
}

void ReplicaWatch::pulled(int r, std::int64_t version, double now) {
  at(r).pulled = version;
  heard(r, now);
}

std::string ReplicaWatch::ranks_of(std::size_t r) const {
  std::vector<std::int64_t> ranks;
  for (std::int64_t p = 0; p < mesh_.pipeline; ++p) {
    for (std::int64_t t = 0; t < mesh_.tensor; ++t) {
      ranks.push_back(mesh_.rank({.data = static_cast<std::int64_t>(r), .pipeline = p, .tensor = t}));
    }
  }
  return ranks.size() == 1 ? fmt::format("rank {}", ranks.front()) : fmt::format("ranks {}", fmt::join(ranks, ", "));
}

std::string ReplicaWatch::silent(const std::vector<bool>& parked, double now) const {
  for (std::size_t r = 0; r < replicas_.size(); ++r) {
    const Replica& replica = replicas_[r];
    const double silence = now - replica.heard;
    if (replica.waits || parked[r] || silence <= timeout_) continue;
    std::string held = "it has not begun a batch";
    if (replica.batch.size > 0) {
      held = fmt::format("it {} samples {} to {} (clock {}{})", replica.works ? "holds" : "has reported",
                         replica.batch.first, replica.batch.first + replica.batch.size - 1, replica.clock,
                         replica.batch.task > 0 ? fmt::format(", task {}", replica.batch.task) : "");
    }
    const std::int64_t first = mesh_.size() + 1;
    const std::string others =
        servers_ == 1 ? ""
                      : fmt::format(", or waits for a server that does ({})",
                                    servers_ == 2 ? fmt::format("rank {}", first)
                                                  : fmt::format("ranks {} to {}", first, first + servers_ - 2));
    return fmt::format(
        "replica {} ({}) has been silent for {:.1f} s, and parallel.timeout is {} s: {}; it is stopped, "
        "hangs{}, or takes longer for a batch. {}",
        r, ranks_of(r), silence, timeout_, held, others, kGoesOn);
  }
  return "";
}

std::string ReplicaWatch::silent_push(int replica, std::int64_t step, double silence) const {
  return fmt::format(
      "the gradients of replica {} ({}) for step {} have not come for {:.1f} s, and parallel.timeout is {} s: it is "
      "stopped or hangs. {}",
      replica, ranks_of(static_cast<std::size_t>(replica)), step, silence, timeout_, kGoesOn);
}

std::string ReplicaWatch::silent_server(int server, std::int64_t step, double silence) const {
  return fmt::format(
      "server {} (rank {}) has not finished step {} for {:.1f} s, and parallel.timeout is {} s: it is stopped, hangs, "
      "or waits for gradients of a replica that does. {}",
      server, mesh_.size() + server, step, silence, timeout_, kGoesOn);
}

void ReplicaWatch::fill(observe::RunStatus& status, const std::vector<bool>& parked, std::int64_t version,
                        const TaskBook* tasks, double now) const {
  status.replicas.clear();
  for (std::size_t r = 0; r < replicas_.size(); ++r) {
    const Replica& replica = replicas_[r];
    observe::RunStatus::Replica row;
    row.rank = static_cast<int>(mesh_.rank({.data = static_cast<std::int64_t>(r)}));
    const bool idle = replica.waits || parked[r];
    row.heard = idle ? 0 : now - replica.heard;
    row.doing = idle                                       ? "waiting"
                : row.heard > std::min(timeout_ / 2, 10.0) ? "silent"
                : replica.works                            ? "computing"
                                                           : "pushing";
    if (replica.works) {
      row.first = replica.batch.first;
      row.count = replica.batch.size;
      row.task = std::max<std::int64_t>(0, replica.batch.task);
      row.staleness = std::max<std::int64_t>(0, version - replica.pulled);
    }
    row.clock = replica.clock;
    row.batches = replica.batches;
    row.samples = replica.samples;
    row.dropped = replica.dropped;
    if (replica.seconds_per_sample > 0) row.samples_per_second = 1 / replica.seconds_per_sample;
    if (tasks != nullptr) {
      const TaskRow task = tasks->row(static_cast<int>(r));
      row.task_left = task.left;
      row.taken = task.taken;
    }
    status.replicas.push_back(std::move(row));
  }
}

}  // namespace trainer::runtime
