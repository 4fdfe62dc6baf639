#include "trainer/observe/status.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "trainer/core/error.hpp"
#include "trainer/observe/reporters.hpp"

namespace trainer::observe {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kMostText = 2000;

// Reads one object; what is missing or of another type is a complaint.
class Reader {
 public:
  Reader(const Json& object, const std::string& path) : object_(object), path_(path) {
    if (!object.is_object()) refuse("has something else where an object should be");
  }

  std::int64_t integer(const char* key) const {
    const Json& value = at(key);
    const bool fits = !value.is_number_unsigned() || value.get<std::uint64_t>() <= kMost;
    if (!value.is_number_integer() || !fits) wrong(key);
    return value.get<std::int64_t>();
  }
  int rank(const char* key) const {
    const std::int64_t value = integer(key);
    if (value < 0 || value > 1 << 24) wrong(key);
    return static_cast<int>(value);
  }
  double number(const char* key) const {
    const Json& value = at(key);
    if (!value.is_number() || !(std::abs(value.get<double>()) < 1e15)) wrong(key);
    return value.get<double>();
  }
  std::string text(const char* key) const {
    const Json& value = at(key);
    if (!value.is_string()) wrong(key);
    std::string text = value.get<std::string>().substr(0, kMostText);
    for (char& c : text) {
      if (static_cast<unsigned char>(c) < ' ' || c == '\x7f') c = ' ';  // nothing that a terminal would obey
    }
    return text;
  }
  const Json& list(const char* key) const {
    const Json& value = at(key);
    if (!value.is_array()) wrong(key);
    return value;
  }
  [[noreturn]] void refuse(const std::string& what) const {
    throw Error(ExitCode::Storage,
                fmt::format("{}: {}; it is not what this version of trainer writes: start the run anew, or look with "
                            "the version that runs it",
                            path_, what));
  }

 private:
  static constexpr auto kMost = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  const Json& at(const char* key) const {
    const auto found = object_.find(key);
    if (found == object_.end()) refuse(fmt::format("lacks \"{}\"", key));
    return *found;
  }
  [[noreturn]] void wrong(const char* key) const { refuse(fmt::format("has no sensible \"{}\"", key)); }

  const Json& object_;
  const std::string& path_;
};

RunStatus::Replica replica_of(const Json& json, const std::string& path) {
  const Reader in(json, path);
  RunStatus::Replica r;
  r.rank = in.rank("rank");
  r.doing = in.text("doing");
  r.first = in.integer("first");
  r.count = in.integer("count");
  r.task = in.integer("task");
  r.task_left = in.integer("task_left");
  r.clock = in.integer("clock");
  r.staleness = in.integer("staleness");
  r.batches = in.integer("batches");
  r.samples = in.integer("samples");
  r.dropped = in.integer("dropped");
  r.taken = in.integer("taken");
  r.samples_per_second = in.number("samples_per_second");
  r.heard = in.number("heard");
  return r;
}

std::string ago(double seconds) { return human_duration(std::max(0.0, seconds)) + " ago"; }

std::string replicas_table(const RunStatus& status) {
  const bool tasks =
      std::any_of(status.replicas.begin(), status.replicas.end(), [](const auto& r) { return r.task > 0; });
  std::vector<std::string> header{"replica", "rank", "is", "samples in hand"};
  if (tasks) header.insert(header.end(), {"task", "left of it", "taken over"});
  header.insert(header.end(), {"samples/s", "clock", "stale by", "counted", "dropped", "heard"});
  std::vector<std::vector<std::string>> rows;
  for (std::size_t i = 0; i < status.replicas.size(); ++i) {
    const RunStatus::Replica& r = status.replicas[i];
    std::vector<std::string> row{std::to_string(i), std::to_string(r.rank), r.doing,
                                 r.first < 0 ? "-" : fmt::format("{} to {}", r.first, r.first + r.count - 1)};
    if (tasks) {
      row.push_back(r.task > 0 ? std::to_string(r.task) : "-");
      row.push_back(std::to_string(r.task_left));
      row.push_back(std::to_string(r.taken));
    }
    row.push_back(r.samples_per_second > 0 ? human_count(r.samples_per_second) : "-");
    for (const std::int64_t n : {r.clock, r.staleness, r.samples, r.dropped}) row.push_back(std::to_string(n));
    row.push_back(human_duration(std::max(0.0, r.heard)));
    rows.push_back(std::move(row));
  }
  return format_table(header, rows);
}

}  // namespace

std::string to_json(const RunStatus& s) {
  Json json{{"state", s.state},     {"message", s.message},         {"exit_code", s.exit_code},
            {"written", s.written}, {"seconds", s.seconds},         {"consistency", s.consistency},
            {"step", s.step},       {"total_steps", s.total_steps}, {"epoch", s.epoch}};
  json["replicas"] = Json::array();
  for (const RunStatus::Replica& r : s.replicas) {
    json["replicas"].push_back({{"rank", r.rank},
                                {"doing", r.doing},
                                {"first", r.first},
                                {"count", r.count},
                                {"task", r.task},
                                {"task_left", r.task_left},
                                {"clock", r.clock},
                                {"staleness", r.staleness},
                                {"batches", r.batches},
                                {"samples", r.samples},
                                {"dropped", r.dropped},
                                {"taken", r.taken},
                                {"samples_per_second", r.samples_per_second},
                                {"heard", r.heard}});
  }
  json["servers"] = Json::array();
  for (const RunStatus::Server& server : s.servers) {
    json["servers"].push_back({{"rank", server.rank}, {"version", server.version}});
  }
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

RunStatus parse_status(std::string_view text, const std::string& path) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  const Reader in(json, path);
  RunStatus s;
  s.state = in.text("state");
  s.message = in.text("message");
  s.exit_code = in.integer("exit_code");
  s.written = in.number("written");
  s.seconds = in.number("seconds");
  s.consistency = in.text("consistency");
  s.step = in.integer("step");
  s.total_steps = in.integer("total_steps");
  s.epoch = in.integer("epoch");
  for (const Json& replica : in.list("replicas")) s.replicas.push_back(replica_of(replica, path));
  for (const Json& server : in.list("servers")) {
    const Reader of(server, path);
    s.servers.push_back({of.rank("rank"), of.integer("version")});
  }
  return s;
}

std::string status_text(const RunStatus& s, double now) {
  const double age = now - s.written;
  std::string text;
  if (s.state == "running") {
    text = fmt::format("running for {}", human_duration(s.seconds));
  } else {
    text = fmt::format("{} {}", s.state, ago(age));
    if (s.exit_code != 0) text += fmt::format(" with code {}", s.exit_code);
  }
  text += fmt::format(": step {} of {}", s.step, s.total_steps);
  if (s.epoch > 0) text += fmt::format(", epoch {}", s.epoch);
  double rate = 0;
  for (const RunStatus::Replica& r : s.replicas) rate += r.samples_per_second;
  if (s.state == "running" && rate > 0) text += fmt::format(", {} samples/s", human_count(rate));
  text += fmt::format(", consistency {}\n", s.consistency);
  if (!s.message.empty()) text += s.message + "\n";
  if (s.state == "running" && age > kStatusStaleSeconds) {
    text +=
        fmt::format("warning: this was written {}: the run was killed, or its coordinator stands still\n", ago(age));
  }
  if (!s.replicas.empty()) text += "\n" + replicas_table(s);
  if (!s.servers.empty()) {
    std::vector<std::vector<std::string>> rows;
    for (std::size_t i = 0; i < s.servers.size(); ++i) {
      rows.push_back({std::to_string(i), std::to_string(s.servers[i].rank),
                      s.servers[i].version < 0 ? "-" : std::to_string(s.servers[i].version)});
    }
    text += "\n" + format_table({"server", "rank", "updates"}, rows);
  }
  return text;
}

}  // namespace trainer::observe
