// The log of a parameter server: text that parses back, complaints that name the line, and going on from a checkpoint.
#include "trainer/runtime/exchange_log.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <random>

#include "support/memory_file_system.hpp"
#include "trainer/core/error.hpp"

using namespace trainer;
using runtime::ExchangeHeader;
using runtime::ExchangeKind;
using runtime::ExchangeLog;
using runtime::ExchangeRecord;

namespace {

ExchangeHeader header() {
  return {.run = "5f0c7a3b91d2e4f6", .server = 1, .servers = 3, .replicas = 4, .consistency = "ssp", .after = 0};
}

ExchangeLog random_log(std::uint64_t seed, std::int64_t length) {
  std::mt19937_64 random(seed);
  const auto any = [&] { return static_cast<std::int64_t>(random() >> (1 + random() % 63)); };
  ExchangeLog log{header(), {}, false};
  for (std::int64_t i = 1; i <= length; ++i) {
    const auto kind = static_cast<ExchangeKind>(random() % 3);
    const std::int64_t replica = kind == ExchangeKind::Apply ? -1 : static_cast<std::int64_t>(random() % 4);
    log.records.push_back({i, kind, replica, any(), any(), any(), any()});
  }
  return log;
}

std::string complaint(const std::string& text) {
  try {
    runtime::parse_exchange_log(text, "run/exchange-1.log");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Storage);
    return error.what();
  }
  return "";
}

bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("what is printed parses back, also when its last line is torn") {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    const ExchangeLog log = random_log(seed, static_cast<std::int64_t>(seed % 17));
    const std::string text = print(log);
    const ExchangeLog back = runtime::parse_exchange_log(text, "x");
    CHECK(back.header == log.header);
    CHECK(back.records == log.records);
    CHECK(!back.torn);
    CHECK(print(back) == text);
    if (log.records.empty()) continue;
    const ExchangeLog torn = runtime::parse_exchange_log(text.substr(0, text.size() - 1 - seed % 5), "x");
    CHECK(torn.torn);
    CHECK(torn.records == std::vector(log.records.begin(), log.records.end() - 1));
  }
}

TEST_CASE("the longest line fits") {
  constexpr auto kMost = std::numeric_limits<std::int64_t>::max();
  std::array<char, runtime::kExchangeLineBytes> line;
  CHECK(print(ExchangeRecord{kMost, ExchangeKind::Apply, kMost, kMost, kMost, kMost, kMost}, line) < line.size());
}

TEST_CASE("what is wrong with a log is said with its line") {
  const std::string head = print(header());
  CHECK(has(complaint(""), "ends before its header"));
  CHECK(has(complaint("trainer exchange log 2\n"), ":1: is \"trainer exchange log 2\""));
  CHECK(has(complaint("trainer exchange log 1\nrun 12 server 0 of 1\n"), ":2: is \"run 12"));
  const std::string wrong_server = "trainer exchange log 1\n" + std::string("run 5f0c7a3b91d2e4f6 server 3 of 3 ");
  CHECK(has(complaint(wrong_server + "replicas 4 consistency ssp after 0\n"), "expected run DIGITS"));
  for (const char* line :
       {"1 pull replica 0 clock 1 version 0 samples 0\n", "1 pull replica 0 clock 1 version 0 samples 0 8 9\n",
        "1 pull replica 0 clock 1 version 0 samples 0 8 \n", "1 pull replica 0 clock x version 0 samples 0 8\n",
        "1 fetch replica 0 clock 1 version 0 samples 0 8\n", "01 pull replica 0 clock 1 version 0 samples 0 8\n",
        "1 pull replica -1 clock 1 version 0 samples 0 8\n", "1 apply replica 0 clock 1 version 0 samples 0 8\n",
        "1 pull replica 0 clock 1 version -2 samples 0 8\n",
        "1 pull replica 0 clock 99999999999999999999 version 0 samples 0 8\n", "\n"}) {
    INFO(line);
    CHECK(has(complaint(head + line), "run/exchange-1.log:3: is "));
  }
  CHECK(has(complaint(head + "2 pull replica 0 clock 1 version 0 samples 0 8\n"), "sequence number 2; expected 1"));
  CHECK(has(complaint(head + "1 pull replica 4 clock 1 version 0 samples 0 8\n"), "replica 4, but the run has 4"));
}

TEST_CASE("any damage is a complaint or another log, never a crash") {
  const std::string text = print(random_log(7, 6));
  std::mt19937_64 random(3);
  for (int i = 0; i < 3000; ++i) {
    std::string damaged = text;
    for (std::uint64_t hits = 1 + random() % 3; hits > 0; --hits) {
      const std::size_t at = random() % damaged.size();
      if (random() % 2 == 0)
        damaged.erase(at, 1 + random() % 9);
      else
        damaged[at] = static_cast<char>(random());
      if (damaged.empty()) break;
    }
    std::string back = damaged.substr(0, damaged.rfind('\n') + 1);
    try {
      back = print(runtime::parse_exchange_log(damaged, "x"));
    } catch (const Error& error) {
      CHECK(error.code() == ExitCode::Storage);
    }
    CHECK(back == damaged.substr(0, damaged.rfind('\n') + 1));
  }
}

TEST_CASE("positions that any chain of forms of a run writes can be read") {
  test::MemoryFileSystem files;
  // Asynchronous with two replicas to step 10, then bulk-synchronous: an update a step from then on.
  const runtime::ExchangePosition position{.after = 10, .sequence = 30, .version = 20, .updates = 30};
  const std::string partial = storage::partial_path("run", 20);
  files.make_directories(partial);
  const std::string shard = storage::write_shard(files, partial, 0, {runtime::position_piece(position, 0, 1)});
  const std::string config = R"({"model": {"type": "mlp", "input_size": 4, "hidden_sizes": [8], "output_size": 3}})";
  const std::string path = storage::commit(files, "run", {20, config, {}, "test"}, {shard});
  const auto positions = runtime::exchange_positions(*storage::open_checkpoint(files, path));
  REQUIRE(positions.size() == 1);
  CHECK(positions.front().updates == 30);
}

TEST_CASE("a resumed run goes on behind what its checkpoint holds") {
  test::MemoryFileSystem files;
  files.make_directories("run");
  const std::string path = runtime::exchange_log_path("run", 1);
  const ExchangeLog whole = random_log(11, 9);
  const auto write = [&](std::int64_t keep, std::int64_t step, std::size_t from, std::size_t to) {
    runtime::ExchangeLogWriter log(files, "run", header(), keep, step);
    for (std::size_t i = from; i < to; ++i) log.append(whole.records[i]);
    CHECK(log.failure().empty());
    return log.anew();
  };
  CHECK(!write(0, 0, 0, 7));
  CHECK(runtime::read_exchange_log(files, path).records.size() == 7);
  CHECK(!write(4, 40, 4, 9));  // the three behind the checkpoint were lost with the run
  CHECK(runtime::read_exchange_log(files, path).records == whole.records);
  const std::string text = files.read_text(path, 1 << 20);
  files.truncate(path, text.size() - 3);
  CHECK(!write(8, 40, 8, 9));  // a torn line goes too
  CHECK(files.read_text(path, 1 << 20) == text);
  // More than there is: what is left of the log is of no use.
  CHECK(write(10, 40, 0, 2));
  const ExchangeLog anew = runtime::read_exchange_log(files, path);
  CHECK(anew.header.after == 40);
  CHECK(anew.records == std::vector(whole.records.begin(), whole.records.begin() + 2));
  // It begins elsewhere than the checkpoint says.
  CHECK(write(1, 20, 0, 3));
  CHECK(runtime::read_exchange_log(files, path).header.after == 20);
}

TEST_CASE("a run is known by what its numbers depend on") {
  const std::string text =
      R"({"model": {"type": "mlp", "input_size": 4, "hidden_sizes": [8], "output_size": 3}, "data": {"type": "synthetic"},
          "training": {"steps": 8, "batch_size": 8}, "optimizer": {"type": "sgd", "learning_rate": 0.1}})";
  const auto of = [&](const std::vector<std::string>& set) {
    return runtime::exchange_identity(config::parse(text, "test", set));
  };
  const std::string one = of({});
  CHECK(one.size() == 16);
  for (const char* same : {"training.eval_every=3", "training.time_limit=9", "checkpoint.directory=x",
                           "logging.every_steps=1", "training.hang_timeout=7", "parallel.pipeline=2"}) {
    INFO(same);
    CHECK(of({same}) == one);
  }
  for (const char* other : {"training.steps=9", "training.batch_size=16", "training.seed=9", "parallel.data=2",
                            "parallel.tensor=2", "optimizer.learning_rate=0.2", "model.hidden_sizes=[9]"}) {
    INFO(other);
    CHECK(of({other}) != one);
  }
  // What a checkpoint keeps of the configuration names the same run.
  CHECK(runtime::exchange_identity(config::parse(config::to_json(config::parse(text, "a", {})), "b")) == one);
}
