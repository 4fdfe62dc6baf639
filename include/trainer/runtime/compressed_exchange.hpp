// Sums of gradients over replicas that send them compressed (parallel.compression).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "trainer/comm/communicator.hpp"
#include "trainer/runtime/compression_plan.hpp"
#include "trainer/storage/checkpoint.hpp"

namespace trainer::runtime {

/// Makes the buckets' exchanges and keeps what they remember between steps: for each use what was not sent yet (error
/// feedback), and PowerSGD's second factor. Every replica ends with the same bits, terms added in rank order. Each use
/// is compressed by itself, so that no bucket and no stage cut changes a bit; a tensor rank compresses its part of a
/// parameter that is divided.
class CompressedExchange {
 public:
  /// `parameters` must not share memory with other replicas. All must outlive what is made here.
  CompressedExchange(const RunPlan& plan, const plan::Coordinates& at, Parameters& parameters,
                     comm::Communicator& data);
  ~CompressedExchange();

  /// The exchange of a range of the gradient memory, used as an all-reduce of it is. Collective, in the same order on
  /// all replicas. It is started at most once a step.
  comm::AllReduce& make_bucket(Range gradients);

  /// Random numbers are those of this step from here on.
  void begin_step(std::int64_t step) { step_ = step; }

  /// Bytes that this rank has sent through its buckets so far.
  std::int64_t sent_bytes() const { return sent_bytes_; }

  /// Of a checkpoint: "optimizer.compression_error.R.U.NAME" holds what replica R has not yet sent of use U;
  /// "optimizer.compression_factor.TofN.U.NAME" is PowerSGD's Q of tensor rank T of N. They point into this memory.
  std::vector<storage::Piece> pieces() const;
  /// Errors of as many replicas are read as they are; of another number n, replica r takes the sum of those that are r
  /// modulo the number there is now, so that none is lost. Factors of another shape or cut begin anew, as does what the
  /// checkpoint does not have.
  void load(const storage::CheckpointReader& checkpoint);

 private:
  class Bucket;
  std::string error_name(const CompressedUse& use, std::int64_t replica) const;
  std::string factor_name(const CompressedUse& use) const;
  void load_error(const storage::CheckpointReader& checkpoint, const CompressedUse& use, float* error, float* scratch);

  const RunPlan& plan_;
  const plan::Coordinates at_;
  const plan::LocalGraph local_;
  Parameters& parameters_;
  comm::Communicator& data_;
  std::int64_t step_ = 0;
  std::int64_t sent_bytes_ = 0;
  std::vector<std::unique_ptr<Bucket>> buckets_;
};

}  // namespace trainer::runtime
