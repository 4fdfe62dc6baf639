// Measures what the parts of a run cost, with the run's own code, for predicting steps.
#pragma once

#include <functional>
#include <string>

#include "trainer/comm/communicator.hpp"
#include "trainer/config/config.hpp"
#include "trainer/plan/cost_model.hpp"
#include "trainer/storage/dataset.hpp"

namespace trainer::runtime {

struct ProfileOptions {
  std::int64_t ranks = 0;  // whose layouts are to be predicted; 0: the world's
  double seconds = 20;     // that measuring may take, about; a pass of each kind of piece is made in any case
  int threads = 1;         // a rank
  bool spin = true;
  plan::Machine machine;  // what the caller knows of it; precision, ranks and threads are filled in
  double core_flops = 0;  // measured by the caller
};

/// Collective over `world`; the same model on every rank. All ranks compute at the same time, as in a run: pieces of a
/// stage one after the other (never one again and again, which would find its weights in the cache), sums over tensor
/// ranks within. Of many visits the median counts, of several turns through all sizes the best one's, the mean over
/// ranks.
plan::CostModel profile(comm::Communicator& world, const config::Config& config, const storage::Dataset& data,
                        const ProfileOptions& options);

}  // namespace trainer::runtime
