// The serial order of several servers' logs: for runs simulated at random it is one that could have been; logs that no
// run could have written are refused with the line.
#include "trainer/runtime/exchange_order.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <random>

#include "trainer/core/error.hpp"

using namespace trainer;
using runtime::ExchangeKind;
using runtime::ExchangeLog;
using runtime::ReplayAction;
using Kind = runtime::ReplayAction::Kind;

namespace {

struct Servers {
  int servers = 2;
  std::int64_t replicas = 3;
  std::string consistency = "async";
};

std::vector<std::string> paths_of(const Servers& shape) {
  std::vector<std::string> paths;
  for (int s = 0; s < shape.servers; ++s) paths.push_back(runtime::exchange_log_path("run", s));
  return paths;
}

// Replicas that pull from and push to servers in any order, as messages may travel.
std::vector<ExchangeLog> random_run(const Servers& shape, std::int64_t batches, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  struct Replica {
    std::int64_t clock = 0, first = 0;
    std::vector<bool> pulled, pushed;
    bool drops = false;
    std::int64_t left = 0;
  };
  const auto servers = static_cast<std::size_t>(shape.servers);
  std::vector<ExchangeLog> logs;
  for (int s = 0; s < shape.servers; ++s) {
    logs.push_back({{"0123456789abcdef", s, shape.servers, shape.replicas, shape.consistency, 0}, {}, false});
  }
  std::vector<std::int64_t> version(servers, 0);
  std::vector<Replica> replicas(static_cast<std::size_t>(shape.replicas));
  std::int64_t cursor = 0;
  const auto begin = [&](Replica& replica) {
    ++replica.clock;
    replica.first = 4 * cursor++;
    replica.pulled.assign(servers, false);
    replica.pushed.assign(servers, false);
    replica.drops = random() % 5 == 0;
  };
  const auto all = [](const std::vector<bool>& of) { return std::find(of.begin(), of.end(), false) == of.end(); };
  for (Replica& replica : replicas) {
    replica.left = batches;
    begin(replica);
  }
  const auto log = [&](std::size_t s, ExchangeKind kind, std::size_t r) {
    logs[s].records.push_back({static_cast<std::int64_t>(logs[s].records.size()) + 1, kind,
                               static_cast<std::int64_t>(r), replicas[r].clock, version[s], replicas[r].first, 4});
  };
  for (std::int64_t open = shape.replicas; open > 0;) {
    const std::size_t r = random() % replicas.size(), s = random() % servers;
    Replica& replica = replicas[r];
    if (replica.left == 0) continue;
    if (!replica.pulled[s]) {
      replica.pulled[s] = true;
      log(s, ExchangeKind::Pull, r);
    } else if (all(replica.pulled) && !replica.pushed[s]) {
      replica.pushed[s] = true;
      if (!replica.drops) {
        ++version[s];
        log(s, ExchangeKind::Push, r);
      }
    }
    if (all(replica.pulled) && all(replica.pushed)) {
      if (--replica.left == 0)
        --open;
      else
        begin(replica);
    }
  }
  return logs;
}

std::vector<runtime::ReplayPart> whole(const std::vector<ExchangeLog>& logs) {
  std::vector<runtime::ReplayPart> parts;
  for (const ExchangeLog& log : logs) parts.push_back({0, static_cast<std::int64_t>(log.records.size()), 0});
  return parts;
}

// Walks the actions and checks that each could happen where it stands.
void check_order(const std::vector<ExchangeLog>& logs, const std::vector<ReplayAction>& actions) {
  std::vector<std::size_t> at(logs.size());
  std::map<std::int64_t, std::vector<std::int64_t>> held;  // [replica][server] clock of what it has pulled
  std::map<std::int64_t, std::int64_t> gradient;           // [replica] clock of its gradient
  std::size_t computed = 0, pushes = 0;
  for (const ReplayAction& action : actions) {
    auto& has = held[action.replica];
    has.resize(logs.size(), -1);
    if (action.kind == Kind::Compute) {
      for (const std::int64_t clock : has) CHECK(clock == action.clock);
      gradient[action.replica] = action.clock;
      ++computed;
      continue;
    }
    const auto s = static_cast<std::size_t>(action.server);
    const runtime::ExchangeRecord& record = logs[s].records[at[s]++];
    CHECK(record.replica == action.replica);
    CHECK(record.clock == action.clock);
    CHECK((record.kind == ExchangeKind::Pull) == (action.kind == Kind::Pull));
    if (action.kind == Kind::Pull) {
      CHECK(action.version == record.version);
      has[s] = action.clock;
    } else {
      CHECK(action.version == record.version - 1);
      CHECK(gradient[action.replica] == action.clock);
      ++pushes;
    }
  }
  for (std::size_t s = 0; s < logs.size(); ++s) CHECK(at[s] == logs[s].records.size());
  CHECK(computed * logs.size() == pushes);
}

std::string complaint(const std::vector<ExchangeLog>& logs) {
  try {
    runtime::serial_order(logs, whole(logs), paths_of({static_cast<int>(logs.size()), 0, ""}));
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Storage);
    return error.what();
  }
  return "";
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

void renumber(ExchangeLog& log) {
  for (std::size_t i = 0; i < log.records.size(); ++i) log.records[i].sequence = static_cast<std::int64_t>(i) + 1;
}

}  // namespace

TEST_CASE("the order of random runs is one that could have been") {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    INFO("seed ", seed);
    const Servers shape{1 + static_cast<int>(seed % 4), 1 + static_cast<std::int64_t>(seed / 4 % 5),
                        seed % 2 ? "ssp" : "async"};
    const auto logs = random_run(shape, 12, seed);
    check_order(logs, runtime::serial_order(logs, whole(logs), paths_of(shape)));
  }
}

TEST_CASE("a replay may begin and end at any checkpoint") {
  // Two runs behind each other: at the seam all replicas have pushed.
  const Servers shape{3, 2, "async"};
  auto logs = random_run(shape, 6, 5);
  const auto more = random_run(shape, 4, 6);
  auto parts = whole(logs);
  for (std::size_t s = 0; s < logs.size(); ++s) {
    const std::int64_t version = logs[s].records.back().version;
    parts[s] = {parts[s].to, parts[s].to + static_cast<std::int64_t>(more[s].records.size()), version};
    for (runtime::ExchangeRecord record : more[s].records) {
      record.version += version;
      record.clock += 6;
      logs[s].records.push_back(record);
    }
    renumber(logs[s]);
  }
  auto second = runtime::serial_order(logs, parts, paths_of(shape));
  const auto alone = runtime::serial_order(more, whole(more), paths_of(shape));
  REQUIRE(second.size() == alone.size());
  for (std::size_t i = 0; i < alone.size(); ++i) {
    CHECK(second[i].kind == alone[i].kind);
    CHECK(second[i].clock == alone[i].clock + 6);
    CHECK(second[i].server == alone[i].server);
  }
  parts[1].to += 1;
  CHECK_THROWS_WITH_AS(runtime::serial_order(logs, parts, paths_of(shape)), doctest::Contains("exchange-1.log: has"),
                       Error);
}

TEST_CASE("bulk-synchronous servers apply what was pushed") {
  ExchangeLog log{{"0123456789abcdef", 0, 1, 2, "bsp", 0}, {}, false};
  const auto add = [&](ExchangeKind kind, std::int64_t replica, std::int64_t clock, std::int64_t version) {
    log.records.push_back({static_cast<std::int64_t>(log.records.size()) + 1, kind, replica, clock, version, 0, 4});
  };
  add(ExchangeKind::Pull, 0, 1, 0);
  add(ExchangeKind::Pull, 1, 1, 0);
  add(ExchangeKind::Push, 1, 1, 0);
  add(ExchangeKind::Push, 0, 1, 0);
  add(ExchangeKind::Apply, -1, 1, 1);
  add(ExchangeKind::Pull, 1, 2, 1);
  const auto actions = runtime::serial_order({log}, whole({log}), {"run/exchange-0.log"});
  std::vector<Kind> kinds;
  for (const ReplayAction& action : actions) kinds.push_back(action.kind);
  CHECK(kinds == std::vector<Kind>{Kind::Pull, Kind::Pull, Kind::Compute, Kind::Push, Kind::Compute, Kind::Push,
                                   Kind::Apply, Kind::Pull});
  CHECK(actions[6].version == 0);
  add(ExchangeKind::Apply, -1, 2, 2);
  CHECK(has(complaint({log}), "exchange-0.log:9: applies, but nothing was pushed"));
}

TEST_CASE("logs that no run could have written are refused") {
  const Servers shape{2, 2, "async"};
  const auto logs = random_run(shape, 5, 3);
  const auto find = [](const ExchangeLog& log, ExchangeKind kind, std::size_t from) {
    while (log.records[from].kind != kind) ++from;
    return from;
  };
  SUBCASE("a pull of a version that was not there") {
    auto wrong = logs;
    wrong[1].records[find(logs[1], ExchangeKind::Pull, 4)].version += 1;
    CHECK(has(complaint(wrong), "has version"));
  }
  SUBCASE("a push without a pull") {
    auto wrong = logs;
    const std::size_t at = find(logs[0], ExchangeKind::Pull, 0);
    wrong[0].records.erase(wrong[0].records.begin() + static_cast<std::ptrdiff_t>(at));
    renumber(wrong[0]);
    CHECK(has(complaint(wrong), "run/exchange-0.log:"));
    CHECK(has(complaint(wrong), "contradicts itself"));
  }
  SUBCASE("a push of another batch") {
    auto wrong = logs;
    wrong[0].records[find(logs[0], ExchangeKind::Push, 0)].first += 4;
    CHECK(has(complaint(wrong), "but has pulled for clock"));
  }
  SUBCASE("servers that tell another story") {
    auto wrong = logs;
    for (auto& record : wrong[1].records) {
      if (record.replica == 1 && record.clock == 3) record.first += 400;
    }
    CHECK(has(complaint(wrong), "replica 1 is at clock 3"));
  }
  SUBCASE("a log that ends early") {
    auto wrong = logs;
    wrong[1].records.resize(wrong[1].records.size() / 2);
    CHECK(has(complaint(wrong), "run/exchange-1.log"));
  }
  SUBCASE("logs of two runs") {
    auto wrong = logs;
    wrong[1].header.run = "fedcba9876543210";
    CHECK(has(complaint(wrong), "the logs of one run are needed"));
    wrong = logs;
    wrong.pop_back();
    CHECK(has(complaint(wrong), "the logs of one run are needed"));
  }
  SUBCASE("each waits for the other") {
    // Replica 0 pulls from server 1 behind replica 1's push there, and the other way round.
    std::vector<ExchangeLog> wrong;
    for (int s = 0; s < 2; ++s) {
      const std::int64_t one = s, two = 1 - s;
      ExchangeLog log{{"0123456789abcdef", s, 2, 2, "async", 0}, {}, false};
      log.records.push_back({1, ExchangeKind::Pull, one, 1, 0, 4 * one, 4});
      log.records.push_back({2, ExchangeKind::Push, one, 1, 1, 4 * one, 4});
      log.records.push_back({3, ExchangeKind::Pull, two, 1, 1, 4 * two, 4});
      log.records.push_back({4, ExchangeKind::Push, two, 1, 2, 4 * two, 4});
      wrong.push_back(log);
    }
    CHECK(has(complaint(wrong), "exchange-0.log:4: replica 0 pushes what it could only compute"));
  }
}
