// metrics.jsonl: its keys, that numbers survive it, how a resumed run continues it, and what a full disk does.
#include <doctest/doctest.h>
#include <signal.h>
#include <sys/resource.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <vector>

#include "support.hpp"
#include "trainer/core/error.hpp"
#include "trainer/observe/reporters.hpp"

namespace trainer::observe {
namespace {

using Json = nlohmann::json;

/// Every line must be a JSON object and end in a newline.
std::vector<Json> objects(const std::string& text) {
  std::vector<Json> all;
  CHECK((text.empty() || text.back() == '\n'));
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    all.push_back(Json::parse(line));
    CHECK(all.back().is_object());
  }
  return all;
}

std::vector<std::int64_t> steps(const std::string& text) {
  std::vector<std::int64_t> all;
  for (const Json& object : objects(text)) all.push_back(object.at("step"));
  return all;
}

std::set<std::string> keys(const Json& object) {
  std::set<std::string> all;
  for (const auto& item : object.items()) all.insert(item.key());
  return all;
}

using Steps = std::vector<std::int64_t>;

TEST_CASE("a step's keys and numbers") {
  const TemporaryDirectory directory;
  const std::string path = directory.path() + "/deep/run/metrics.jsonl";  // directories are created
  StepReport plain = step_report(1, 3);
  plain.tokens = plain.step_tokens = 0;
  plain.peak_flops = 0;
  StepReport full = step_report(2, 3);
  full.allocations = 0;
  full.loss = 0.1 + 0.2;
  full.grad_norm = 5e-324;
  full.learning_rate = 1.0 / 3.0;
  std::vector<TimeSplit> splits(2);
  splits[0].forward = 0.25;
  splits[1].bubble = 1.23456789012;
  full.splits = splits;
  StepReport broken = step_report(3, 3);
  broken.loss = std::nan("");
  broken.grad_norm = std::numeric_limits<double>::infinity();
  {
    const auto metrics = make_metrics(directory.path() + "/deep/run", 1, 0);
    metrics->step(plain);
    CHECK(objects(read_file(path)).size() == 1);  // flushed at once
    metrics->step(full);
    metrics->step(broken);
  }
  const std::vector<Json> lines = objects(read_file(path));
  REQUIRE(lines.size() == 3);
  const std::set<std::string> always = {"step",         "loss",   "grad_norm", "learning_rate",
                                        "step_seconds", "tokens", "samples",   "samples_per_second"};
  std::set<std::string> everything = always;
  everything.insert({"tokens_per_second", "flops_share", "allocations", "time"});
  CHECK(keys(lines[0]) == always);
  CHECK(keys(lines[1]) == everything);
  CHECK(lines[0]["samples_per_second"] == 8.0);
  CHECK(lines[0]["tokens"] == 0);
  CHECK(lines[1]["step"] == 2);
  CHECK(lines[1]["loss"].get<double>() == full.loss);
  CHECK(lines[1]["grad_norm"].get<double>() == full.grad_norm);
  CHECK(lines[1]["learning_rate"].get<double>() == full.learning_rate);
  CHECK(lines[1]["step_seconds"] == 0.5);
  CHECK(lines[1]["tokens_per_second"] == 1024.0);
  CHECK(lines[1]["samples"] == 8);
  CHECK(lines[1]["tokens"] == 1024);
  CHECK(lines[1]["flops_share"] == 0.25);
  CHECK(lines[1]["allocations"] == 0);
  CHECK(lines[1]["time"] == Json{{"forward", {0.25, 0.0}}, {"bubble", {0.0, 1.23456789}}});
  CHECK(lines[2]["loss"].is_null());
  CHECK(lines[2]["grad_norm"].is_null());
  CHECK(read_file(path).starts_with("{\"step\":1,\"loss\":"));
}

TEST_CASE("an evaluation's keys, never loss") {
  const TemporaryDirectory directory;
  const auto metrics = make_metrics(directory.path(), 10, 0);
  metrics->evaluation({.step = 7, .loss = 2.5, .accuracy = {}, .targets = 100, .seconds = 0.25});
  metrics->evaluation({.step = 8, .loss = 2.25, .accuracy = 0.5, .targets = 100, .seconds = 0.25});
  const auto lines = objects(read_file(directory.path() + "/metrics.jsonl"));
  REQUIRE(lines.size() == 2);
  CHECK(lines[0] == Json{{"step", 7}, {"validation_loss", 2.5}, {"validation_targets", 100}, {"seconds", 0.25}});
  CHECK(keys(lines[1]) ==
        std::set<std::string>{"step", "validation_loss", "accuracy", "validation_targets", "seconds"});
  CHECK(lines[1]["accuracy"] == 0.5);
}

TEST_CASE("logged are the first, every n-th and the last step") {
  const TemporaryDirectory directory;
  const std::string path = directory.path() + "/metrics.jsonl";
  for (const auto& [every, expected] :
       {std::pair<std::int64_t, Steps>{10, {1, 10, 20, 25}}, {0, {1, 25}}, {100, {1, 25}}}) {
    const auto metrics = make_metrics(directory.path(), every, 0);  // 0 starts the file anew
    for (std::int64_t step = 1; step <= 25; ++step) metrics->step(step_report(step, 25));
    CHECK(steps(read_file(path)) == expected);
  }
}

TEST_CASE("a resumed run continues the file as if it had never stopped") {
  const TemporaryDirectory whole, cut;
  const auto run = [](Observer& metrics, std::int64_t first, std::int64_t last) {
    for (std::int64_t step = first; step <= last; ++step) {
      metrics.step(step_report(step, 40));
      if (step % 8 == 0) metrics.evaluation({.step = step, .loss = 1, .accuracy = {}, .targets = 1, .seconds = 1});
    }
  };
  run(*make_metrics(whole.path(), 5, 0), 1, 40);
  run(*make_metrics(cut.path(), 5, 0), 1, 27);
  write_file(cut.path() + "/metrics.jsonl", read_file(cut.path() + "/metrics.jsonl") + "{\"step\":27,\"lo");  // killed
  run(*make_metrics(cut.path(), 5, 16), 17, 40);
  CHECK(read_file(cut.path() + "/metrics.jsonl") == read_file(whole.path() + "/metrics.jsonl"));
}

TEST_CASE("opening keeps whole lines up to the resumed step and drops the rest") {
  const TemporaryDirectory directory;
  const std::string path = directory.path() + "/metrics.jsonl";
  const auto opened = [&](const std::string& text, std::int64_t resume_step) {
    write_file(path, text);
    make_metrics(directory.path(), 1, resume_step);
    return read_file(path);
  };
  const std::string a = "{\"step\":1,\"loss\":2}\n", b = "{\"step\":2,\"validation_loss\":2}\n", c = "{\"step\":3}\n";
  CHECK(opened(a + b + c, 2) == a + b);
  CHECK(opened(a + b + c, 9) == a + b + c);
  CHECK(opened(a + b + c, 0).empty());
  CHECK(opened(a + b + "{\"step\":3", 9) == a + b);
  CHECK(opened(a + b + "{\"step\":3}", 9) == a + b + c);  // whole but for its newline
  CHECK(opened(a + "{\"step\":\n" + b + c, 2) == a + b);  // a broken line does not cost those after it
  CHECK(opened(a + std::string(5, '\0') + "\n" + b, 2) == a + b);
  CHECK(opened(a + "[1]\n7\n{\"loss\":1}\n{\"step\":\"1\"}\n\n" + b, 2) == a + b);
  CHECK(opened(c + a + b, 2) == a + b);
  CHECK(opened("", 5).empty());
  std::filesystem::remove(path);
  make_metrics(directory.path(), 1, 5);
  CHECK(read_file(path).empty());
  for (const auto& entry : std::filesystem::directory_iterator(directory.path())) {
    CHECK(entry.path().filename() == "metrics.jsonl");  // no temporary file stays
  }
}

TEST_CASE("a place that cannot be written is an error at once") {
  const TemporaryDirectory directory;
  write_file(directory.path() + "/file", "x");
  const auto code_of = [](const std::string& place) {
    try {
      make_metrics(place, 1, 0);
    } catch (const Error& error) {
      CHECK(std::string(error.what()).find(place) != std::string::npos);
      return error.code();
    }
    return ExitCode::Done;
  };
  CHECK(code_of(directory.path() + "/file/below") == ExitCode::Storage);
  std::filesystem::create_directories(directory.path() + "/taken/metrics.jsonl");
  CHECK(code_of(directory.path() + "/taken") == ExitCode::Storage);
}

/// While it lives, files of this process end at `bytes`.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    ::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    ::signal(SIGXFSZ, SIG_DFL);
  }

 private:
  rlimit before_{};
};

TEST_CASE("a full disk is one warning, no partial line, and no end of the training") {
  const TemporaryDirectory directory;
  const std::string path = directory.path() + "/metrics.jsonl";
  Listener listener;
  const auto metrics = make_metrics(directory.path(), 1, 0, &listener);
  metrics->step(step_report(1, 9));
  const std::string one = read_file(path);
  {
    const FileSizeLimit limit(one.size() + 20);  // room for a part of the second line
    for (std::int64_t step = 2; step <= 5; ++step) metrics->step(step_report(step, 9));
    CHECK(read_file(path) == one);
  }
  metrics->step(step_report(6, 9));
  CHECK(steps(read_file(path)) == Steps{1, 6});
  CHECK(listener.heard.starts_with("warning " + path + ": cannot be written (File too large)"));
  CHECK(listener.heard.find("warning", 1) == std::string::npos);
}

TEST_CASE("a device without room is one warning") {
  if (!std::filesystem::exists("/dev/full")) {
    MESSAGE("skipped: no /dev/full");
    return;
  }
  const TemporaryDirectory directory;
  std::filesystem::create_symlink("/dev/full", directory.path() + "/metrics.jsonl");
  Listener listener;
  const auto metrics = make_metrics(directory.path(), 1, 0, &listener);
  for (std::int64_t step = 1; step <= 3; ++step) metrics->step(step_report(step, 9));
  CHECK(listener.heard.find("No space left on device") != std::string::npos);
  CHECK(listener.heard.find("warning", 1) == std::string::npos);
}

}  // namespace
}  // namespace trainer::observe
