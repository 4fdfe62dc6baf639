#include "costs.hpp"

#include <fmt/format.h>

#include <fstream>
#include <set>

#include "app.hpp"
#include "run_training.hpp"
#include "trainer/comm/topology.hpp"
#include "trainer/ops/matmul.hpp"
#include "trainer/plan/cost_file.hpp"
#include "trainer/runtime/agreement.hpp"

namespace trainer::app {

namespace {

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) != 0) continue;
    const std::size_t at = line.find(": ");
    if (at != std::string::npos) return line.substr(at + 2);
  }
  return "unknown";
}

}  // namespace

config::Config agreed_config(comm::Communicator& world, const std::string& path,
                             const std::vector<std::string>& overrides) {
  const std::string text = agreed_text(world, [&] { return read_config(path); });
  config::Config config;
  runtime::agree(world, [&] { config = config::parse(text, path, overrides); });
  read_agreed_schedule(world, config);
  return config;
}

std::optional<plan::CostModel> agreed_profile(comm::Communicator& world, const config::Config& config) {
  const config::Parallel& parallel = config.parallel;
  if (parallel.profile.empty()) return std::nullopt;
  const std::string text = agreed_text(world, [&] {
    return read_file(parallel.profile, "parallel.profile takes the path of what `trainer profile` has written");
  });
  std::optional<plan::CostModel> costs;
  runtime::agree(world, [&] { costs = plan::parse_profile(text, parallel.profile); });
  return costs;
}

plan::Machine this_machine() {
  plan::Machine machine;
  machine.cpu = cpu_name();
  machine.instructions = ops::describe_matmul();
  machine.libraries = version_text();
  machine.cores = comm::usable_cores();
  return machine;
}

std::string taken_elsewhere(const plan::Machine& profiled, const std::string& path) {
  const plan::Machine here = this_machine();
  const auto differ = [&](const char* what, const auto& there, const auto& now) {
    return fmt::format("{} was taken on another machine: {} there is {}, here {}; measured times may not hold", path,
                       what, there, now);
  };
  if (profiled.cpu != here.cpu) return differ("the CPU", profiled.cpu, here.cpu);
  if (profiled.instructions != here.instructions) {
    return differ("the matrix kernel", profiled.instructions, here.instructions);
  }
  if (profiled.cores != here.cores) return differ("the number of cores", profiled.cores, here.cores);
  if (profiled.libraries != here.libraries) return differ("the version", profiled.libraries, here.libraries);
  return {};
}

std::string taken_of_another(const plan::CostModel& costs, const model::Graph& graph, const std::string& path) {
  std::set<std::string> pieces;
  for (const model::Unit& piece : graph.pieces) pieces.insert(plan::signature(graph, piece));
  const std::size_t all = pieces.size();
  for (const plan::MeasuredPiece& measured : costs.pieces) pieces.erase(measured.piece);
  if (pieces.empty()) return {};
  return fmt::format(
      "{} has no times of {} of the model's {} different pieces, which are estimated; it was taken of "
      "another model, or at another sequence length",
      path, pieces.size(), all);
}

}  // namespace trainer::app
