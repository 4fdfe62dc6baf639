// Every layout of a model over ranks, predicted and ranked. Pure: nothing is started.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/plan/layouts.hpp"
#include "trainer/runtime/predict.hpp"

namespace trainer::runtime {

struct PlannerRequest {
  config::Config config;  // its parallel section and micro-batches are what is searched
  std::int64_t ranks = 1;
  PlanCosts costs;    // with a model
  int threads = 1;    // a rank
  double memory = 0;  // bytes that a rank may take; 0: any
  std::size_t data_bytes = 0;
  std::int64_t wanted = 10;  // layouts that must be right; 0: all
};

struct PlannedLayout {
  plan::LayoutSize size;
  config::Config config;  // that trains it
  std::string stages;     // "embedding … h.2.attn (3.5) | h.2.mlp … head (4.5)"; "": one
  std::string recompute;  // "none", "full" or "auto"
  Prediction prediction;
  std::size_t memory = 0;  // MemoryPrediction::total() of the rank that has most
};

struct PlannedLayouts {
  std::vector<PlannedLayout> ranked;  // fastest first
  std::int64_t bounded = 0;           // layouts besides, not simulated: what they take at least is more than the last's
  std::vector<plan::RejectedLayouts> rejected;
};

/// Deterministic. Few layouts are all simulated; of many, those whose lower bound lets them be among the `wanted`
/// fastest. Layouts that cannot be, or take more than `memory`, are counted by reason. Throws Error(Usage) for a
/// configuration that no layout can be made of.
PlannedLayouts plan_all(const PlannerRequest& request);

}  // namespace trainer::runtime
