#include "trainer/runtime/tensor_group.hpp"

#include <cstring>

#include "trainer/core/error.hpp"

namespace trainer::runtime {

void TensorGroup::book(std::int64_t elements) {
  if (size() == 1 || channels_.contains(elements)) return;
  Channel channel;
  channel.staging = Buffer(static_cast<std::size_t>(elements) * sizeof(float));
  channel.reduce = ranks_.make_all_reduce(channel.staging.f32(), elements);
  channels_.emplace(elements, std::move(channel));
}

std::size_t TensorGroup::booked_bytes(std::int64_t elements, int ranks) {
  if (ranks == 1) return 0;
  return static_cast<std::size_t>(elements) * sizeof(float) +
         comm::Communicator::all_reduce_extra_bytes(elements, ranks);
}

void TensorGroup::start(float* data, std::int64_t elements) {
  if (size() == 1) return;
  if (active_ != nullptr) internal_error("two tensor reductions at a time");
  active_ = &channels_.at(elements);
  data_ = data;
  elements_ = elements;
  std::memcpy(active_->staging.data(), data, static_cast<std::size_t>(elements) * sizeof(float));
  active_->reduce->start();
}

void TensorGroup::finish() {
  if (active_ == nullptr) return;
  waited_ += comm::wait(*active_->reduce, {"a sum over tensor ranks", -1, elements_});
  std::memcpy(data_, active_->staging.data(), static_cast<std::size_t>(elements_) * sizeof(float));
  active_ = nullptr;
}

void TensorGroup::progress() {
  if (active_ != nullptr) active_->reduce->test();
}

}  // namespace trainer::runtime
