// The page of a run: its pieces, and files that are missing, broken or hostile.
#include <doctest/doctest.h>

#include <cmath>
#include <string>

#include "observe/svg.hpp"
#include "trainer/observe/report.hpp"
#include "trainer/observe/summary.hpp"

namespace trainer::observe {
namespace {

using Ticks = std::vector<double>;

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t found = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

TEST_CASE("ticks are round numbers within the range") {
  CHECK(linear_ticks(0, 10, 5) == Ticks{0, 2, 4, 6, 8, 10});
  CHECK(linear_ticks(-1, 1, 4) == Ticks{-1, -0.5, 0, 0.5, 1});
  CHECK(linear_ticks(1, 150, 6) == Ticks{50, 100, 150});
  CHECK(log_ticks(0.5, 200, 6) == Ticks{1, 10, 100});
  CHECK(log_ticks(1, 100, 6) == Ticks{1, 2, 5, 10, 20, 50, 100});
  CHECK(log_ticks(2, 9, 4) == linear_ticks(2, 9, 4));
  for (double low = 1e-7; low < 1e7; low *= 3.7) {
    for (double ratio = 1.001; ratio < 1e6; ratio *= 4.1) {
      const double high = low * ratio;
      for (const Ticks& ticks : {linear_ticks(low, high, 5), log_ticks(low, high, 5)}) {
        CAPTURE(low);
        CAPTURE(high);
        CHECK(ticks.size() >= 2);
        CHECK(ticks.size() <= 12);
        CHECK(ticks.front() >= low * (1 - 2e-3));
        CHECK(ticks.back() <= high * (1 + 2e-3));
      }
    }
  }
}

TEST_CASE("labels of ticks") {
  CHECK(tick_label(0) == "0");
  CHECK(tick_label(0.25) == "0.25");
  CHECK(tick_label(4e-4) == "0.0004");
  CHECK(tick_label(4e-5) == "4e-5");
  CHECK(tick_label(1e-9) == "1e-9");
  CHECK(tick_label(2500) == "2500");
  CHECK(tick_label(12000) == "12k");
  CHECK(tick_label(1500000) == "1.5M");
  CHECK(tick_label(-30) == "-30");
}

TEST_CASE("text is escaped") {
  CHECK(escape("a<b>&\"'c") == "a&lt;b&gt;&amp;&quot;&#39;c");
  CHECK(escape("µ – 日") == "µ – 日");
  CHECK(escape(std::string("a\0b\x1b", 4)) ==
        "a\xEF\xBF\xBD"
        "b\xEF\xBF\xBD");
  for (const char* broken : {"\xff", "\xc0\xaf", "\xed\xa0\x80", "\xe2\x82", "\xf5\x80\x80\x80"}) {
    CAPTURE(broken);
    const std::string safe = escape(broken);
    CHECK(count(safe, "\xEF\xBF\xBD") * 3 == safe.size());
  }
}

TEST_CASE("thinned curves keep their extremes and their ends") {
  std::vector<Point> points;
  for (int i = 0; i < 10000; ++i) points.push_back({static_cast<double>(i), std::sin(i * 0.01)});
  points[1234].y = 50;
  points[4321].y = -50;
  const std::vector<Point> kept = thinned(points, 200);
  CHECK(kept.size() <= 200);
  const auto at = [&](double y) { return std::count_if(kept.begin(), kept.end(), [y](Point p) { return p.y == y; }); };
  CHECK(at(50) == 1);
  CHECK(at(-50) == 1);
  CHECK(kept.front().x == 0);
  CHECK(kept.back().x == 9999);
  for (std::size_t i = 1; i < kept.size(); ++i) CHECK(kept[i - 1].x < kept[i].x);
  CHECK(thinned(kept, 200).size() == kept.size());
}

TEST_CASE("a bar's parts are in proportion") {
  const std::string bar = stacked_bar({{"a", "tip <1>", 1}, {"b", "", 0}, {"c", "x", 3}}, 8, 4);
  CHECK(has(bar, R"(<rect class="a" x="0.00" y="0" width="125.00")"));
  CHECK(!has(bar, R"(class="b")"));
  CHECK(has(bar, R"(<rect class="c" x="125.00" y="0" width="375.00")"));
  CHECK(has(bar, "tip &lt;1&gt;"));
  CHECK(has(bar, R"(class="mark" x="498.50")"));
  CHECK(!has(stacked_bar({{"a", "", 1}}, 0), "rect"));
}

RunFiles whole_run() {
  RunFiles files;
  files.name = "<gpt>";
  std::string metrics;
  for (int step = 1; step <= 100; ++step) {
    metrics += "{\"step\":" + std::to_string(step) + ",\"loss\":" + std::to_string(500.0 / step) +
               ",\"grad_norm\":1.5,\"learning_rate\":0.001,\"step_seconds\":0.25,\"samples_per_second\":16.0,"
               "\"tokens_per_second\":1024.0,\"time\":{\"forward\":[0.1,0.2],\"bubble\":[0.15,0.05]}}\n";
  }
  files.metrics = metrics + "{\"step\":50,\"validation_loss\":11.5,\"accuracy\":0.5}\n";
  RunFacts facts;
  facts.build = "trainer 1";
  facts.total_steps = 100;
  facts.pipeline = 2;
  facts.schedule = "1f1b";
  facts.micro_batches = 4;
  facts.stages = {"embedding", "head"};
  facts.ranks = {{"stage 0", 1e6, 1e6, 2e6, 3e6, 0, 1e5, 6e6}, {"stage 1", 1e6, 1e6, 2e6, 1e6, 0, 1e5, 6e6}};
  facts.config = R"({"name": "</pre><script>alert(1)</script>"})";
  files.run = to_json(facts);
  RunSummary summary;
  summary.first_step = 1;
  summary.last_step = 100;
  summary.loss = 5;
  summary.memory = {{0, 13.1e6, 13.2e6, 7e6, 30e6}, {1, 11.1e6, 11.0e6, 5e6, 30e6}};
  summary.splits.resize(2);
  summary.splits[0].forward = 0.2;
  summary.splits[1].forward = 0.1;
  summary.splits[1].bubble = 0.1;
  summary.promises = {{"pass seconds", "simulator", 0.18, 0.2}, {"bubble", "simulator", 0.2, 0.25}};
  files.summary = to_json(summary);
  files.actions = R"({"step":7,"seconds":0.2,"ranks":[
    {"rank":0,"place":"stage 0","spans":[["0F0",0.0,0.1],["0B0",0.15,0.2],["0RECV_B0",0.1,0.15],["step 7",0,0.2]]},
    {"rank":1,"place":"stage 1","spans":[["1F0",0.1,0.12],["1B0",0.12,0.15],["agreement",0.15,0.2]]}]})";
  return files;
}

TEST_CASE("a whole run's page stands alone, is escaped, and shows each part") {
  const ReportPage page = report_page(whole_run());
  CHECK(page.notices.empty());
  CHECK(page.html.starts_with("<!DOCTYPE html>"));
  CHECK(has(page.html, "<h1>&lt;gpt&gt;</h1>"));
  CHECK(!has(page.html, "<script"));
  CHECK(!has(page.html, "http"));
  CHECK(has(page.html, "&lt;/pre&gt;&lt;script&gt;"));
  for (const char* title : {"Training", "A step", "Where the time of a step went", "Predicted and measured", "Memory",
                            "Configuration", "Validation accuracy"}) {
    CHECK(has(page.html, title));
  }
  CHECK(count(page.html, "<section") == count(page.html, "</section>"));
  CHECK(count(page.html, "<svg") == count(page.html, "</svg>"));
  CHECK(count(page.html, "<g>") == count(page.html, "</g>"));
  CHECK(has(page.html, "0F0: 0.00 ms to 100.0 ms"));
  CHECK(has(page.html, "<b>100</b><span>steps, done</span>"));
  CHECK(has(page.html, "-10.0%"));
  CHECK(has(page.html, "-5.0 points"));
  CHECK(has(page.html, "4 micro-batches"));
}

TEST_CASE("a run that was killed: what it logged is shown, what is missing is said") {
  RunFiles files = whole_run();
  files.summary.reset();
  files.actions.reset();
  *files.metrics += "{\"step\":101,\"loss\":4.9,\"grad";  // the kill came in the middle of a line
  const ReportPage page = report_page(files);
  REQUIRE(page.notices.size() == 2);
  CHECK(page.notices[0] ==
        "metrics.jsonl: 1 of 102 lines is no JSON object with a step and is left out, line 102 first.");
  CHECK(has(page.notices[1], "There is no summary.json"));
  CHECK(has(page.html, "Mean of the logged steps but the first."));
  CHECK(has(page.html, "forward: 100.0 ms, 40.0%"));
  CHECK(!has(page.html, "<h2>A step</h2>"));
  CHECK(!has(page.html, "Predicted and measured"));
  CHECK(has(page.html, "no end yet"));
}

TEST_CASE("files of anything make a page and notices, never an error") {
  for (const char* text :
       {"", "{}", "[]", "null", "{\"step\":\"x\"}", "\xff\xfe", "{\"step\":1e999}", "{\"memory\":[1,{}],\"time\":3}",
        "{\"ranks\":[{\"spans\":[[1,2],[\"F\",0,1],[\"\",0,0],[\"9\",1,2]]},{}],\"seconds\":\"a\"}",
        "{\"step\":1,\"loss\":null,\"time\":{\"forward\":[\"a\",1],\"bubble\":4}}",
        "{\"step\":2,\"loss\":-1e308,\"grad_norm\":0}\n{\"step\":2,\"loss\":1e308,\"grad_norm\":1e-320}"}) {
    CAPTURE(text);
    RunFiles files;
    files.name = text;
    files.metrics = files.run = files.summary = files.actions = text;
    const ReportPage page = report_page(files);
    CHECK(page.html.ends_with("</html>\n"));
    CHECK(!has(page.html, "nan"));
    CHECK(!has(page.html, "=\"inf"));
  }
  const ReportPage nothing = report_page({});
  CHECK(nothing.notices.size() == 3);
}

}  // namespace
}  // namespace trainer::observe
