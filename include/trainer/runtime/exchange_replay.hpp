// Does again, on the ranks of one replica, what several replicas and parameter servers did, in one serial order: every
// gradient, every update, to the same bits.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "trainer/comm/communicator.hpp"
#include "trainer/core/thread_pool.hpp"
#include "trainer/runtime/exchange_order.hpp"
#include "trainer/runtime/run_plan.hpp"
#include "trainer/runtime/saved_state.hpp"
#include "trainer/storage/dataset.hpp"

namespace trainer::runtime {

class ExchangeReplay final : public SavedState {
 public:
  /// `run`: the plan of the served run. Collective over `world`, as many ranks as one of its replicas has, which hold
  /// the servers' weights and optimizer state, and of every replica of the run the weights that it has pulled and its
  /// last gradient. Everything referred to must outlive it.
  ExchangeReplay(comm::Communicator& world, const RunPlan& run, const storage::Dataset& data, ThreadPool& pool);
  ~ExchangeReplay() override;

  void initialise() override;
  bool load(const storage::CheckpointReader& checkpoint) override;
  std::vector<storage::Piece> pieces() const override;

  /// Collective. `updates_less`: by how much the optimizer's updates are fewer than the servers' versions. `computed`
  /// is called behind every batch. Throws Error(Diverged) for an update that the run cannot have made.
  void run(std::span<const ReplayAction> actions, std::int64_t updates_less,
           const std::function<void()>& computed = {});

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace trainer::runtime
