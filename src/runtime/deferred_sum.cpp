#include "trainer/runtime/deferred_sum.hpp"

#include <algorithm>
#include <functional>

namespace trainer::runtime {

namespace {

constexpr int kTerms = 0;  // tags
constexpr int kSums = 1;

}  // namespace

DeferredSum::DeferredSum(comm::Communicator& world, std::size_t count)
    : ranks_(world.split(0, world.rank())), values_(count), sums_(count) {
  const std::size_t bytes = count * sizeof(double);
  if (ranks_->rank() > 0) {
    sends_.push_back(ranks_->make_send(values_.data(), bytes, 0, kTerms));
    receives_.push_back(ranks_->make_receive(sums_.data(), bytes, 0, kSums));
    return;
  }
  const auto others = static_cast<std::size_t>(ranks_->size() - 1);
  received_.resize(others * count);
  for (std::size_t other = 0; other < others; ++other) {
    const int rank = static_cast<int>(other) + 1;
    receives_.push_back(ranks_->make_receive(received_.data() + other * count, bytes, rank, kTerms));
    sends_.push_back(ranks_->make_send(sums_.data(), bytes, rank, kSums));
  }
}

std::size_t DeferredSum::bytes(std::size_t count, int ranks, int rank) {
  return count * sizeof(double) * static_cast<std::size_t>(rank == 0 ? ranks + 1 : 2);
}

void DeferredSum::start() {
  const auto all_sent = [this] { return sent(); };
  comm::wait_until(std::ref(all_sent), {"sending the agreement on a step", -1, -1});
  for (auto& receive : receives_) receive->start();
  arrived_ = 0;
  if (ranks_->rank() > 0) send();
  running_ = true;
}

void DeferredSum::send() {
  for (auto& send : sends_) send->start();
  sent_ = 0;
}

bool DeferredSum::sent() {
  while (sent_ < sends_.size() && sends_[sent_]->test()) ++sent_;
  return sent_ == sends_.size();
}

bool DeferredSum::test() {
  (void)sent();
  if (!running_) return true;
  while (arrived_ < receives_.size() && receives_[arrived_]->test()) ++arrived_;
  if (arrived_ < receives_.size()) return false;
  running_ = false;
  if (ranks_->rank() > 0) return true;
  std::copy(values_.begin(), values_.end(), sums_.begin());
  for (std::size_t other = 0; other < receives_.size(); ++other) {
    const double* terms = received_.data() + other * sums_.size();
    for (std::size_t i = 0; i < sums_.size(); ++i) sums_[i] += terms[i];
  }
  send();
  return true;
}

}  // namespace trainer::runtime
