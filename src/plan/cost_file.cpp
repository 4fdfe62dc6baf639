#include "trainer/plan/cost_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <tuple>

#include "trainer/config/config.hpp"
#include "trainer/core/error.hpp"

namespace trainer::plan {

namespace {

// Reads members of a JSON document with a check of each, so that a wrong file is one clear sentence.
/// A value and where it stands. Every method throws Error(Usage): "FILE: PATH is …; expected …".
class JsonValue {
 public:
  JsonValue(const nlohmann::json& value, const std::string& source, std::string path)
      : value_(&value), source_(&source), path_(std::move(path)) {}

  /// The document, read strictly: at most 64 MiB, no duplicate names.
  static nlohmann::json document(const std::string& text, const std::string& source, const char* made_by);

  /// An object whose names are all among `names`.
  void only(const std::vector<std::string>& names) const;
  bool has(const char* name) const { return value_->contains(name); }
  JsonValue at(const char* name) const;
  std::vector<JsonValue> elements() const;
  double number(double least, double most) const;
  std::int64_t integer(std::int64_t least, std::int64_t most) const;
  std::string text() const;
  [[noreturn]] void fail(const std::string& expected) const;
  const std::string& path() const { return path_; }

 private:
  const nlohmann::json* value_;
  const std::string* source_;
  std::string path_;
};

std::string shortened(const nlohmann::json& value) {
  constexpr std::size_t kMost = 60;
  std::string text = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  return text.size() <= kMost ? text : text.substr(0, kMost) + "…";
}

std::string listed(const std::vector<std::string>& words) {
  std::string all;
  for (const std::string& word : words) all += (all.empty() ? "" : ", ") + word;
  return all;
}

nlohmann::json JsonValue::document(const std::string& text, const std::string& source, const char* made_by) {
  constexpr std::size_t kMostBytes = std::size_t{64} << 20;
  constexpr int kMostDepth = 16;
  if (text.size() > kMostBytes) throw Error(ExitCode::Usage, fmt::format("{}: larger than 64 MiB", source));
  std::vector<std::set<std::string>> names;
  std::string twice;
  const auto check = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
    if (depth > kMostDepth && twice.empty()) twice = fmt::format("nested deeper than {} levels", kMostDepth);
    if (event == nlohmann::json::parse_event_t::object_start) names.emplace_back();
    if (event == nlohmann::json::parse_event_t::object_end && !names.empty()) names.pop_back();
    if (event == nlohmann::json::parse_event_t::key && !names.back().insert(parsed.get<std::string>()).second) {
      twice = fmt::format("has \"{}\" twice in one object", parsed.get<std::string>());
    }
    return depth <= kMostDepth;
  };
  nlohmann::json root;
  try {
    root = nlohmann::json::parse(text, check);
  } catch (const nlohmann::json::exception& error) {
    const std::string what = error.what();
    const std::size_t at = what.find("] ");
    throw Error(ExitCode::Usage, fmt::format("{}: not valid JSON: {}; expected {}", source,
                                             at == std::string::npos ? what : what.substr(at + 2), made_by));
  }
  if (!twice.empty()) throw Error(ExitCode::Usage, fmt::format("{}: {}", source, twice));
  return root;
}

void JsonValue::fail(const std::string& expected) const {
  throw Error(ExitCode::Usage, fmt::format("{}: {} is {}; expected {}", *source_,
                                           path_.empty() ? "the document" : path_, shortened(*value_), expected));
}

void JsonValue::only(const std::vector<std::string>& names) const {
  if (!value_->is_object()) fail("an object");
  for (const auto& [name, member] : value_->items()) {
    if (std::find(names.begin(), names.end(), name) != names.end()) continue;
    const std::string near = nearest_word(name.substr(0, 100), names);
    const std::string prefix = path_.empty() ? "" : path_ + ".";
    throw Error(ExitCode::Usage,
                fmt::format("{}: unknown key {}{} (its value is {}); {}", *source_, prefix, name, shortened(member),
                            near.empty() ? "the keys here are " + listed(names)
                                         : fmt::format("did you mean {}{}?", prefix, near)));
  }
}

JsonValue JsonValue::at(const char* name) const {
  const std::string path = path_.empty() ? name : path_ + "." + name;
  if (!value_->is_object()) fail("an object");
  if (!value_->contains(name)) throw Error(ExitCode::Usage, fmt::format("{}: {} is missing", *source_, path));
  return {(*value_)[name], *source_, path};
}

std::vector<JsonValue> JsonValue::elements() const {
  if (!value_->is_array()) fail("a list");
  std::vector<JsonValue> all;
  for (std::size_t i = 0; i < value_->size(); ++i) {
    all.emplace_back((*value_)[i], *source_, fmt::format("{}[{}]", path_, i));
  }
  return all;
}

double JsonValue::number(double least, double most) const {
  const double number = value_->is_number() ? value_->get<double>() : least - 1;
  if (!(number >= least && number <= most)) fail(fmt::format("a number from {} to {}", least, most));
  return number;
}

std::int64_t JsonValue::integer(std::int64_t least, std::int64_t most) const {
  const std::string expected = fmt::format("an integer from {} to {}", least, most);
  if (!value_->is_number_integer()) fail(expected);
  if (value_->is_number_unsigned() && value_->get<std::uint64_t>() > static_cast<std::uint64_t>(most)) fail(expected);
  const auto number = value_->get<std::int64_t>();
  if (number < least || number > most) fail(expected);
  return number;
}

std::string JsonValue::text() const {
  if (!value_->is_string()) fail("a string");
  return value_->get<std::string>();
}

using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "trainer profile 1";
constexpr double kMostSeconds = 1e6;
constexpr double kMostSize = 1e15;
constexpr std::int64_t kMostCount = 1 << 24;

Json write(const Curve& curve) {
  Json list = Json::array();
  for (const auto& [size, seconds] : curve.points) list.push_back({size, seconds});
  return list;
}

Json write(const Link& link) { return {{"latency", link.latency}, {"bandwidth", link.bandwidth}}; }

Curve read_curve(const JsonValue& value) {
  Curve curve;
  for (const JsonValue& point : value.elements()) {
    const std::vector<JsonValue> pair = point.elements();
    if (pair.size() != 2) point.fail("a pair [size, seconds]");
    const double size = pair[0].number(1, kMostSize);
    if (!curve.points.empty() && size <= curve.points.back().first) pair[0].fail("sizes in ascending order");
    curve.points.emplace_back(size, pair[1].number(0, kMostSeconds));
  }
  return curve;
}

Link read_link(const JsonValue& value) {
  value.only({"latency", "bandwidth"});
  return {value.at("latency").number(0, kMostSeconds), value.at("bandwidth").number(1, kMostSize)};
}

const std::vector<std::string> kPassNames = {"forward", "backward_input", "backward_weight", "backward", "sums"};

MeasuredPiece read_piece(const JsonValue& value) {
  std::vector<std::string> names = {"piece", "tensor", "pipeline", "samples"};
  names.insert(names.end(), kPassNames.begin(), kPassNames.end());
  value.only(names);
  const auto seconds = [&](const char* name) { return value.at(name).number(0, kMostSeconds); };
  return {.piece = value.at("piece").text(),
          .tensor = value.at("tensor").integer(1, kMostCount),
          .pipeline = value.at("pipeline").integer(1, kMostCount),
          .samples = value.at("samples").integer(1, kMostCount),
          .seconds = {seconds("forward"), seconds("backward_input"), seconds("backward_weight"), seconds("backward"),
                      seconds("sums")}};
}

Machine read_machine(const JsonValue& value) {
  value.only({"cpu", "instructions", "libraries", "precision", "cores", "ranks", "threads"});
  return {.cpu = value.at("cpu").text(),
          .instructions = value.at("instructions").text(),
          .libraries = value.at("libraries").text(),
          .precision = value.at("precision").text(),
          .cores = value.at("cores").integer(1, kMostCount),
          .ranks = value.at("ranks").integer(1, kMostCount),
          .threads = value.at("threads").integer(1, kMostCount)};
}

NodeGroup read_group(const JsonValue& value) {
  value.only({"count", "cores", "ranks", "gflops_per_core", "memory", "memory_bandwidth_gb_s"});
  constexpr std::int64_t kMostNodes = 100'000;
  NodeGroup group;
  group.count = value.has("count") ? value.at("count").integer(1, kMostNodes) : 1;
  group.cores = value.at("cores").integer(1, 4096);
  group.ranks = value.has("ranks") ? value.at("ranks").integer(1, group.cores) : group.cores;
  group.core_flops = 1e9 * value.at("gflops_per_core").number(1e-3, 1e6);
  if (value.has("memory")) {
    const std::optional<std::int64_t> bytes = config::bytes_of(value.at("memory").text());
    if (!bytes || *bytes == 0) value.at("memory").fail("a size, for example \"64GiB\"");
    group.memory = static_cast<double>(*bytes);
  }
  group.memory_bandwidth =
      value.has("memory_bandwidth_gb_s") ? 1e9 * value.at("memory_bandwidth_gb_s").number(1e-3, 1e6) : 0;
  return group;
}

Link read_cluster_link(const JsonValue& value) {
  value.only({"latency_us", "bandwidth_gb_s"});
  return {1e-6 * value.at("latency_us").number(0, 1e9), 1e9 * value.at("bandwidth_gb_s").number(1e-6, 1e6)};
}

}  // namespace

std::string to_json(const CostModel& p) {
  const Machine& m = p.machine;
  Json json{{"format", kFormat},
            {"machine",
             {{"cpu", m.cpu},
              {"instructions", m.instructions},
              {"libraries", m.libraries},
              {"precision", m.precision},
              {"cores", m.cores},
              {"ranks", m.ranks},
              {"threads", m.threads}}},
            {"core_flops", p.core_flops},
            {"memory_bandwidth", p.memory_bandwidth},
            {"messages", {{"within", write(p.within)}, {"between", write(p.between)}}},
            {"optimizer", write(p.optimizer)},
            {"norm", write(p.norm)},
            {"sum", write(p.sum)},
            {"agreement", write(p.agreement)},
            {"unevenness", p.unevenness},
            {"action", p.action},
            {"step", p.step},
            {"pieces", Json::array()}};
  for (const MeasuredPiece& piece : p.pieces) {
    const PassSeconds& s = piece.seconds;
    json["pieces"].push_back({{"piece", piece.piece},
                              {"tensor", piece.tensor},
                              {"pipeline", piece.pipeline},
                              {"samples", piece.samples},
                              {"forward", s.forward},
                              {"backward_input", s.backward_input},
                              {"backward_weight", s.backward_weight},
                              {"backward", s.backward},
                              {"sums", s.sums}});
  }
  // A line for each innermost list or piece would be long, one for each number longer: a piece a line.
  std::string text = "{\n";
  for (const auto& [name, value] : json.items()) {
    text += text.size() > 2 ? ",\n" : "";
    text += "  " + Json(name).dump() + ": ";
    if (name != "pieces") {
      text += value.dump();
      continue;
    }
    text += "[";
    for (std::size_t i = 0; i < value.size(); ++i) text += (i == 0 ? "\n    " : ",\n    ") + value[i].dump();
    text += "\n  ]";
  }
  return text + "\n}\n";
}

CostModel parse_profile(const std::string& text, const std::string& source) {
  const nlohmann::json document = JsonValue::document(text, source, "what `trainer profile` writes");
  const JsonValue root(document, source, "");
  root.only({"format", "machine", "core_flops", "memory_bandwidth", "messages", "optimizer", "norm", "sum", "agreement",
             "unevenness", "action", "step", "pieces"});
  if (root.at("format").text() != kFormat) root.at("format").fail(fmt::format("\"{}\"", kFormat));
  CostModel p;
  p.measured = true;
  p.machine = read_machine(root.at("machine"));
  p.core_flops = root.at("core_flops").number(1e3, kMostSize);
  p.memory_bandwidth = root.at("memory_bandwidth").number(1e3, kMostSize);
  root.at("messages").only({"within", "between"});
  p.within = read_link(root.at("messages").at("within"));
  p.between = read_link(root.at("messages").at("between"));
  p.optimizer = read_curve(root.at("optimizer"));
  p.norm = read_curve(root.at("norm"));
  p.sum = read_curve(root.at("sum"));
  p.agreement = read_curve(root.at("agreement"));
  p.unevenness = root.at("unevenness").number(1, 1000);
  p.action = root.at("action").number(0, kMostSeconds);
  p.step = root.at("step").number(0, kMostSeconds);
  for (const JsonValue& piece : root.at("pieces").elements()) p.pieces.push_back(read_piece(piece));
  const auto key = [](const MeasuredPiece& m) { return std::tie(m.piece, m.tensor, m.pipeline, m.samples); };
  std::sort(p.pieces.begin(), p.pieces.end(), [&](const auto& a, const auto& b) { return key(a) < key(b); });
  for (std::size_t i = 1; i < p.pieces.size(); ++i) {
    if (key(p.pieces[i - 1]) < key(p.pieces[i])) continue;
    throw Error(ExitCode::Usage,
                fmt::format("{}: pieces has \"{}\" twice for {} samples, {} tensor ranks and {} stages", source,
                            p.pieces[i].piece, p.pieces[i].samples, p.pieces[i].tensor, p.pieces[i].pipeline));
  }
  return p;
}

std::int64_t Cluster::ranks() const {
  std::int64_t sum = 0;
  for (const NodeGroup& group : groups) sum += group.count * group.ranks;
  return sum;
}

std::int64_t Cluster::nodes() const {
  std::int64_t sum = 0;
  for (const NodeGroup& group : groups) sum += group.count;
  return sum;
}

Cluster parse_cluster(const std::string& text, const std::string& source) {
  const nlohmann::json document = JsonValue::document(text, source, "a description of a cluster");
  const JsonValue root(document, source, "");
  root.only({"nodes", "within_node", "between_nodes"});
  Cluster cluster;
  for (const JsonValue& group : root.at("nodes").elements()) cluster.groups.push_back(read_group(group));
  if (cluster.groups.empty()) root.at("nodes").fail("at least one group of nodes");
  if (root.has("within_node")) cluster.within = read_cluster_link(root.at("within_node"));
  cluster.between = {2e-5, 1e9};
  if (cluster.nodes() > 1) cluster.between = read_cluster_link(root.at("between_nodes"));
  return cluster;
}

RankPlaces place(const Cluster& cluster, std::int64_t ranks) {
  if (ranks > cluster.ranks()) {
    throw Error(ExitCode::Usage, fmt::format("--ranks is {}, but the cluster has room for {}; expected at most {}",
                                             ranks, cluster.ranks(), cluster.ranks()));
  }
  RankPlaces places;
  int node = 0;
  for (const NodeGroup& group : cluster.groups) {
    for (std::int64_t n = 0; n < group.count; ++n, ++node) {
      for (std::int64_t r = 0; r < group.ranks && std::ssize(places.node_of_rank) < ranks; ++r) {
        places.node_of_rank.push_back(node);
        places.rank_flops.push_back(group.core_flops * static_cast<double>(group.cores / group.ranks));
        places.rank_memory.push_back(group.memory / static_cast<double>(group.ranks));
      }
    }
  }
  return places;
}

}  // namespace trainer::plan
