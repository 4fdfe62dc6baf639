// Words for numbers, and tables.
#include <doctest/doctest.h>

#include <cmath>
#include <memory>

#include "support.hpp"
#include "trainer/observe/reporters.hpp"

namespace trainer::observe {
namespace {

TEST_CASE("bytes") {
  CHECK(human_bytes(0) == "0 B");
  CHECK(human_bytes(512) == "512 B");
  CHECK(human_bytes(1023) == "1023 B");
  CHECK(human_bytes(1024) == "1.0 KiB");
  CHECK(human_bytes(1.2 * 1024 * 1024 * 1024) == "1.2 GiB");
  CHECK(human_bytes(1024.0 * 1024 - 1) == "1.0 MiB");  // never "1024.0 KiB"
  CHECK(human_bytes(5e15) == "4547.5 TiB");
}

TEST_CASE("counts") {
  CHECK(human_count(0) == "0");
  CHECK(human_count(7.25) == "7.2");
  CHECK(human_count(999) == "999");
  CHECK(human_count(1000) == "1.0k");
  CHECK(human_count(14.2e6) == "14.2M");
  CHECK(human_count(999949) == "999.9k");
  CHECK(human_count(999950) == "1.0M");  // never "1000.0k"
  CHECK(human_count(1.5e9) == "1.5B");
  CHECK(human_count(-2500) == "-2.5k");
  CHECK(human_count(std::nan("")) == "-");
  CHECK(human_count(INFINITY) == "-");
}

TEST_CASE("durations") {
  CHECK(human_duration(0) == "0 s");
  CHECK(human_duration(0.0032) == "3.2 ms");
  CHECK(human_duration(0.09994) == "99.9 ms");
  CHECK(human_duration(0.0999999) == "0.10 s");
  CHECK(human_duration(0.42) == "0.42 s");
  CHECK(human_duration(9.996) == "10.0 s");
  CHECK(human_duration(59.96) == "1 min 00 s");
  CHECK(human_duration(190) == "3 min 10 s");
  CHECK(human_duration(3599.6) == "1 h 00 min");
  CHECK(human_duration(3720) == "1 h 02 min");
  CHECK(human_duration(86399) == "1 d 00 h");
  CHECK(human_duration(86400 * 2.5) == "2 d 12 h");
  CHECK(human_duration(-190) == "-3 min 10 s");
  CHECK(human_duration(INFINITY) == "-");
}

TEST_CASE("a table aligns numbers right and text left") {
  CHECK(format_table({"stage", "units", "memory", "schedule"},
                     {{"0", "embedding, 0-2", "1.2 GiB", "1f1b"}, {"12", "head", "12.0 MiB", "gpipe"}}) ==
        "stage  units             memory  schedule\n"
        "-----  --------------  --------  --------\n"
        "    0  embedding, 0-2   1.2 GiB  1f1b\n"
        "   12  head            12.0 MiB  gpipe\n");
}

TEST_CASE("a table with holes, and what counts as a number") {
  CHECK(format_table({"a", "b"}, {{"x"}, {"yy", "1"}}) ==
        "a   b\n"
        "--  -\n"
        "x\n"
        "yy  1\n");
  CHECK(format_table({"time", "rate", "text", "sign"},
                     {{"3 min 10 s", "1.5e-3", "12 and more words", "-1"}, {"0.42 s", "41%", "7", "-"}}) ==
        "      time    rate  text               sign\n"
        "----------  ------  -----------------  ----\n"
        "3 min 10 s  1.5e-3  12 and more words    -1\n"
        "    0.42 s     41%  7                     -\n");
  CHECK(format_table({"name", "n"}, {{"é", "1"}, {"ee", "10"}}) ==  // widths are characters, not bytes
        "name   n\n"
        "----  --\n"
        "é      1\n"
        "ee    10\n");
  CHECK(format_table({"only", "header"}, {}) == "only  header\n----  ------\n");
}

TEST_CASE("a fan-out hands every call to each, in order") {
  auto first = std::make_unique<Listener>();
  auto second = std::make_unique<Listener>();
  const Listener& a = *first;
  const Listener& b = *second;
  std::vector<std::unique_ptr<Observer>> both;
  both.push_back(std::move(first));
  both.push_back(std::move(second));
  const auto all = make_fan_out(std::move(both));
  all->step(step_report(3, 9));
  all->evaluation({.step = 3, .loss = 0, .accuracy = {}, .targets = 0, .seconds = 0});
  all->saved(3, "runs/x", 0.5);
  all->note("n");
  all->warning("w");
  CHECK(a.heard == "step 3;evaluation 3;saved 3 runs/x;note n;warning w;");
  CHECK(b.heard == a.heard);
}

}  // namespace
}  // namespace trainer::observe
