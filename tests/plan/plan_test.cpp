#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "trainer/core/error.hpp"
#include "trainer/core/random.hpp"
#include "trainer/plan/cut.hpp"
#include "trainer/plan/mesh.hpp"
#include "trainer/plan/shard.hpp"

using namespace trainer;

namespace {

config::Config gpt(std::int64_t vocab, std::int64_t hidden, std::int64_t layers, std::int64_t heads, bool tied) {
  config::Config c;
  c.model = config::GptModel{vocab, 16, hidden, layers, heads, 0.1, tied};
  c.training.sequence_length = 8;
  c.training.batch_size = 4;
  return c;
}

config::Config mlp(std::vector<std::int64_t> hidden, std::int64_t outputs) {
  config::Config c;
  c.model = config::MlpModel{11, std::move(hidden), outputs, config::Activation::Relu};
  c.training.batch_size = 4;
  return c;
}

double largest_part(const std::vector<double>& costs, const std::vector<Range>& cut) {
  double largest = 0;
  for (const Range part : cut) {
    double sum = 0;
    for (std::int64_t i = part.begin; i < part.end; ++i) sum += costs[static_cast<std::size_t>(i)];
    largest = std::max(largest, sum);
  }
  return largest;
}

// Every contiguous cut, by trying each end of the first part.
double best_by_search(const std::vector<double>& costs, std::size_t begin, std::int64_t parts) {
  if (parts == 1) {
    double sum = 0;
    for (std::size_t i = begin; i < costs.size(); ++i) sum += costs[i];
    return sum;
  }
  double best = std::numeric_limits<double>::infinity();
  double first = 0;
  for (std::size_t end = begin + 1; end + static_cast<std::size_t>(parts - 1) <= costs.size(); ++end) {
    first += costs[end - 1];
    best = std::min(best, std::max(first, best_by_search(costs, end, parts - 1)));
  }
  return best;
}

void require_whole(const std::vector<Range>& cut, std::int64_t n) {
  std::int64_t at = 0;
  for (const Range part : cut) {
    CHECK(part.begin == at);
    CHECK(part.size() >= 1);
    at = part.end;
  }
  CHECK(at == n);
}

std::string refused(const auto& body) {
  try {
    body();
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Usage);
    return error.what();
  }
  FAIL("was accepted");
  return "";
}

}  // namespace

TEST_CASE("ranks and coordinates are each other's inverse, tensor innermost") {
  const plan::Mesh mesh{3, 4, 2};
  std::set<std::int64_t> seen;
  for (std::int64_t rank = 0; rank < mesh.size(); ++rank) {
    const plan::Coordinates at = mesh.coordinates(rank);
    CHECK(mesh.rank(at) == rank);
    seen.insert(mesh.rank(at));
  }
  CHECK(seen.size() == 24);
  CHECK(mesh.coordinates(1) == plan::Coordinates{0, 0, 1});
  CHECK(mesh.coordinates(2) == plan::Coordinates{1, 0, 0});
  CHECK(mesh.coordinates(6) == plan::Coordinates{0, 1, 0});
}

TEST_CASE("the balanced cut is the best of all contiguous cuts") {
  const RandomStream random(9, "costs");
  for (std::uint64_t trial = 0; trial < 150; ++trial) {
    const std::size_t n = 1 + random.bits(trial, 0) % 10;
    const auto parts = static_cast<std::int64_t>(1 + random.bits(trial, 1) % n);
    std::vector<double> costs;
    for (std::size_t i = 0; i < n; ++i) costs.push_back(static_cast<double>(random.bits(trial * 64 + i, 2) % 20));
    const auto cut = plan::balanced_cut(costs, parts);
    require_whole(cut, static_cast<std::int64_t>(n));
    CHECK(largest_part(costs, cut) == best_by_search(costs, 0, parts));
  }
}

namespace {

schedule::Schedule table(std::int64_t stages, std::int64_t micro_batches) {
  return schedule::add_communication(schedule::one_f_one_b({stages, micro_batches, true}));
}

}  // namespace

TEST_CASE("no rule loses a layer, whatever the number of stages (Megatron-LM#1304)") {
  const model::Graph graph = model::build(gpt(61, 24, 30, 4, true));
  const auto units = static_cast<std::int64_t>(graph.units.size());
  CHECK(units == 32);
  for (const auto rule :
       {config::PartitionRule::Uniform, config::PartitionRule::Parameters, config::PartitionRule::Flops}) {
    for (std::int64_t stages = 1; stages <= units; ++stages) {
      config::Parallel parallel;
      parallel.partition = rule;
      require_whole(plan::cut_stages(graph, parallel, table(stages, 2)), static_cast<std::int64_t>(graph.nodes.size()));
    }
  }
}

TEST_CASE("a cut that cannot be says which numbers do not fit") {
  const model::Graph graph = model::build(gpt(61, 24, 2, 4, true));
  config::Parallel parallel;
  CHECK(refused([&] { plan::cut_stages(graph, parallel, table(5, 4)); }).find("at most 4") != std::string::npos);
  parallel.partition = config::PartitionRule::Written;
  parallel.partition_units = {1, 2};
  CHECK(refused([&] { plan::cut_stages(graph, parallel, table(2, 4)); }).find("3 units, but the model has 4") !=
        std::string::npos);
  CHECK(refused([&] { plan::cut_stages(graph, parallel, table(3, 4)); }).find("parallel.pipeline is 3") !=
        std::string::npos);
  parallel.partition_units = {1, 3};
  const std::int64_t embedding = graph.units[0].node_end;
  const auto end = static_cast<std::int64_t>(graph.nodes.size());
  CHECK(plan::cut_stages(graph, parallel, table(2, 4)) == std::vector<Range>{{0, embedding}, {embedding, end}});
}

namespace {

double simulated(const model::Graph& graph, const schedule::Schedule& table, const std::vector<Range>& cut) {
  std::vector<schedule::StageTimes> times;
  for (const Range nodes : cut) times.push_back(plan::flops_of(graph, nodes));
  return schedule::simulate(table, times).step;
}

}  // namespace

TEST_CASE("the default cut is the one of the shortest simulated step, found by trying all") {
  const model::Graph graph = model::build(gpt(4096, 384, 6, 6, false));
  const auto pieces = static_cast<std::int64_t>(graph.pieces.size());
  CHECK(pieces == 14);
  const auto from = [&](std::int64_t i) { return graph.pieces[static_cast<std::size_t>(i)].node_begin; };
  const auto end = static_cast<std::int64_t>(graph.nodes.size());
  for (const std::int64_t micro_batches : {1, 2, 4, 16}) {
    for (const schedule::Schedule& compute :
         {schedule::one_f_one_b({2, micro_batches, true}), schedule::one_f_one_b({2, micro_batches, false}),
          schedule::gpipe({2, micro_batches, true}), schedule::zero_bubble_h1({2, micro_batches, true})}) {
      const schedule::Schedule lowered = schedule::add_communication(compute);
      double best = 1e300;
      for (std::int64_t i = 1; i < pieces; ++i) {
        best = std::min(best, simulated(graph, lowered, {{0, from(i)}, {from(i), end}}));
      }
      const double found = simulated(graph, lowered, plan::cut_stages(graph, {}, lowered));
      CHECK(found <= best * (1 + 1e-5));
    }
    const schedule::Schedule three = schedule::add_communication(schedule::one_f_one_b({3, micro_batches, true}));
    double best = 1e300;
    for (std::int64_t i = 1; i < pieces; ++i) {
      for (std::int64_t j = i + 1; j < pieces; ++j) {
        best = std::min(best, simulated(graph, three, {{0, from(i)}, {from(i), from(j)}, {from(j), end}}));
      }
    }
    CHECK(simulated(graph, three, plan::cut_stages(graph, {}, three)) <= best * (1 + 1e-5));
  }
}

TEST_CASE("a stage is named by its first and last unit, or the pieces of units that are cut") {
  const model::Graph graph = model::build(gpt(61, 24, 3, 4, true));
  const auto node = [&](const std::string& piece) {
    for (const model::Unit& p : graph.pieces) {
      if (p.name == piece) return p.node_begin;
    }
    return std::int64_t{-1};
  };
  const auto end = static_cast<std::int64_t>(graph.nodes.size());
  CHECK(plan::describe_stage(graph, {0, end}) == "embedding … head (5)");
  CHECK(plan::describe_stage(graph, {0, node("h.0.attn")}) == "embedding");
  CHECK(plan::describe_stage(graph, {node("h.0.attn"), node("h.1.attn")}) == "h.0");
  CHECK(plan::describe_stage(graph, {0, node("h.1.mlp")}) == "embedding … h.1.attn (2.5)");
  CHECK(plan::describe_stage(graph, {node("h.1.mlp"), end}) == "h.1.mlp … head (2.5)");
  CHECK(plan::describe_stage(graph, {node("h.1.mlp"), node("h.2.mlp")}) == "h.1.mlp … h.2.attn (1)");
  CHECK(plan::describe_stage(graph, {node("h.1.mlp"), node("h.2.attn")}) == "h.1.mlp");
}

TEST_CASE(
    "the boxes of all tensor ranks cover every parameter exactly once, for sizes that do not divide "
    "(Megatron-LM#1754)") {
  for (const config::Config& c :
       {gpt(61, 24, 2, 4, true), gpt(257, 30, 1, 5, false), mlp({29, 17, 23}, 7), mlp({5}, 10)}) {
    const model::Graph graph = model::build(c);
    for (std::int64_t ranks = 1; ranks <= 4; ++ranks) {
      std::vector<std::vector<int>> covered;
      for (const model::Parameter& p : graph.parameters)
        covered.emplace_back(static_cast<std::size_t>(p.shape.elements()), 0);
      for (std::int64_t rank = 0; rank < ranks; ++rank) {
        const plan::LocalGraph local = plan::shard(graph, ranks, rank);
        for (std::size_t p = 0; p < graph.parameters.size(); ++p) {
          const plan::LocalParameter& mine = local.parameters[p];
          if (!mine.sharded && rank > 0) {
            CHECK(mine.boxes == std::vector<Box>{whole(graph.parameters[p].shape)});
            continue;
          }
          for (const Box& box : mine.boxes) {
            std::vector<int> ones(static_cast<std::size_t>(box.elements()), 1);
            std::vector<int> at(covered[p].size(), 0);
            copy_box(box, box, ones.data(), whole(graph.parameters[p].shape), at.data(), sizeof(int));
            for (std::size_t i = 0; i < at.size(); ++i) covered[p][i] += at[i];
          }
        }
      }
      for (const auto& counts : covered) CHECK(std::all_of(counts.begin(), counts.end(), [](int n) { return n == 1; }));
    }
  }
}

TEST_CASE("local sizes fit together: each linear reads what the node before gives") {
  for (const config::Config& c : {gpt(61, 24, 2, 4, true), gpt(61, 30, 2, 5, false), mlp({29, 17, 23}, 7)}) {
    const model::Graph graph = model::build(c);
    for (std::int64_t ranks = 2; ranks <= 4; ++ranks) {
      std::int64_t sharded_nodes = 0;
      for (std::int64_t rank = 0; rank < ranks; ++rank) {
        const plan::LocalGraph local = plan::shard(graph, ranks, rank);
        for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
          const auto* linear = std::get_if<model::Linear>(&local.nodes[i].op);
          if (linear == nullptr) continue;
          CHECK(linear->in == local.values[graph.nodes[i].inputs[0].index()].features);
          CHECK(linear->out == local.values[graph.nodes[i].output.index()].features);
          CHECK(linear->in * linear->out == local.parameters[graph.nodes[i].parameters[0].index()].elements());
          sharded_nodes += local.parameters[graph.nodes[i].parameters[0].index()].sharded ? 1 : 0;
        }
      }
      CHECK(sharded_nodes > 0);
    }
  }
}

TEST_CASE("heads that are fewer than the tensor ranks are refused with what would work") {
  const model::Graph graph = model::build(gpt(61, 24, 2, 3, true));
  CHECK(refused([&] { plan::shard(graph, 4, 0); }).find("use at most 3") != std::string::npos);
}

TEST_CASE("no rank holds all logits of a vocabulary") {
  const model::Graph graph = model::build(gpt(61, 24, 2, 4, true));
  for (std::int64_t rank = 0; rank < 4; ++rank) {
    const plan::LocalGraph local = plan::shard(graph, 4, rank);
    CHECK(local.loss_sharded);
    CHECK(local.values[graph.output.index()].features <= 16);
  }
}
