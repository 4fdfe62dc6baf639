// The status of a served run: what is written reads back, anything else is refused, and the table says what matters.
#include "trainer/observe/status.hpp"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <random>

#include "trainer/core/error.hpp"

using namespace trainer;
using observe::RunStatus;

namespace {

RunStatus running() {
  RunStatus s;
  s.written = 1e9;
  s.seconds = 75;
  s.consistency = "async";
  s.step = 40;
  s.total_steps = 200;
  s.epoch = 2;
  RunStatus::Replica fast;
  fast.rank = 0;
  fast.doing = "computing";
  fast.first = 640;
  fast.count = 8;
  fast.task = 9;
  fast.task_left = 3;
  fast.clock = 57;
  fast.staleness = 1;
  fast.batches = 57;
  fast.samples = 456;
  fast.samples_per_second = 2000;
  fast.heard = 0.012;
  RunStatus::Replica slow = fast;
  slow.rank = 2;
  slow.doing = "silent";
  slow.first = -1;
  slow.staleness = 12;
  slow.samples_per_second = 0;
  slow.heard = 31;
  s.replicas = {fast, slow};
  s.servers = {{4, 80}, {5, 79}};
  return s;
}

std::string complaint(const std::string& text) {
  try {
    observe::parse_status(text, "run/status.json");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Storage);
    return error.what();
  }
  return "";
}

bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("what is written reads back") {
  const std::string text = to_json(running());
  CHECK(to_json(observe::parse_status(text, "x")) == text);
  RunStatus ended = running();
  ended.state = "failed";
  ended.message = "replica 1 (rank 2) \xff is silent";
  ended.exit_code = 6;
  ended.replicas.clear();
  CHECK(observe::parse_status(to_json(ended), "x").exit_code == 6);
}

TEST_CASE("the table says who does what, how fast, how stale, and when nobody writes any more") {
  const std::string text = observe::status_text(running(), 1e9 + 1);
  CHECK(has(text, "running for 1 min 15 s: step 40 of 200, epoch 2, 2.0k samples/s, consistency async\n"));
  CHECK(has(text, "640 to 647"));
  CHECK(has(text, "silent"));
  CHECK(has(text, "31.0 s"));
  CHECK(has(text, "updates"));
  CHECK(!has(text, "warning"));
  CHECK(has(observe::status_text(running(), 1e9 + 90), "warning: this was written 1 min 30 s ago"));
  RunStatus ended = running();
  ended.state = "failed";
  ended.exit_code = 6;
  ended.message = "replica 1 was silent";
  const std::string last = observe::status_text(ended, 1e9 + 90);
  CHECK(has(last, "failed 1 min 30 s ago with code 6: step 40 of 200"));
  CHECK(has(last, "replica 1 was silent\n"));
  CHECK(!has(last, "warning"));
}

TEST_CASE("what is no status is refused, and nothing of it reaches the terminal raw") {
  CHECK(has(complaint(""), "run/status.json: has something else"));
  CHECK(has(complaint("{}"), "lacks \"state\""));
  auto json = nlohmann::json::parse(to_json(running()));
  for (const auto& [key, value] : json.items()) {
    auto less = json;
    less.erase(key);
    CHECK(has(complaint(less.dump()), ("lacks \"" + key + "\"").c_str()));
    less[key] = nullptr;
    CHECK(has(complaint(less.dump()), ("no sensible \"" + key + "\"").c_str()));
  }
  for (const auto& [key, value] : json["replicas"][0].items()) {
    auto less = json;
    less["replicas"][0].erase(key);
    CHECK(has(complaint(less.dump()), ("lacks \"" + key + "\"").c_str()));
  }
  json["message"] = "\x1b[2J";
  CHECK(observe::parse_status(json.dump(), "x").message == " [2J");
  const std::string text = to_json(running());
  std::mt19937_64 random(1);
  int read = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string damaged = text;
    for (std::uint64_t n = 1 + random() % 3; n > 0; --n)
      damaged[random() % damaged.size()] = static_cast<char>(random());
    try {
      observe::status_text(observe::parse_status(damaged, "x"), 1e9);
      ++read;
    } catch (const Error& error) {
      CHECK(error.code() == ExitCode::Storage);
    }
  }
  CHECK(read > 0);
}
