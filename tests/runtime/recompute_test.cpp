// What is computed again instead of kept: the same bits, less memory, and "auto" takes no more than it must. (Layouts
// with recompute beside one rank without it are in support/equivalence.hpp.)
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>

#include "support/equivalence.hpp"
#include "trainer/core/error.hpp"
#include "trainer/plan/cut.hpp"
#include "trainer/runtime/recompute.hpp"

using namespace trainer;
using runtime::MemoryLimit;

namespace {

// Wide enough that its activations are megabytes.
runtime::RunPlan plan_of(const std::string& recompute, std::int64_t pipeline = 1, const std::string& schedule = "gpipe",
                         std::int64_t tensor = 1) {
  test::Case c;
  c.model = "gpt dropout";
  c.pipeline = pipeline;
  c.tensor = tensor;
  c.schedule = schedule;
  c.extra =
      "model.hidden_size=128;training.sequence_length=16;training.batch_size=32;parallel.partition=uniform;"
      "training.recompute=" +
      recompute;
  return runtime::make_plan(config::parse(test::model_json(c.model), "test", test::overrides(c, "")), c.ranks());
}

std::size_t predicted(const runtime::RunPlan& plan, std::int64_t rank = 0) {
  return runtime::predict_memory(plan, rank, 1, 0).total();
}

double cost_of(const runtime::RunPlan& plan) {
  return runtime::recompute_cost(plan.graph, {0, static_cast<std::int64_t>(plan.graph.nodes.size())}, plan.recompute);
}

std::string message_of(const std::string& recompute) {
  try {
    (void)plan_of(recompute);
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Usage);
    return error.what();
  }
  return "accepted";
}

}  // namespace

TEST_CASE("a segment runs again what its own backward reads, and nothing more") {
  const runtime::RunPlan plan = plan_of("full");
  const Range all{0, static_cast<std::int64_t>(plan.graph.nodes.size())};
  std::vector<std::string> again;
  for (const NodeId node : runtime::recomputed_nodes(plan.graph, all, plan.recompute)) {
    const std::string& name = plan.graph.nodes[node.index()].name;
    if (!name.starts_with("h.1") && !name.starts_with("h.2")) again.push_back(name);
  }
  // No product at a segment's end, no sum that only others read, not the logits, and nothing of the embedding.
  CHECK(again == std::vector<std::string>{"h.0.ln_1", "h.0.attn.c_attn", "h.0.attn", "h.0.attn.c_proj",
                                          "h.0.attn.dropout", "h.0.attn.residual", "h.0.ln_2", "h.0.mlp.c_fc",
                                          "h.0.mlp.gelu", "ln_f"});
  // Half a block has no use for the projection of the other half.
  const runtime::RunPlan half = plan_of("[\"h.0.attn\"]");
  again.clear();
  for (const NodeId node : runtime::recomputed_nodes(half.graph, all, half.recompute)) {
    again.push_back(half.graph.nodes[node.index()].name);
  }
  CHECK(again == std::vector<std::string>{"h.0.ln_1", "h.0.attn.c_attn", "h.0.attn"});
}

TEST_CASE("what is computed again is not kept") {
  for (const std::string schedule : {"gpipe", "1f1b", "zb-h1"}) {
    CAPTURE(schedule);
    const runtime::RunPlan kept = plan_of("none", 2, schedule);
    const runtime::RunPlan again = plan_of("full", 2, schedule);
    const auto activations = [](const runtime::RunPlan& plan) {
      return runtime::predict_memory(plan, 0, 1, 0).activations;
    };
    CHECK(10 * activations(again) < 6 * activations(kept));
    CHECK(runtime::recompute_flops(kept) == 0);
    CHECK(runtime::step_flops(again) == runtime::step_flops(kept));
    const auto plain = plan::flops_of(again.graph, again.nodes(StageId(0)));
    const auto times = runtime::stage_flops(again, StageId(0));
    CHECK(times.forward == plain.forward);
    CHECK(times.backward_weight == plain.backward_weight);
    CHECK(times.backward_input > plain.backward_input);
    CHECK(times.backward_input < plain.backward_input + plain.forward);
  }
}

TEST_CASE("names of layers are layers or parts of them, once however often they are named") {
  const auto segments = [](const std::string& list) { return plan_of(list).recompute; };
  CHECK(segments("[\"h.1\"]") == segments("[\"h.1.mlp\",\"h.1\",\"h.1.attn\",\"h.1\"]"));
  CHECK(segments("[\"h.1.attn\",\"h.1.mlp\"]").size() == 2);
  CHECK(segments("[\"head\",\"h.0\"]").front().begin < segments("[\"head\",\"h.0\"]").back().begin);
  CHECK(message_of("[\"h.0\",\"h.12\"]") ==
        "training.recompute[1] is \"h.12\", which is no layer of this model; expected one of \"embedding\" … \"head\", "
        "or a part of one, as \"h.0.attn\"; did you mean \"h.1\"?");
  CHECK(runtime::describe_recompute(plan_of("full")) == "embedding … head");
  CHECK(runtime::describe_recompute(plan_of("[\"h.0\",\"h.1.attn\",\"h.1.mlp\",\"head\"]")) ==
        "h.0, h.1.attn … h.1.mlp, head");
  CHECK(runtime::describe_recompute(plan_of("none")) == "nothing");
}

TEST_CASE("auto computes nothing again where all fits, everything where nothing does, and fits where it can") {
  for (const std::string schedule : {"gpipe", "zb-h1"}) {
    for (const std::int64_t pipeline : {1, 2, 3}) {
      CAPTURE(schedule);
      CAPTURE(pipeline);
      runtime::RunPlan plan = plan_of("auto", pipeline, schedule);
      const runtime::RunPlan none = plan_of("none", pipeline, schedule);
      for (std::int64_t rank = 0; rank < pipeline; ++rank) {
        const std::size_t most = predicted(none, rank);
        runtime::fit_recompute(plan, 1, 0, {.bytes = 1});
        const std::size_t least = predicted(plan, rank);
        REQUIRE(least < most);
        for (const std::size_t limit : {least, least + (most - least) / 4, least + (most - least) / 2, most - 1}) {
          runtime::fit_recompute(plan, 1, 0, {.bytes = limit});
          CHECK(predicted(plan, rank) <= limit);
          CHECK(!plan.recompute.empty());
        }
        runtime::fit_recompute(plan, 1, 0, {.bytes = most});
        CHECK(predicted(plan, rank) == most);
      }
    }
  }
}

// Every combination of halves and whole blocks of a small model: none that fits is much cheaper.
TEST_CASE("auto is close to the cheapest of all combinations, and no part of it is more than it needs") {
  runtime::RunPlan plan = plan_of("auto");
  const std::size_t most = predicted(plan);
  runtime::fit_recompute(plan, 1, 0, {.bytes = 1});
  const std::size_t least = predicted(plan);
  struct Way {
    std::size_t bytes;
    double cost;
  };
  std::vector<Way> ways;
  const std::int64_t choices[5] = {0, 1, 2, 3, 4};  // of a block: nothing, attn, mlp, both apart, whole
  const auto unit_of = [&](const std::string& name) {
    for (const auto* parts : {&plan.graph.units, &plan.graph.pieces}) {
      for (const model::Unit& part : *parts) {
        if (part.name == name) return Range{part.node_begin, part.node_end};
      }
    }
    return Range{};
  };
  for (const std::int64_t a : choices) {
    for (const std::int64_t b : choices) {
      for (const std::int64_t c : choices) {
        for (const bool head : {false, true}) {
          plan.recompute.clear();
          const std::int64_t of_block[3] = {a, b, c};
          for (int block = 0; block < 3; ++block) {
            const std::int64_t choice = of_block[block];
            const std::string h = fmt::format("h.{}", block);
            if (choice == 1 || choice == 3) plan.recompute.push_back(unit_of(h + ".attn"));
            if (choice == 2 || choice == 3) plan.recompute.push_back(unit_of(h + ".mlp"));
            if (choice == 4) plan.recompute.push_back(unit_of(h));
          }
          if (head) plan.recompute.push_back(unit_of("head"));
          ways.push_back({predicted(plan), cost_of(plan)});
        }
      }
    }
  }
  for (int tenth = 0; tenth <= 9; ++tenth) {
    CAPTURE(tenth);
    const std::size_t limit = least + (most - least) * static_cast<std::size_t>(tenth) / 10;
    double cheapest = INFINITY;
    for (const Way& way : ways) {
      if (way.bytes <= limit) cheapest = std::min(cheapest, way.cost);
    }
    runtime::fit_recompute(plan, 1, 0, {.bytes = limit});
    REQUIRE(predicted(plan) <= limit);
    CHECK(cost_of(plan) <= 1.02 * cheapest);
    const std::vector<Range> chosen = plan.recompute;
    for (std::size_t without = 0; without < chosen.size(); ++without) {
      plan.recompute = chosen;
      plan.recompute.erase(plan.recompute.begin() + static_cast<std::ptrdiff_t>(without));
      CHECK(predicted(plan) > limit);
    }
  }
}

TEST_CASE("ranks of a pipeline decide for their own stages, and a stated limit is held") {
  runtime::RunPlan plan = plan_of("auto", 3, "1f1b");
  const runtime::RunPlan none = plan_of("none", 3, "1f1b");
  // The second stage has two blocks, the others one or none.
  const std::size_t limit = std::max({predicted(none, 0), predicted(none, 2), predicted(none, 1) * 9 / 10});
  REQUIRE(predicted(none, 1) > limit);
  runtime::fit_recompute(plan, 1, 0, {.bytes = limit});
  REQUIRE(!plan.recompute.empty());
  for (const Range segment : plan.recompute) {
    CHECK(segment.begin >= plan.nodes(StageId(1)).begin);
    CHECK(segment.end <= plan.nodes(StageId(1)).end);
  }
  plan.config.parallel.memory_per_rank = static_cast<std::int64_t>(limit);
  CHECK_NOTHROW(runtime::require_memory_per_rank(plan, 1, 0));
  plan.config.parallel.memory_per_rank = 4096;
  CHECK_THROWS_AS(runtime::require_memory_per_rank(plan, 1, 0), Error);
}
