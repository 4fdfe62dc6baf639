// The layers that only move or add: Add and Flatten, and the loops that several layers share.
#include <cstring>

#include "layers.hpp"

namespace trainer::ops {

void copy_or_add(ThreadPool& pool, const Kernels& kernels, const float* from, float* to, std::int64_t n,
                 bool accumulate) {
  for_chunks(pool, n, kChunkElements, [&](std::int64_t begin, std::int64_t end) {
    if (accumulate) {
      kernels.add(to + begin, from + begin, to + begin, end - begin);
    } else {
      std::memcpy(to + begin, from + begin, static_cast<std::size_t>(end - begin) * sizeof(float));
    }
  });
}

void column_sums(ThreadPool& pool, const Kernels& kernels, ConstMatrix x, float* sums, bool accumulate) {
  for_chunks(pool, x.features, kColumnChunk, [&](std::int64_t begin, std::int64_t end) {
    kernels.column_sums(x.data + begin, x.rows, x.features, end - begin, sums + begin, accumulate);
  });
}

namespace {

class AddOperator final : public Operator {
 public:
  explicit AddOperator(const Kernels& kernels) : kernels_(kernels) {}

  Needs needs(std::int64_t, int) const override { return {}; }

  void forward(const ForwardCall& call) const override {
    for_chunks(call.pool, call.y.elements(), kChunkElements, [&](std::int64_t begin, std::int64_t end) {
      kernels_.add(call.x[0].data + begin, call.x[1].data + begin, call.y.data + begin, end - begin);
    });
  }

  void backward_input(const BackwardInputCall& call) const override {
    for (int i = 0; i < 2; ++i) {
      if (!call.dx[i]) continue;
      copy_or_add(call.pool, kernels_, call.dy.data, call.dx[i].data, call.dy.elements(), call.accumulate[i]);
    }
  }

 private:
  const Kernels& kernels_;
};

// [samples · positions, features] → [samples, positions · features]: row-major memory is the same on both sides.
class FlattenOperator final : public Operator {
 public:
  explicit FlattenOperator(const Kernels& kernels) : kernels_(kernels) {}

  Needs needs(std::int64_t, int) const override { return {}; }

  void forward(const ForwardCall& call) const override {
    copy_or_add(call.pool, kernels_, call.x[0].data, call.y.data, call.y.elements(), false);
  }

  void backward_input(const BackwardInputCall& call) const override {
    if (!call.dx[0]) return;
    copy_or_add(call.pool, kernels_, call.dy.data, call.dx[0].data, call.dy.elements(), call.accumulate[0]);
  }

 private:
  const Kernels& kernels_;
};

}  // namespace

std::unique_ptr<Operator> make_add(const model::Add&, const Site& site) {
  return std::make_unique<AddOperator>(site.kernels);
}

std::unique_ptr<Operator> make_flatten(const model::Flatten&, const Site& site) {
  return std::make_unique<FlattenOperator>(site.kernels);
}

}  // namespace trainer::ops
