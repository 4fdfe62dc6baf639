#include "trainer/runtime/batch_book.hpp"

#include <algorithm>

namespace trainer::runtime {

namespace {

class StepBook final : public BatchBook {
 public:
  StepBook(int replicas, int backup, std::int64_t size, std::int64_t samples)
      : replicas_(replicas),
        counted_(replicas - backup),
        size_(size),
        samples_(samples),
        reported_(static_cast<std::size_t>(replicas)) {}

  void open_until(std::int64_t step) override { limit_ = step; }

  std::optional<StreamBatch> next(int replica, double) override {
    const std::int64_t step = std::max(reported_[static_cast<std::size_t>(replica)] + 1, current_);
    if (step > limit_) return std::nullopt;
    begun_ = std::max(begun_, step);
    reported_[static_cast<std::size_t>(replica)] = step - 1;
    return StreamBatch{first_of(step, replica), size_};
  }

  bool report(int replica, double) override {
    const std::int64_t step = ++reported_[static_cast<std::size_t>(replica)];
    if (step < current_) return false;
    const bool holds_samples = first_of(step, replica) < samples_;
    // A step is of samples: the last to be taken is one that has some, if those before had only padding.
    if (reports_ + 1 == counted_ && !any_samples_ && !holds_samples) return false;
    any_samples_ = any_samples_ || holds_samples;
    if (++reports_ == counted_) {
      ++current_;
      reports_ = 0;
      any_samples_ = false;
    }
    return true;
  }

  bool complete() const override { return current_ > limit_; }

  std::int64_t close() override {
    limit_ = std::min(limit_, std::max(begun_, current_ - 1));
    return limit_;
  }

  std::vector<std::int64_t> state() const override { return {}; }

  void restore(std::int64_t step, std::span<const std::int64_t>) override {
    std::fill(reported_.begin(), reported_.end(), step);
    current_ = step + 1;
    limit_ = begun_ = step;
  }

 private:
  std::int64_t first_of(std::int64_t step, int replica) const { return ((step - 1) * replicas_ + replica) * size_; }

  const std::int64_t replicas_, counted_, size_, samples_;
  std::vector<std::int64_t> reported_;  // [replica] the step before the one it holds, or its last one
  std::int64_t current_ = 1;            // the first step that lacks reports
  std::int64_t reports_ = 0;            // that count, of that step
  bool any_samples_ = false;            // among these
  std::int64_t begun_ = 0;              // the last step that somebody was given
  std::int64_t limit_ = 0;
};

class StreamBook final : public BatchBook {
 public:
  StreamBook(int replicas, std::int64_t size) : replicas_(replicas), size_(size) {}

  void open_until(std::int64_t step) override { limit_ = step * replicas_; }

  std::optional<StreamBatch> next(int, double) override {
    if (given_ == limit_) return std::nullopt;
    return StreamBatch{given_++ * size_, size_};
  }

  bool report(int, double) override {
    ++reported_;
    return true;
  }

  bool complete() const override { return reported_ == limit_; }

  std::int64_t close() override {
    const std::int64_t step = (given_ + replicas_ - 1) / replicas_;
    limit_ = std::min(limit_, step * replicas_);
    return limit_ / replicas_;
  }

  std::vector<std::int64_t> state() const override { return {}; }

  void restore(std::int64_t step, std::span<const std::int64_t>) override {
    given_ = reported_ = limit_ = step * replicas_;
  }

 private:
  const std::int64_t replicas_, size_;
  std::int64_t given_ = 0, reported_ = 0, limit_ = 0;  // batches from the stream's beginning
};

}  // namespace

std::unique_ptr<BatchBook> make_step_book(int replicas, int backup, std::int64_t size, std::int64_t samples) {
  return std::make_unique<StepBook>(replicas, backup, size, samples);
}

std::unique_ptr<BatchBook> make_stream_book(int replicas, std::int64_t size) {
  return std::make_unique<StreamBook>(replicas, size);
}

}  // namespace trainer::runtime
