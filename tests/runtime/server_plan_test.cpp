// Who holds what in a served run, and that every element is sent and pulled once.
#include <doctest/doctest.h>

#include <map>
#include <numeric>
#include <set>

#include "support/equivalence.hpp"
#include "trainer/runtime/parameters.hpp"
#include "trainer/runtime/server_plan.hpp"

using namespace trainer;

namespace {

runtime::RunPlan plan_of(const std::string& model, std::int64_t data, std::int64_t pipeline, std::int64_t tensor,
                         std::int64_t servers, const std::string& extra = "") {
  test::Case c;
  c.model = model;
  c.data = data;
  c.pipeline = pipeline;
  c.tensor = tensor;
  c.micro_batches = 2;
  c.extra = "parallel.exchange=server;parallel.servers=" + std::to_string(servers) + extra;
  return runtime::make_plan(config::parse(test::model_json(c.model), "test", test::overrides(c, "")),
                            c.ranks() + servers);
}

struct Layout {
  const char* model;
  std::int64_t data, pipeline, tensor, servers;
  const char* extra = "";  // layers of several blocks and messages
};
constexpr const char* kLarge = ";model.hidden_sizes=[700,401]";
const std::vector<Layout> kLayouts = {
    {"mlp", 1, 1, 1, 1},        {"mlp", 3, 1, 1, 2},        {"mlp", 2, 2, 1, 4},        {"gpt tied", 1, 1, 1, 3},
    {"gpt tied", 2, 2, 1, 2},   {"gpt tied", 2, 1, 3, 3},   {"gpt tied", 4, 3, 2, 4},   {"gpt untied", 2, 2, 2, 1},
    {"gpt untied", 3, 1, 2, 3}, {"sequential", 2, 1, 2, 2}, {"sequential", 1, 4, 1, 3}, {"mlp", 3, 1, 2, 3, kLarge},
    {"mlp", 2, 2, 1, 4, kLarge}};

}  // namespace

TEST_CASE("servers hold every element of every parameter exactly once, in boxes that say so") {
  for (const Layout& l : kLayouts) {
    CAPTURE(l.model);
    CAPTURE(l.servers);
    const runtime::RunPlan plan = plan_of(l.model, l.data, l.pipeline, l.tensor, l.servers, l.extra);
    const runtime::ServerPlan servers = runtime::make_server_plan(plan);
    CHECK(servers.elements == model::parameter_elements(plan.graph));
    REQUIRE(servers.count() == l.servers);
    CHECK(servers.servers.front().begin == 0);
    CHECK(servers.servers.back().end == servers.elements);
    std::map<std::size_t, std::vector<int>> covered;
    for (std::size_t p = 0; p < plan.graph.parameters.size(); ++p) {
      covered[p].resize(static_cast<std::size_t>(plan.graph.parameters[p].shape.elements()));
    }
    for (int s = 0; s < servers.count(); ++s) {
      if (s > 0) CHECK(servers.range(s).begin == servers.range(s - 1).end);
      std::int64_t held = 0;
      for (const runtime::ServedPart& part : servers.parts) {
        const Shape& shape = plan.graph.parameters[part.id.index()].shape;
        std::int64_t next = std::max(part.flat.begin, servers.range(s).begin);
        for (const runtime::FlatBox& piece : runtime::boxes_of(part, servers.range(s))) {
          CHECK(piece.begin == next);
          next += piece.box.elements();
          held += piece.box.elements();
          std::vector<int> ones(static_cast<std::size_t>(piece.box.elements()), 1);
          std::vector<int> mark(covered[part.id.index()].size(), 0);
          copy_box(piece.box, piece.box, ones.data(), whole(shape), mark.data(), sizeof(int));
          for (std::size_t i = 0; i < mark.size(); ++i) covered[part.id.index()][i] += mark[i];
        }
      }
      CHECK(held == servers.range(s).size());
    }
    for (const auto& [p, counts] : covered) {
      CHECK(std::all_of(counts.begin(), counts.end(), [](int n) { return n == 1; }));
    }
  }
}

TEST_CASE("a flat range of a part is few boxes, whose elements follow each other row-major") {
  runtime::ServedPart part;
  part.boxes = {{{1, 0, 2}, {3, 4, 5}}, {{7, 1, 0}, {2, 1, 3}}};
  part.flat = {100, 166};
  // [box][element] its global coordinates, by counting.
  std::vector<std::array<std::int64_t, 3>> wanted;
  for (const Box& box : part.boxes) {
    for (std::int64_t i = 0; i < box.elements(); ++i) {
      const std::int64_t row = box.extent[2], plane = row * box.extent[1];
      wanted.push_back({box.start[0] + i / plane, box.start[1] + i % plane / row, box.start[2] + i % row});
    }
  }
  for (std::int64_t begin = 100; begin <= 166; ++begin) {
    for (std::int64_t end = begin; end <= 166; ++end) {
      std::int64_t at = begin;
      std::size_t boxes = 0;
      for (const runtime::FlatBox& piece : runtime::boxes_of(part, {begin, end})) {
        REQUIRE(piece.begin == at);
        const Shape& extent = piece.box.extent;
        for (std::int64_t i = 0; i < piece.box.elements(); ++i, ++at) {
          const std::array<std::int64_t, 3> is{piece.box.start[0] + i / (extent[1] * extent[2]),
                                               piece.box.start[1] + i / extent[2] % extent[1],
                                               piece.box.start[2] + i % extent[2]};
          REQUIRE(is == wanted[static_cast<std::size_t>(at - 100)]);
        }
        ++boxes;
      }
      REQUIRE(at == end);
      REQUIRE(boxes <= 6);
    }
  }
}

TEST_CASE("servers are cut where blocks of norms begin, and are as equal as that allows") {
  for (const Layout& l : kLayouts) {
    CAPTURE(l.model);
    const runtime::RunPlan plan = plan_of(l.model, l.data, l.pipeline, l.tensor, l.servers, l.extra);
    const runtime::ServerPlan servers = runtime::make_server_plan(plan);
    std::set<std::int64_t> begins{servers.elements};
    std::int64_t at = 0;
    for (std::int64_t b = 0; b < servers.block.back(); ++b) {
      const Range block = runtime::block_range(servers, b);
      CHECK(block.begin == at);
      CHECK(block.size() <= 4096);
      begins.insert(block.begin);
      at = block.end;
    }
    CHECK(at == servers.elements);
    std::int64_t blocks = 0;
    for (int s = 0; s < servers.count(); ++s) {
      CHECK(begins.contains(servers.range(s).end));
      CHECK(std::abs(servers.range(s).size() - servers.elements / l.servers) <= 4096 + 1);
      const Range mine = runtime::blocks_of(servers, servers.range(s));
      CHECK(mine.begin == blocks);
      blocks = mine.end;
    }
    CHECK(blocks == servers.block.back());
  }
}

TEST_CASE("blocks are those of the replicas' shares in the norms of all_reduce") {
  const runtime::RunPlan plan = plan_of("gpt tied", 3, 2, 2, 2, "");
  const runtime::ServerPlan servers = runtime::make_server_plan(plan);
  std::int64_t found = 0;
  for (std::int64_t rank = 0; rank < plan.mesh.size(); ++rank) {
    const plan::Coordinates at = plan.mesh.coordinates(rank);
    const auto layout = runtime::lay_out_parameters(plan, plan::shard(plan.graph, 2, at.tensor), at);
    for (const runtime::HeldParameter& held : layout.held) {
      if (!held.counted) continue;
      for (const runtime::Piece& share : held.share) {
        for (const runtime::NormPiece& piece : servers.pieces) {
          const runtime::ServedPart& part = servers.parts[static_cast<std::size_t>(piece.part)];
          if (part.id != held.id || piece.replica != at.data) continue;
          if (part.divided && part.tensor != at.tensor) continue;
          if (piece.flat.begin - part.flat.begin != share.begin) continue;
          CHECK(piece.flat.size() == share.box.elements());
          ++found;
        }
      }
    }
  }
  CHECK(found == static_cast<std::int64_t>(servers.pieces.size()));
}

TEST_CASE("messages carry each gradient of each use once to the server, and all weights to every holder") {
  for (const Layout& l : kLayouts) {
    CAPTURE(l.model);
    const runtime::RunPlan plan = plan_of(l.model, l.data, l.pipeline, l.tensor, l.servers, l.extra);
    const runtime::ServerPlan servers = runtime::make_server_plan(plan);
    for (int s = 0; s < servers.count(); ++s) {
      const runtime::GradientPlaces places = runtime::gradient_places(plan, servers, s);
      std::vector<int> pushed(static_cast<std::size_t>(places.elements));
      for (std::int64_t p = 0; p < l.pipeline; ++p) {
        for (std::int64_t t = 0; t < l.tensor; ++t) {
          for (std::int64_t d = 0; d < l.data; ++d) {
            const runtime::ServerStream stream = runtime::make_stream(plan, servers, s, {d, p, t});
            for (const runtime::ServerMessage& message : stream.push) {
              CHECK(message.elements > 0);
              CHECK(message.elements <= runtime::kMessageElements);
              std::int64_t runs = 0;
              for (const auto& run : message.runs) runs += run.elements;
              CHECK(runs == message.elements);
              for (std::int64_t i = 0; i < message.elements && d == 0; ++i) {
                ++pushed[static_cast<std::size_t>(message.remote + i)];
              }
            }
          }
        }
      }
      CHECK(std::all_of(pushed.begin(), pushed.end(), [](int n) { return n == 1; }));
    }
    for (std::int64_t rank = 0; rank < plan.mesh.size(); ++rank) {
      const plan::Coordinates at = plan.mesh.coordinates(rank);
      const auto layout = runtime::lay_out_parameters(plan, plan::shard(plan.graph, l.tensor, at.tensor), at);
      std::vector<int> pulled(layout.weight_elements);
      for (int s = 0; s < servers.count(); ++s) {
        for (const runtime::ServerMessage& message : runtime::make_stream(plan, servers, s, at).pull) {
          for (const auto& run : message.runs) {
            for (std::int64_t i = 0; i < run.elements; ++i) ++pulled[static_cast<std::size_t>(run.local + i)];
          }
        }
      }
      for (const runtime::HeldParameter& held : layout.held) {
        const auto* begin = pulled.data() + held.weight;
        CHECK(std::all_of(begin, begin + held.elements, [](int n) { return n == 1; }));
      }
      CHECK(std::accumulate(pulled.begin(), pulled.end(), std::int64_t{0}) ==
            std::accumulate(layout.held.begin(), layout.held.end(), std::int64_t{0},
                            [](std::int64_t n, const auto& held) { return n + held.elements; }));
    }
  }
}
