// A ranked table of layouts, for people and for scripts.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace trainer::observe {

struct PlanRow {
  std::int64_t data = 1, pipeline = 1, tensor = 1, micro_batches = 1, samples = 1;
  std::string schedule;
  bool split_backward = false;
  std::int64_t chunks = 1;
  std::string partition;
  std::string stages;
  std::string recompute;
  double step_seconds = 0, bubble = 0, communication = 0, optimizer = 0;  // bubble: a share
  double memory = 0;                                                      // bytes of the rank that has most
};

struct PlanReport {
  struct Rejected {
    std::string reason;
    std::int64_t count = 0;
    std::string example;
  };
  std::string basis;
  std::int64_t ranks = 1;
  std::vector<PlanRow> rows;  // fastest first
  std::int64_t wanted = 0;    // rows that people asked for; 0: all
  std::int64_t bounded = 0;   // layouts that were not simulated: slower than the rows wanted
  std::vector<Rejected> rejected;
  std::string best;  // the file that the first row's configuration went to
};

std::string to_text(const PlanReport& report);
std::string to_json(const PlanReport& report);

}  // namespace trainer::observe
