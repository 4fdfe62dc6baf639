// Which samples each micro-batch of each replica holds, and their copies into a stage's memory.
#pragma once

#include <cstdint>

#include "trainer/ops/operator.hpp"
#include "trainer/storage/dataset.hpp"

namespace trainer::runtime {

/// A consecutive piece of the stream of training samples, or of the held-out ones, that all replicas work on at once.
/// Row i of it is stream position first + i; positions from `limit` on are padding that counts nowhere.
struct GlobalBatch {
  std::int64_t first = 0;
  std::int64_t size = 0;
  std::int64_t limit = 0;
  bool held_out = false;
  std::int64_t valid() const { return first >= limit ? 0 : (first + size < limit ? size : limit - first); }
};

class BatchSource {
 public:
  /// `replica` of `replicas` takes rows [replica · size / replicas, …), cut into `micro_batches` equal pieces.
  BatchSource(const storage::Dataset& data, const storage::Split& split, std::uint64_t seed, std::int64_t replica,
              std::int64_t replicas, std::int64_t micro_batches)
      : data_(data),
        split_(split),
        order_(seed, split.training),
        replica_(replica),
        replicas_(replicas),
        micro_batches_(micro_batches) {}

  void set(const GlobalBatch& batch) { set(batch, replica_ * micro_batches_); }
  /// The same where replicas take different numbers of the micro-batches: this one's first, counted over all of them.
  void set(const GlobalBatch& batch, std::int64_t first_micro_batch) {
    batch_ = batch;
    first_ = first_micro_batch;
  }
  const GlobalBatch& batch() const { return batch_; }
  std::int64_t samples() const { return batch_.size / (replicas_ * micro_batches_); }
  /// Stream position of the first sample of a micro-batch of this replica.
  std::int64_t first_of(std::int64_t micro_batch) const { return batch_.first + (first_ + micro_batch) * samples(); }

  /// Tokens [samples · positions] or features [samples · features]; padding is zeros.
  void load_inputs(std::int64_t micro_batch, std::int32_t* tokens, float* features) const;
  /// Labels ([samples · positions] or [samples]; padding −1), or real values (padding 0).
  void load_targets(std::int64_t micro_batch, std::int32_t* labels, float* values) const;
  /// valid[i] = 0 for padding, one a sample.
  void load_valid(std::int64_t micro_batch, std::uint8_t* valid) const;

 private:
  /// The data set's sample at a stream position, −1 for padding.
  std::int64_t sample_at(std::int64_t position) const;

  const storage::Dataset& data_;
  storage::Split split_;
  storage::SampleOrder order_;
  std::int64_t replica_, replicas_, micro_batches_;
  std::int64_t first_ = 0;
  GlobalBatch batch_;
};

}  // namespace trainer::runtime
