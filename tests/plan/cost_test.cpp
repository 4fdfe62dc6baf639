// Costs by hand: curves, pieces, sums, and what is said of wrong files. The texts are tests/golden/plan_errors.txt;
// TRAINER_UPDATE_GOLDEN=1 writes it anew.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <numeric>

#include "trainer/core/error.hpp"
#include "trainer/plan/cost_file.hpp"
#include "trainer/plan/cut.hpp"

using namespace trainer;
using plan::PassSeconds;

namespace {

config::Config mlp() {
  config::Config c;
  c.model = config::MlpModel{11, {8, 8, 8, 8, 8}, 3, config::Activation::Relu};
  c.training.batch_size = 4;
  return c;
}

// Every piece of the graph takes 1 s forward, 2 s and 3 s backward, 4 s where that is one action.
plan::CostModel even_costs(const model::Graph& graph, std::int64_t samples) {
  plan::CostModel costs;
  costs.measured = true;
  costs.within = {0, 1e15};
  for (const model::Unit& piece : graph.pieces) {
    const plan::MeasuredPiece measured{plan::signature(graph, piece), 1, 1, samples, PassSeconds{1, 2, 3, 4, 0}};
    const auto same = [&](const plan::MeasuredPiece& m) { return m.piece == measured.piece; };
    if (std::none_of(costs.pieces.begin(), costs.pieces.end(), same)) costs.pieces.push_back(measured);
  }
  std::sort(costs.pieces.begin(), costs.pieces.end(), [](const auto& a, const auto& b) { return a.piece < b.piece; });
  return costs;
}

plan::CostModel sample_profile() {
  plan::CostModel costs;
  costs.measured = true;
  costs.machine = {"A CPU", "native avx2", "trainer 0.1.0", "float32", 4, 2, 2};
  costs.core_flops = 1e11;
  costs.optimizer.points = {{1000, 1e-6}, {4000, 0.1}};
  costs.norm.points = {{1000, 1e-7}};
  costs.sum.points = {{10, 1e-9}};
  costs.agreement.points = {{5, 1e-6}};
  costs.unevenness = 1.0 + 1.0 / 3;
  costs.action = 1e-7;
  costs.pieces = {{"1: data linear(11,8)", 1, 1, 4, {0.1, 0.2, 0.3, 0.4, 0}},
                  {"1: data linear(11,8)", 2, 1, 4, {0.1, 1.0 / 7, 0.3, 0.4, 0.01}}};
  return costs;
}

std::string complaint(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Usage);
    return error.what();
  }
  return "no complaint";
}

std::string replaced(std::string text, const std::string& find, const std::string& by) {
  const std::size_t at = text.find(find);
  REQUIRE_MESSAGE(at != std::string::npos, find);
  return text.replace(at, find.size(), by);
}

constexpr const char* kCluster =
    R"({"nodes": [{"count": 2, "cores": 8, "ranks": 4, "gflops_per_core": 50, "memory": "64GiB"},
        {"cores": 4, "gflops_per_core": 100}],
        "within_node": {"latency_us": 1, "bandwidth_gb_s": 10}, "between_nodes": {"latency_us": 20, "bandwidth_gb_s": 1}})";

std::string all_complaints() {
  const std::string profile = plan::to_json(sample_profile());
  const std::pair<const char*, const char*> of_profile[] = {
      {"trainer profile 1", "trainer profile 9"},
      {"\"cores\":4", "\"cores\":0"},
      {"\"cores\":4", "\"cores\":4.5"},
      {"\"cores\":4", "\"core\":4"},
      {"\"cpu\":\"A CPU\",", ""},
      {"\"unevenness\": 1.3", "\"unevenness\": 0.3"},
      {"[4000.0,0.1]", "[400.0,0.1]"},
      {"[4000.0,0.1]", "[4000.0]"},
      {"\"samples\":4,\"forward\":0.1", "\"samples\":4,\"forward\":-0.1"},
      {"\"samples\":4,\"forward\":0.1", "\"samples\":4,\"forward\":\"0.1\""},
      {"\"tensor\":2", "\"tensor\":1"},
      {"\"action\"", "\"unevenness\""},
      {"\"pieces\": [", "\"pieces\": "},
      {"\"pieces\": [", "\"pieces\": [7, "}};
  std::string text;
  for (const auto& change : of_profile) {
    text += complaint([&] { plan::parse_profile(replaced(profile, change.first, change.second), "p.json"); }) + "\n";
  }
  const std::pair<const char*, const char*> of_cluster[] = {{"\"cores\": 8", "\"cores\": 8000"},
                                                            {"\"ranks\": 4", "\"ranks\": 9"},
                                                            {"\"ranks\": 4", "\"rank\": 4"},
                                                            {"64GiB", "64 potatoes"},
                                                            {"\"gflops_per_core\": 100", "\"gflops_per_core\": 0"},
                                                            {", \"gflops_per_core\": 100", ""},
                                                            {"between_nodes", "between"},
                                                            {"\"latency_us\": 20", "\"latency_us\": -1"}};
  for (const auto& change : of_cluster) {
    text += complaint([&] { plan::parse_cluster(replaced(kCluster, change.first, change.second), "c.json"); }) + "\n";
  }
  text += complaint([] { plan::parse_cluster(R"({"nodes": []})", "c.json"); }) + "\n";
  text += complaint(
      [] { plan::parse_cluster(R"({"nodes": [{"count": 2, "cores": 1, "gflops_per_core": 1}]})", "c.json"); });
  text += "\n" + complaint([] { plan::place(plan::parse_cluster(kCluster, "c.json"), 13); }) + "\n";
  return text;
}

}  // namespace

TEST_CASE("a curve joins what was measured, and goes on in proportion") {
  const plan::Curve curve{{{10, 1}, {20, 4}}};
  CHECK(curve.at(0) == 0);
  CHECK(curve.at(5) == 1);
  CHECK(curve.at(10) == 1);
  CHECK(curve.at(15) == 2.5);
  CHECK(curve.at(20) == 4);
  CHECK(curve.at(40) == 8);
  CHECK(plan::Curve{}.at(7) == 0);
}

TEST_CASE("a stage is the sum of its pieces; between measured sizes by a line, in stages of the nearest number") {
  const model::Graph graph = model::build(mlp());
  plan::CostModel costs = even_costs(graph, 4);
  const auto nodes = static_cast<std::int64_t>(graph.nodes.size());
  const auto pieces = static_cast<double>(graph.pieces.size());
  const auto whole = [&](std::int64_t samples, std::int64_t pipeline) {
    return plan::PieceCosts(costs, graph, {samples, 1, pipeline}, true, false).stage({0, nodes});
  };
  CHECK(whole(4, 1) == PassSeconds{pieces, 2 * pieces, 3 * pieces, 4 * pieces, 0});
  CHECK(whole(8, 1).forward == 2 * pieces);
  CHECK(whole(2, 1).forward == 0.75 * pieces);
  std::vector<plan::MeasuredPiece> more = costs.pieces;
  for (plan::MeasuredPiece& piece : more) {
    piece.samples = 8;
    piece.seconds = {5, 6, 7, 8, 0};
    costs.pieces.push_back(piece);
    piece.pipeline = 4;
    piece.samples = 4;
    piece.seconds = {0.5, 1, 1, 1, 0};
    costs.pieces.push_back(piece);
  }
  costs = plan::parse_profile(plan::to_json(costs), "sorted");
  CHECK(whole(6, 1).forward == 3 * pieces);
  CHECK(whole(4, 4).forward == 0.5 * pieces);
  CHECK(whole(4, 16).forward == 0.5 * pieces);
  CHECK(whole(4, 2).forward == 1 * pieces);  // as near to 1 as to 4: the first
  // Half of it, with the copies of what is received: 8 features of 4 samples.
  costs.within.bandwidth = 8 * 4 * sizeof(float);
  const model::Unit& third = graph.pieces[2];
  const plan::PieceCosts all(costs, graph, {4, 1, 1}, true, false);
  CHECK(all.stage({third.node_begin, nodes}) ==
        PassSeconds{pieces - 2 + 1, 2 * (pieces - 2), 3 * (pieces - 2), 4 * (pieces - 2), 0});
  CHECK(all.stage({0, third.node_begin}) == PassSeconds{2, 4 + 1, 6, 8 + 1, 0});
  CHECK(all.measured_share() == 1);
  CHECK(plan::PieceCosts(costs, graph, {4, 2, 1}, true, false).measured_share() == 0);
}

TEST_CASE("a stage whose backward is one action has that action's time") {
  const std::vector<PassSeconds> stages = {{1, 2, 3, 4, 0}, {1, 2, 3, 4, 0}};
  const schedule::Schedule joint = schedule::one_f_one_b({2, 3, false});
  for (const schedule::StageTimes& t : plan::simulator_times(joint, stages)) {
    CHECK(t.backward_input + t.backward_weight == doctest::Approx(4));
  }
  const schedule::Schedule split = schedule::one_f_one_b({2, 3, true});  // stage 0 joins: it has nothing to send
  CHECK(plan::simulator_times(split, stages)[0].backward_input +
            plan::simulator_times(split, stages)[0].backward_weight ==
        doctest::Approx(4));
  CHECK(plan::simulator_times(split, stages)[1].backward_weight == 3);
}

TEST_CASE("sums of ranks: within a node what is touched, between nodes the ring's bytes") {
  plan::CostModel costs;
  costs.sum.points = {{1, 1e-9}};  // a nanosecond an element
  costs.within = {1e-6, 1e9};
  costs.between = {1e-5, 1e9};
  CHECK(plan::sum_seconds(costs, 1000, 1, true) == 0);
  CHECK(plan::sum_seconds(costs, 1000, 2, true) == doctest::Approx(1e-6 + 3000e-9));
  CHECK(plan::sum_seconds(costs, 1000, 4, false) == doctest::Approx(2 * 1e-5 * 2 + 2 * 0.75 * 4e3 / 1e9 + 3000e-9));
}

TEST_CASE("the cut by costs gives a slow rank less, and what was measured as slow alone") {
  const model::Graph graph = model::build(mlp());
  plan::CostModel costs = even_costs(graph, 4);
  const schedule::Schedule table = schedule::add_communication(schedule::one_f_one_b({2, 8}));
  plan::StageCosts stages;
  stages.pieces = std::make_shared<plan::PieceCosts>(costs, graph, plan::PieceSize{4, 1, 2}, true, false);
  const auto pieces_in = [&](Range nodes) {
    return std::count_if(graph.pieces.begin(), graph.pieces.end(), [&](const model::Unit& piece) {
      return piece.node_begin >= nodes.begin && piece.node_end <= nodes.end;
    });
  };
  REQUIRE(graph.pieces.size() == 6);
  CHECK(pieces_in(plan::cut_by_costs(graph, table, stages)[0]) == 3);
  stages.stage_speed = {0.5, 1};
  CHECK(pieces_in(plan::cut_by_costs(graph, table, stages)[0]) == 2);
  stages.stage_speed = {};
  for (plan::MeasuredPiece& piece : costs.pieces) {
    if (piece.piece.find("data") != std::string::npos) piece.seconds = piece.seconds * 8;
  }
  stages.pieces = std::make_shared<plan::PieceCosts>(costs, graph, plan::PieceSize{4, 1, 2}, true, false);
  CHECK(pieces_in(plan::cut_by_costs(graph, table, stages)[0]) == 1);
}

TEST_CASE("a profile reads back as it was written") {
  const plan::CostModel profile = sample_profile();
  CHECK(plan::parse_profile(plan::to_json(profile), "p.json") == profile);
}

TEST_CASE("a cluster's ranks are placed node by node") {
  const plan::Cluster cluster = plan::parse_cluster(kCluster, "c.json");
  CHECK(cluster.ranks() == 12);
  CHECK(cluster.nodes() == 3);
  CHECK(cluster.within == plan::Link{1e-6, 1e10});
  const plan::RankPlaces places = plan::place(cluster, 10);
  CHECK(places.node_of_rank == std::vector<int>{0, 0, 0, 0, 1, 1, 1, 1, 2, 2});
  CHECK(places.rank_flops.front() == 100e9);  // two cores
  CHECK(places.rank_flops.back() == 100e9);   // one of a faster kind
  CHECK(places.rank_memory.front() == 0x1p34);
  CHECK(places.rank_memory.back() == 0);
}

TEST_CASE("what people are told about wrong profiles and clusters") {
  const std::string path = std::string(TRAINER_GOLDEN) + "/plan_errors.txt";
  const std::string text = all_complaints();
  if (std::getenv("TRAINER_UPDATE_GOLDEN") != nullptr) std::ofstream(path) << text;
  std::ifstream file(path);
  CHECK(text == std::string(std::istreambuf_iterator<char>(file), {}));
}
