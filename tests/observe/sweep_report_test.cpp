// A sweep's results as a table, CSV and JSON.
#include "trainer/observe/sweep_report.hpp"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

using namespace trainer::observe;

namespace {

std::vector<SweepRow> rows() {
  std::vector<SweepRow> all(3);
  all[0].combination = {{"parallel.pipeline", "1"}, {"parallel.partition", "[3,5]"}};
  all[0].state = SweepRow::State::Done;
  all[0].ranks = 1;
  all[0].steps = 9;
  all[0].step_seconds = 0.125;
  all[0].samples_per_second = 256;
  all[0].loss = 0.1;
  all[0].predicted_step_seconds = 0.1;
  all[1] = all[0];
  all[1].combination[0].second = "2";
  all[1].ranks = 2;
  all[1].step_seconds = 0.0625;
  all[1].samples_per_second = 512;
  all[1].bubble = 0.25;
  all[1].peak_memory = 3 << 20;
  all[1].estimated = true;
  all[2].combination = all[0].combination;
  all[2].combination[0].second = "8";
  all[2].state = SweepRow::State::Failed;
  all[2].reason = "needs \"8\" ranks, has 4";
  all[2].exit_code = 2;
  return all;
}

}  // namespace

TEST_CASE("the table has a row a combination, marks the fastest and says what failed") {
  CHECK(sweep_table(rows()) ==
        "pipeline  partition  ranks  step ms  samples/s  bubble  peak memory  loss  predicted ms\n"
        "--------  ---------  -----  -------  ---------  ------  -----------  ----  ------------  -------\n"
        "       1  [3,5]          1   125.00        256       -            -   0.1        100.00\n"
        "       2  [3,5]          2    62.50        512   25.0%      3.0 MiB   0.1        100.00  fastest\n"
        "       8  [3,5]          -        -          -       -            -     -             -  failed\n"
        "predicted: an estimate where parallel.profile names no profile\n"
        "parallel.pipeline=8 parallel.partition=[3,5]: needs \"8\" ranks, has 4\n");
  CHECK(fastest(rows()) == 1);
  std::vector<SweepRow> dropped = rows();
  dropped[1].state = SweepRow::State::Dropped;
  CHECK(fastest(dropped) == 0);
  dropped[0].state = SweepRow::State::Failed;
  CHECK(!fastest(dropped));
}

TEST_CASE("CSV quotes what needs it and leaves empty what was not measured; numbers keep their digits") {
  CHECK(sweep_csv(rows()) ==
        "parallel.pipeline,parallel.partition,state,reason,exit_code,ranks,steps,step_seconds,samples_per_second,"
        "tokens_per_second,bubble,peak_memory,predicted_memory,loss,predicted_step_seconds,predicted_by\r\n"
        "1,\"[3,5]\",done,,0,1,9,0.125,256,,,,,0.1,0.1,profile\r\n"
        "2,\"[3,5]\",done,,0,2,9,0.0625,512,,0.25,3145728,,0.1,0.1,estimate\r\n"
        "8,\"[3,5]\",failed,\"needs \"\"8\"\" ranks, has 4\",2,0,0,,,,,,,,,\r\n");
}

TEST_CASE("JSON names the fastest and its command") {
  const auto json = nlohmann::json::parse(sweep_json(rows(), "trainer --config a.json"));
  CHECK(json["fastest"] == 1);
  CHECK(json["best_command"] == "trainer --config a.json");
  CHECK(json["combinations"].size() == 3);
  CHECK(json["combinations"][1]["set"]["parallel.pipeline"] == "2");
  CHECK(json["combinations"][1]["step_seconds"] == 0.0625);
  CHECK(json["combinations"][1]["predicted_by"] == "estimate");
  CHECK(!json["combinations"][0].contains("bubble"));
  CHECK(!json["combinations"][2].contains("predicted_by"));
  CHECK(json["combinations"][2]["reason"] == "needs \"8\" ranks, has 4");
  CHECK(!nlohmann::json::parse(sweep_json({rows()[2]}, "")).contains("fastest"));
}
