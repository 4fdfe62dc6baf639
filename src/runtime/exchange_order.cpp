#include "trainer/runtime/exchange_order.hpp"

#include <fmt/format.h>

#include <string_view>

#include "trainer/core/error.hpp"

namespace trainer::runtime {

namespace {

constexpr std::size_t kHeaderLines = 2;

// A batch of a replica as one server saw it.
struct Turn {
  std::int64_t clock = 0, first = 0, count = 0;
  bool pushed = false;
  std::size_t line = 0;  // of the pull
  bool same_batch(const Turn& other) const {
    return clock == other.clock && first == other.first && count == other.count;
  }
};

[[noreturn]] void contradict(const std::string& path, std::size_t line, const std::string& what) {
  throw Error(ExitCode::Storage,
              fmt::format("{}:{}: {}; the log contradicts itself, so it cannot be replayed", path, line, what));
}

std::string batch_name(const Turn& turn) {
  return fmt::format("clock {}, samples {} {}", turn.clock, turn.first, turn.count);
}

// One server's log, walked alone: what can be seen to be wrong without the others, and each replica's batches in turn.
std::vector<std::vector<Turn>> turns_of(const ExchangeLog& log, const ReplayPart& part, const std::string& path) {
  const bool together = log.header.consistency == "bsp";
  std::vector<std::vector<Turn>> turns(static_cast<std::size_t>(log.header.replicas));
  std::int64_t version = part.version;
  std::int64_t waiting = 0;  // pushes since the last apply
  for (auto i = static_cast<std::size_t>(part.from); i < static_cast<std::size_t>(part.to); ++i) {
    const ExchangeRecord& record = log.records[i];
    const std::size_t line = kHeaderLines + i + 1;
    const bool applies = together ? record.kind == ExchangeKind::Apply : record.kind == ExchangeKind::Push;
    if (record.version != version + (applies ? 1 : 0)) {
      contradict(path, line, fmt::format("has version {}, but the server was at {}", record.version, version));
    }
    version = record.version;
    if (record.kind == ExchangeKind::Apply) {
      if (!together) contradict(path, line, "is an apply, which only consistency bsp has");
      if (waiting == 0) contradict(path, line, "applies, but nothing was pushed since the last apply");
      waiting = 0;
      continue;
    }
    auto& mine = turns[static_cast<std::size_t>(record.replica)];
    const Turn turn{record.clock, record.first, record.count, false, line};
    if (record.kind == ExchangeKind::Pull) {
      if (!mine.empty() && turn.clock < mine.back().clock) {
        contradict(path, line, fmt::format("pulls at clock {} after clock {}", turn.clock, mine.back().clock));
      }
      mine.push_back(turn);
      continue;
    }
    ++waiting;
    if (mine.empty() || mine.back().pushed) {
      contradict(path, line,
                 fmt::format("replica {} pushes without having pulled since its last push", record.replica));
    }
    if (!mine.back().same_batch(turn)) {
      contradict(path, line,
                 fmt::format("replica {} pushes {}, but has pulled for {}", record.replica, batch_name(turn),
                             batch_name(mine.back())));
    }
    mine.back().pushed = true;
  }
  return turns;
}

// [server][replica][turn]: all servers must tell the same story of each replica.
void compare_turns(const std::vector<std::vector<std::vector<Turn>>>& turns, const std::vector<std::string>& paths) {
  for (std::size_t s = 1; s < turns.size(); ++s) {
    for (std::size_t r = 0; r < turns[s].size(); ++r) {
      const std::vector<Turn>&one = turns[0][r], &other = turns[s][r];
      for (std::size_t k = 0; k < std::min(one.size(), other.size()); ++k) {
        if (one[k].same_batch(other[k]) && one[k].pushed == other[k].pushed) continue;
        contradict(paths[s], other[k].line,
                   fmt::format("replica {} is at {}{}, but in {}:{} at {}{}", r, batch_name(other[k]),
                               other[k].pushed ? " and pushes it" : "", paths[0], one[k].line, batch_name(one[k]),
                               one[k].pushed ? " and pushes it" : ""));
      }
      if (one.size() == other.size()) continue;
      const bool longer = one.size() > other.size();
      const Turn& more = longer ? one[other.size()] : other[one.size()];
      contradict(
          paths[longer ? 0 : s], more.line,
          fmt::format("replica {} is at {}, which {} does not have", r, batch_name(more), paths[longer ? s : 0]));
    }
  }
}

class Merge {
 public:
  Merge(const std::vector<ExchangeLog>& logs, const std::vector<ReplayPart>& parts,
        const std::vector<std::string>& paths)
      : logs_(logs), parts_(parts), paths_(paths), pulled_(logs.size()) {
    for (std::size_t s = 0; s < logs.size(); ++s) {
      at_.push_back(static_cast<std::size_t>(parts[s].from));
      pulled_[s].resize(static_cast<std::size_t>(logs[s].header.replicas));
    }
    computed_.resize(pulled_.front().size());
  }

  std::vector<ReplayAction> order() {
    for (bool moved = true; moved;) {
      moved = false;
      for (std::size_t s = 0; s < logs_.size(); ++s) {
        while (at_[s] < static_cast<std::size_t>(parts_[s].to) && take(s)) moved = true;
      }
    }
    for (std::size_t s = 0; s < logs_.size(); ++s) {
      if (at_[s] == static_cast<std::size_t>(parts_[s].to)) continue;
      const ExchangeRecord& record = logs_[s].records[at_[s]];
      contradict(paths_[s], kHeaderLines + at_[s] + 1,
                 fmt::format("replica {} pushes what it could only compute after a pull that comes later in another "
                             "server's log",
                             record.replica));
    }
    return std::move(actions_);
  }

 private:
  using Kind = ReplayAction::Kind;

  // The next operation of a server, unless it has to wait for others'.
  bool take(std::size_t s) {
    const ExchangeRecord& record = logs_[s].records[at_[s]];
    const std::int64_t before = record.version - (record.kind == ExchangeKind::Apply ? 1 : 0);
    ReplayAction action{Kind::Apply, static_cast<int>(s), record.replica, record.clock,
                        before,      record.first,        record.count};
    if (record.kind != ExchangeKind::Apply) {
      const auto r = static_cast<std::size_t>(record.replica);
      if (record.kind == ExchangeKind::Pull) {
        action.kind = Kind::Pull;
        ++pulled_[s][r];
      } else {
        if (!compute(r, pulled_[s][r], record)) return false;
        action.kind = Kind::Push;
        if (logs_[s].header.consistency != "bsp") action.version = record.version - 1;
      }
    }
    actions_.push_back(action);
    ++at_[s];
    return true;
  }

  // Whether the replica has computed its batch number `turn`; it does so when all servers' parameters are there.
  bool compute(std::size_t r, std::size_t turn, const ExchangeRecord& record) {
    if (computed_[r] == turn) return true;
    for (const auto& pulled : pulled_) {
      if (pulled[r] < turn) return false;
    }
    actions_.push_back({Kind::Compute, -1, record.replica, record.clock, 0, record.first, record.count});
    computed_[r] = turn;
    return true;
  }

  const std::vector<ExchangeLog>& logs_;
  const std::vector<ReplayPart>& parts_;
  const std::vector<std::string>& paths_;
  std::vector<std::size_t> at_;                   // [server] records taken
  std::vector<std::vector<std::size_t>> pulled_;  // [server][replica] pulls so far
  std::vector<std::size_t> computed_;             // [replica] number of the last batch computed
  std::vector<ReplayAction> actions_;
};

}  // namespace

void require_one_run(const std::vector<ExchangeLog>& logs, const std::vector<std::string>& paths) {
  for (std::size_t s = 0; s < logs.size(); ++s) {
    const ExchangeHeader& header = logs[s].header;
    ExchangeHeader expected = logs[0].header;
    expected.server = static_cast<int>(s);
    if (header == expected && header.servers == static_cast<int>(logs.size())) continue;
    throw Error(
        ExitCode::Storage,
        fmt::format("{}: is of server {} of {} of run {} (replicas {}, consistency {}, after {}), {} of server "
                    "{} of {} of run {} (replicas {}, consistency {}, after {}); the logs of one run are needed",
                    paths[s], header.server, header.servers, header.run, header.replicas, header.consistency,
                    header.after, paths[0], logs[0].header.server, logs[0].header.servers, logs[0].header.run,
                    logs[0].header.replicas, logs[0].header.consistency, logs[0].header.after));
  }
}

std::vector<ReplayAction> serial_order(const std::vector<ExchangeLog>& logs, const std::vector<ReplayPart>& parts,
                                       const std::vector<std::string>& paths) {
  require_one_run(logs, paths);
  std::vector<std::vector<std::vector<Turn>>> turns;
  for (std::size_t s = 0; s < logs.size(); ++s) {
    const auto records = static_cast<std::int64_t>(logs[s].records.size());
    if (parts[s].from < 0 || parts[s].from > parts[s].to || parts[s].to > records) {
      throw Error(ExitCode::Storage, fmt::format("{}: has {} operations; the checkpoint counts on those from {} to {}",
                                                 paths[s], records, parts[s].from + 1, parts[s].to));
    }
    turns.push_back(turns_of(logs[s], parts[s], paths[s]));
  }
  compare_turns(turns, paths);
  return Merge(logs, parts, paths).order();
}

}  // namespace trainer::runtime
