// What a run directory tells of a served run: its configuration, and all that its servers did up to a checkpoint.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/config/config.hpp"
#include "trainer/runtime/exchange_order.hpp"
#include "trainer/storage/checkpoint.hpp"
#include "trainer/storage/file_system.hpp"

namespace trainer::runtime {

struct ExchangeRecording {
  config::Config config;
  std::vector<ReplayAction> actions;
  std::int64_t updates_less = 0;  // as ExchangeReplay::run takes it
  std::int64_t left_out = 0;      // operations of the logs behind the checkpoint
};

/// What happened between `start` (null: the beginning) and `end`, two checkpoints of the run in `directory`. Throws
/// Error(Storage) for logs that are missing, damaged or another run's, Error(Usage) for checkpoints that are not on one
/// way.
ExchangeRecording read_recording(const storage::FileSystem& files, const std::string& directory,
                                 const storage::CheckpointReader* start, const storage::CheckpointReader& end);

}  // namespace trainer::runtime
