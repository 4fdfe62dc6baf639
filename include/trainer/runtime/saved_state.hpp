// What a rank puts into checkpoints and takes out of them.
#pragma once

#include <vector>

#include "trainer/storage/checkpoint.hpp"

namespace trainer::runtime {

class SavedState {
 public:
  virtual ~SavedState() = default;

  /// The beginning of a run that does not resume. Collective.
  virtual void initialise() = 0;
  /// Weights, and optimizer state where the run trains, from a checkpoint of any layout. Local; wrap in agree(): what
  /// ranks share is whole when all have come back. False when the checkpoint lacks state of this optimizer, which then
  /// begins with zeros.
  virtual bool load(const storage::CheckpointReader& checkpoint) = 0;
  /// This rank's pieces of a checkpoint; they point into its memory.
  virtual std::vector<storage::Piece> pieces() const = 0;
};

}  // namespace trainer::runtime
