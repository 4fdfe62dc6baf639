// Inverted dropout. The mask of an element is a function of (seed, node, sample, position, global feature), so it is
// computed again in the backward and is the same however rows and features are shared out.
#include <utility>

#include "layers.hpp"
#include "trainer/core/error.hpp"
#include "trainer/core/random.hpp"

namespace trainer::ops {

namespace {

class DropoutOperator final : public Operator {
 public:
  DropoutOperator(const model::Dropout& layer, const Site& site)
      : name_(site.name), feature_begin_(layer.feature_begin), active_(layer.probability > 0), kernels_(site.kernels) {
    if (!(layer.probability >= 0 && layer.probability < 1)) {
      internal_error("'" + site.name + "' has a dropout probability outside [0, 1)");
    }
    set_probability(mask_, layer.probability);
  }

  Needs needs(std::int64_t, int) const override { return {}; }

  void forward(const ForwardCall& call) const override { apply(call.pool, call.batch, call.x[0], call.y, false); }

  void backward_input(const BackwardInputCall& call) const override {
    if (call.dx[0]) apply(call.pool, call.batch, call.dy, call.dx[0], call.accumulate[0]);
  }

 private:
  void apply(ThreadPool& pool, const MicroBatch& batch, ConstMatrix from, Matrix to, bool accumulate) const {
    if (!active_ || !batch.training) {
      copy_or_add(pool, kernels_, from.data, to.data, from.elements(), accumulate);
      return;
    }
    const auto key = RandomStream(batch.seed, name_).key();
    const std::int64_t positions = from.rows / batch.samples;
    for_chunks(pool, from.rows, chunk_rows(from.features), [&](std::int64_t begin, std::int64_t end) {
      DropoutMask mask = mask_;
      mask.key[0] = key[0];
      mask.key[1] = key[1];
      mask.first = feature_begin_;
      for (std::int64_t row = begin; row < end; ++row) {
        mask.row = static_cast<std::uint32_t>(row % positions);
        mask.sample = batch.first_sample + static_cast<std::uint64_t>(row / positions);
        kernels_.dropout(mask, from.row(row), to.row(row), from.features, accumulate);
      }
    });
  }

  std::string name_;
  std::int64_t feature_begin_;
  bool active_;
  DropoutMask mask_;
  const Kernels& kernels_;
};

}  // namespace

std::unique_ptr<Operator> make_dropout(const model::Dropout& layer, const Site& site) {
  return std::make_unique<DropoutOperator>(layer, site);
}

}  // namespace trainer::ops
