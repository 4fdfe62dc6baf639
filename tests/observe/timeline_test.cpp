// The trace and the record of a step, from a time line made by hand.
#include <doctest/doctest.h>

#include <map>
#include <nlohmann/json.hpp>

#include "trainer/observe/timeline.hpp"

namespace trainer::observe {
namespace {

using Json = nlohmann::json;

// Two stages, one micro-batch, one step from 1,000,000 ns; then a checkpoint.
Timeline two_ranks() {
  Timeline timeline;
  timeline.typical = 3;
  RankTimeline first{.place = "stage 0", .column = 0, .spans = {}, .bytes = {{0, 100, 40, 8}}};
  first.spans = {
      {1'000'000, 1'010'001, 0, 0, Activity::Forward},         {1'010'100, 1'010'200, 0, 0, Activity::SendForward},
      {1'010'300, 1'050'000, 0, 0, Activity::ReceiveBackward}, {1'050'000, 1'060'000, 0, 0, Activity::Backward},
      {1'000'000, 1'060'000, -1, -1, Activity::Pass},          {1'000'000, 1'070'000, 3, -1, Activity::Step},
      {1'070'100, 1'080'000, 3, -1, Activity::Checkpoint}};
  RankTimeline second{.place = "stage 1", .column = 0, .spans = {}, .bytes = {{1, 100, 40, 8}}};
  second.spans = {
      {1'000'500, 1'011'000, 0, 1, Activity::ReceiveForward}, {1'011'000, 1'020'000, 0, 1, Activity::Forward},
      {1'020'000, 1'030'000, 0, 1, Activity::BackwardInput},  {1'030'000, 1'030'050, 0, 1, Activity::SendBackward},
      {1'031'000, 1'041'000, 0, 1, Activity::BackwardWeight}, {1'000'500, 1'041'000, -1, -1, Activity::Pass},
      {1'000'500, 1'071'000, 3, -1, Activity::Step}};
  timeline.ranks = {first, second};
  return timeline;
}

TEST_CASE("a trace: slices, arrows with both ends, memory") {
  Timeline timeline = two_ranks();
  const Json trace = Json::parse(trace_json(timeline));
  CHECK(trace["displayTimeUnit"] == "ms");
  std::map<std::string, std::vector<Json>> by_name;
  std::map<std::string, std::pair<Json, Json>> arrows;
  std::map<int, std::vector<double>> memory;
  for (const Json& event : trace["traceEvents"]) {
    const std::string phase = event["ph"];
    if (phase == "X") by_name[event["name"]].push_back(event);
    if (phase == "s") arrows[event["id"]].first = event;
    if (phase == "f") arrows[event["id"]].second = event;
    if (phase == "C") memory[event["pid"]].push_back(event["args"]["bytes"]);
  }
  REQUIRE(by_name["0F0"].size() == 1);
  CHECK(by_name["0F0"][0]["ts"] == 0.0);
  CHECK(by_name["0F0"][0]["dur"] == 10.001);
  CHECK(by_name["0F0"][0]["cat"] == "compute");
  CHECK(by_name["1W0"][0]["pid"] == 1);
  CHECK(by_name["1W0"][0]["args"]["stage"] == 1);
  CHECK(by_name["1RECV_F0"][0]["ts"] == 0.5);
  CHECK(by_name["step 3"].size() == 2);
  CHECK(by_name.contains("checkpoint"));
  REQUIRE(arrows.size() == 2);
  for (const auto& arrow : arrows) {
    const auto& ends = arrow.second;
    CAPTURE(arrow.first);
    REQUIRE(ends.first.is_object());
    REQUIRE(ends.second.is_object());
    CHECK(ends.first["pid"] != ends.second["pid"]);
    CHECK(ends.first["ts"] <= ends.second["ts"]);
    CHECK(ends.first["name"] == ends.second["name"]);
  }
  CHECK(memory[0] == std::vector<double>{140, 0});
  CHECK(memory[1] == std::vector<double>{140, 48, 0});
}

TEST_CASE("the same message of another step or replica is another arrow") {
  Timeline timeline = two_ranks();
  for (RankTimeline& rank : std::vector<RankTimeline>(timeline.ranks)) {
    rank.column = 1;
    timeline.ranks.push_back(rank);
  }
  for (RankTimeline& rank : timeline.ranks) {
    for (Span span : std::vector<Span>(rank.spans)) {
      span.begin += 1'000'000;
      span.end += 1'000'000;
      if (span.activity == Activity::Step) span.index = 4;
      rank.spans.push_back(span);
    }
  }
  std::map<std::string, int> ends;
  const Json trace = Json::parse(trace_json(timeline));
  for (const Json& event : trace["traceEvents"]) {
    if (event["ph"] == "s" || event["ph"] == "f") ++ends[event["id"]];
  }
  CHECK(ends.size() == 8);
  for (const auto& [id, count] : ends) CHECK(count == 2);
}

TEST_CASE("a pass that is given up and walked again: its messages have arrows of their own, its memory counts once") {
  Timeline timeline = two_ranks();
  for (RankTimeline& rank : timeline.ranks) {
    // The forwards and all messages of the first walk, then the whole of the second.
    std::vector<Span> again;
    for (const Span& span : rank.spans) {
      const bool message = span.activity >= Activity::ReceiveForward && span.activity <= Activity::SendBackward;
      if (span.activity == Activity::Forward || message) again.push_back(span);
    }
    for (Span& span : again) {
      span.begin -= 100'000;
      span.end -= 100'000;
    }
    for (Span& span : rank.spans) {
      if (span.activity == Activity::Step) span.begin -= 100'000;
    }
    rank.spans.insert(rank.spans.begin(), again.begin(), again.end());
  }
  const Json trace = Json::parse(trace_json(timeline));
  std::map<std::string, std::string> ends;
  std::vector<double> memory;
  for (const Json& event : trace["traceEvents"]) {
    const std::string phase = event["ph"];
    if (phase == "s" || phase == "f") ends[event["id"]] += phase;
    if (phase == "C" && event["pid"] == 0) memory.push_back(event["args"]["bytes"]);
  }
  CHECK(ends.size() == 4);
  for (const auto& arrow : ends) CHECK((arrow.second == "sf" || arrow.second == "fs"));
  CHECK(memory == std::vector<double>{140, 0});
}

TEST_CASE("one step for the report: seconds from its beginning, without what encloses all") {
  Timeline timeline = two_ranks();
  const Json json = Json::parse(actions_json(timeline, 3));
  CHECK(json["step"] == 3);
  CHECK(json["seconds"].get<double>() == doctest::Approx(71e-6));
  REQUIRE(json["ranks"].size() == 2);
  CHECK(json["ranks"][0]["place"] == "stage 0");
  const Json& spans = json["ranks"][0]["spans"];
  REQUIRE(spans.size() == 5);  // no pass, no checkpoint
  CHECK(spans[0][0] == "0F0");
  CHECK(spans[0][1] == 0.0);
  CHECK(spans[0][2].get<double>() == doctest::Approx(10e-6));
  CHECK(spans[4][0] == "step 3");
}

}  // namespace
}  // namespace trainer::observe
