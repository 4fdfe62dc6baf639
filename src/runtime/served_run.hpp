// A whole run whose parameters live on servers (parallel.exchange "server").
//
// Between two *points* replicas work by themselves: the first rank of each asks the coordinator in turns what to do,
// all its ranks push to every server and pull from them. At a point everybody has paused and holds the same number of
// whole steps: there the run saves, evaluates, and ends.
#pragma once

#include "saver.hpp"
#include "trainer/runtime/train.hpp"

namespace trainer::runtime {

/// As train(), behind Saver::claim, for a plan with servers; world has plan.ranks() ranks. Collective.
TrainResult train_served(comm::Communicator& world, const RunPlan& plan, const storage::Dataset& data,
                         storage::FileSystem& files, Saver& saver, const TrainOptions& options);

}  // namespace trainer::runtime
