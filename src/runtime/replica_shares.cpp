#include "trainer/runtime/replica_shares.hpp"

#include <algorithm>
#include <numeric>

#include "trainer/plan/balance.hpp"
#include "trainer/runtime/pass_table.hpp"

namespace trainer::runtime {

namespace {

constexpr const char* kName = "optimizer.balance.micro_batches";

}  // namespace

ReplicaShares::ReplicaShares(const RunPlan& plan, const plan::Coordinates& at, const ActionLog& log)
    : plan_(plan),
      at_(at),
      log_(log),
      every_(plan.config.parallel.balance_every),
      shares_(plan::split_evenly(all_micro_batches(plan), plan.mesh.data)),
      saved_(shares_.begin(), shares_.end()),
      of_rank_(static_cast<std::size_t>(plan.mesh.size())) {}

std::int64_t ReplicaShares::first() const {
  return std::accumulate(shares_.begin(), shares_.begin() + at_.data, std::int64_t{0});
}

std::int64_t ReplicaShares::busy() const {
  std::int64_t nanoseconds = 0;
  for (const Activity a :
       {Activity::Forward, Activity::Backward, Activity::BackwardInput, Activity::BackwardWeight, Activity::Data}) {
    nanoseconds += log_.times()[static_cast<std::size_t>(a)];
  }
  return nanoseconds;
}

bool ReplicaShares::due(std::int64_t step) const {
  // A first look soon, as much as it can tell: what is uneven is so from the start.
  return step % every_ == 0 || (steps_ + 1 == kFirstLook && every_ > kFirstLook);
}

// The first step of a run meets cold caches and pages.
void ReplicaShares::count_step() {
  if (++steps_ == 2) begin_ = busy();
  if (steps_ >= 2) ++counted_;
}

bool ReplicaShares::look(comm::Communicator& world, std::int64_t) {
  if (counted_ == 0) return false;
  std::fill(of_rank_.begin(), of_rank_.end(), 0.0);
  of_rank_[static_cast<std::size_t>(world.rank())] =
      1e-9 * static_cast<double>(busy() - begin_) / static_cast<double>(counted_ * mine());
  world.sum(of_rank_);
  begin_ = busy();
  counted_ = 0;
  constexpr double kLeast = 1e-9;  // a clock's tick: that a replica does nothing at all is no speed
  seconds_.assign(shares_.size(), kLeast);
  for (std::size_t rank = 0; rank < of_rank_.size(); ++rank) {
    double& replica = seconds_[static_cast<std::size_t>(plan_.mesh.coordinates(static_cast<std::int64_t>(rank)).data)];
    replica = std::max(replica, of_rank_[rank]);
  }
  const std::int64_t fill = (plan_.mesh.pipeline - 1) / plan_.config.parallel.chunks;
  std::vector<std::int64_t> better = plan::rebalanced(seconds_, shares_, fill, kGain);
  if (better == shares_) return false;
  take(std::move(better));
  ++changes_;
  return true;
}

void ReplicaShares::take(std::vector<std::int64_t> shares) {
  shares_ = std::move(shares);
  std::copy(shares_.begin(), shares_.end(), saved_.begin());
}

std::vector<storage::Piece> ReplicaShares::pieces() const {
  if (at_.data != 0 || at_.pipeline != 0 || at_.tensor != 0) return {};
  const Shape shape{plan_.mesh.data};
  return {{kName, DType::F32, shape, whole(shape), saved_.data()}};
}

bool ReplicaShares::load(const storage::CheckpointReader& checkpoint) {
  const Shape shape{plan_.mesh.data};
  for (const storage::TensorEntry& tensor : checkpoint.tensors()) {
    if (tensor.name != kName || !(tensor.shape == shape)) continue;
    std::vector<float> found(shares_.size());
    checkpoint.read(kName, whole(shape), found.data());
    double sum = 0;
    for (const float share : found)
      sum += share >= 1 && share == static_cast<float>(static_cast<int>(share)) ? share : 0;
    const bool fits =
        *std::min_element(found.begin(), found.end()) >= 1 && sum == static_cast<double>(all_micro_batches(plan_));
    if (!fits || found == saved_) return false;
    take(std::vector<std::int64_t>(found.begin(), found.end()));
    return true;
  }
  return false;
}

}  // namespace trainer::runtime
