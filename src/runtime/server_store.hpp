// One server's part of the model: weights and optimizer state in flat order, what becomes of gradients, and
// checkpoints.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "trainer/core/tensor.hpp"
#include "trainer/core/thread_pool.hpp"
#include "trainer/optim/optimizer.hpp"
#include "trainer/runtime/saved_state.hpp"
#include "trainer/runtime/server_plan.hpp"

namespace trainer::runtime {

/// Learning rate, clipping and number of an update.
struct UpdateStep {
  std::int64_t number = 1;  // from 1: of the optimizer's bias correction
  double learning_rate = 0;
  float scale = 1;
};

class ServerStore : public SavedState {
 public:
  /// Everything referred to must outlive it.
  ServerStore(const RunPlan& plan, const ServerPlan& servers, int server, ThreadPool& pool);

  void initialise() override;
  bool load(const storage::CheckpointReader& checkpoint) override;
  std::vector<storage::Piece> pieces() const override;

  /// Element 0 is the first of the server's range.
  float* weights() { return weights_.f32(); }
  /// Sums of gradients, as gradient_places has them; bsp only.
  float* gradients() { return gradients_.f32(); }
  std::int64_t elements() const { return range_.size(); }

  /// Adds the replicas' gradients of one message, in the order given, into gradients() from `remote` on.
  void sum(std::span<const float* const> terms, std::int64_t remote, std::int64_t count);
  /// Adds the uses of tied parameters: gradients() of the range are whole then.
  void add_uses();
  /// Sums of squares of the blocks of this range, to places of `sums` by their numbers.
  void measure_blocks(std::span<double> sums);

  /// Updates all from gradients(), or `count` elements from `first` on with a gradient that lies elsewhere.
  void update(const UpdateStep& step);
  void update(std::int64_t first, const float* gradient, std::int64_t count, const UpdateStep& step);

 private:
  /// Segments of elements [first, first + count), with a gradient that begins at `gradient`.
  void collect(std::int64_t first, std::int64_t count, const float* gradient, std::vector<optim::Segment>& segments);

  const RunPlan& plan_;
  const ServerPlan& servers_;
  const Range range_;
  const Range blocks_;
  ThreadPool& pool_;
  GradientPlaces places_;
  std::unique_ptr<optim::Optimizer> optimizer_;
  Buffer weights_, gradients_;
  std::vector<Buffer> states_;
  std::vector<optim::Segment> all_, some_;
};

/// The squared norm of the whole gradient from the sums of all blocks, added as the agreement of all_reduce adds them:
/// each replica's share of each parameter, replicas and tensor ranks in the order of ranks, then parameters.
/// `scratch`: [norm_scratch_elements].
double squared_norm(const RunPlan& plan, const ServerPlan& servers, std::span<const double> blocks,
                    std::span<double> scratch);
std::size_t norm_scratch_elements(const RunPlan& plan);

}  // namespace trainer::runtime
