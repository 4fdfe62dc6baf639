// What a person sees, on a terminal and in a log.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <sstream>

#include "support.hpp"
#include "trainer/observe/reporters.hpp"

namespace trainer::observe {
namespace {

const std::string kClear = "\r\x1b[K";

TEST_CASE("a log has plain lines of the first, every n-th and the last step") {
  std::ostringstream out;
  const auto progress = make_progress(out, {.terminal = false, .every_steps = 10, .columns = 80, .clock = {}});
  for (std::int64_t step = 1; step <= 25; ++step) progress->step(step_report(step, 25));
  CHECK(out.str() ==
        "step  1/25  loss 1.3333  1.0k tokens/s  25% of peak  12.0 s left\n"
        "step 10/25  loss 10.3333  1.0k tokens/s  25% of peak  7.50 s left\n"
        "step 20/25  loss 20.3333  1.0k tokens/s  25% of peak  2.50 s left\n"
        "step 25/25  loss 25.3333  1.0k tokens/s  25% of peak\n");
}

TEST_CASE("rates are means since the line before") {
  std::ostringstream out;
  const auto progress = make_progress(out, {.terminal = false, .every_steps = 2, .columns = 80, .clock = {}});
  StepReport report = step_report(1, 4);
  report.tokens = report.step_tokens = 0;  // no sequences: samples
  progress->step(report);
  report.step = 2;
  report.step_seconds = 1.5;
  progress->step(report);
  report.step = 3;
  report.step_seconds = 0.5;
  progress->step(report);
  report.step = 4;
  report.peak_flops = 0;
  progress->step(report);
  CHECK(out.str().find("step 1/4  loss 1.3333  8 samples/s  25% of peak") != std::string::npos);
  CHECK(out.str().find("step 2/4  loss 1.3333  2.7 samples/s  8.3% of peak") != std::string::npos);
  CHECK(out.str().find("step 4/4  loss 1.3333  8 samples/s\n") != std::string::npos);
}

TEST_CASE("evaluations, saves, notes and warnings are lines of their own") {
  std::ostringstream out;
  const auto progress = make_progress(out, {.terminal = false, .every_steps = 1, .columns = 80, .clock = {}});
  progress->note("2 ranks");
  progress->evaluation({.step = 20, .loss = 2.5, .accuracy = {}, .targets = 10240, .seconds = 0.4});
  progress->evaluation({.step = 20, .loss = 2.5, .accuracy = 0.8125, .targets = 16, .seconds = 61});
  progress->saved(20, "runs/gpt/step-20", 0.25);
  progress->warning("the disk is nearly full");
  CHECK(out.str() ==
        "2 ranks\n"
        "step 20  validation loss 2.5000  (10.2k targets, 0.40 s)\n"
        "step 20  validation loss 2.5000  accuracy 81.25%  (16 targets, 1 min 01 s)\n"
        "step 20  saved to runs/gpt/step-20 (0.25 s)\n"
        "warning: the disk is nearly full\n");
}

TEST_CASE("a terminal has one line, rewritten at most ten times a second") {
  std::ostringstream out;
  double now = 100;
  const auto progress =
      make_progress(out, {.terminal = true, .every_steps = 10, .columns = 80, .clock = [&] { return now; }});
  progress->step(step_report(1, 50));
  const std::string first = kClear + "step  1/50  loss 1.3333  1.0k tokens/s  25% of peak  24.5 s left";
  CHECK(out.str() == first);
  now += 0.05;
  progress->step(step_report(2, 50));
  CHECK(out.str() == first);
  now += 0.06;
  progress->step(step_report(3, 50));
  const std::string third = "step  3/50  loss 3.3333  1.0k tokens/s  25% of peak  23.5 s left";
  CHECK(out.str() == first + kClear + third);
  out.str("");
  progress->warning("careful");
  CHECK(out.str() == kClear + "warning: careful\n" + third);  // the live line moves below
  out.str("");
  now += 0.01;
  progress->step(step_report(50, 50));  // the last is drawn whatever the clock says, and stays
  CHECK(out.str() == kClear + "step 50/50  loss 50.3333  1.0k tokens/s  25% of peak\n");
  out.str("");
  progress->note("done");
  CHECK(out.str() == "done\n");
}

TEST_CASE("a live line is ended when the run stops early, and cut to the terminal") {
  std::ostringstream out;
  {
    const auto progress =
        make_progress(out, {.terminal = true, .every_steps = 10, .columns = 20, .clock = [] { return 0.0; }});
    progress->step(step_report(7, 50));
  }
  CHECK(out.str() == kClear + "step  7/50  loss 7.\n");
}

TEST_CASE("losses that are tiny, huge or not finite stay readable") {
  std::ostringstream out;
  const auto progress = make_progress(out, {.terminal = false, .every_steps = 1, .columns = 80, .clock = {}});
  StepReport report = step_report(1, 9);
  for (const double loss : {1.25e-7, 3.5e9, 0.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    report.loss = loss;
    progress->step(report);
  }
  for (const char* word : {"loss 1.250e-07 ", "loss 3.500e+09 ", "loss 0.0000 ", "loss nan ", "loss inf "}) {
    CAPTURE(word);
    CHECK(out.str().find(word) != std::string::npos);
  }
}

}  // namespace
}  // namespace trainer::observe
