#include "server_lane.hpp"

#include <algorithm>

#include "trainer/core/error.hpp"

namespace trainer::runtime {

namespace {

std::size_t bytes_of(std::int64_t elements) { return static_cast<std::size_t>(elements) * sizeof(float); }

std::size_t slot_elements_of(const ServerStream& stream) {
  std::int64_t most = 0;
  for (const ServerMessage& message : stream.push) most = std::max(most, message.elements);
  return align_up(bytes_of(most)) / sizeof(float);
}

}  // namespace

std::size_t ServerLane::slot_bytes(const ServerStream& stream) {
  return std::min(kMessagesInFlight, stream.push.size()) * slot_elements_of(stream) * sizeof(float);
}

ServerLane::ServerLane(comm::Communicator& ranks, int rank, ServerStream stream, const float* weights)
    : stream_(std::move(stream)), slot_elements_(slot_elements_of(stream_)), slots_(slot_bytes(stream_)) {
  receive_request_ = ranks.make_receive(&inbox_, sizeof(inbox_), rank, kRequestTag);
  send_reply_ = ranks.make_send(&outbox_, sizeof(outbox_), rank, kReplyTag);
  for (std::size_t m = 0; m < stream_.push.size(); ++m) {
    float* const to = slots_.f32() + m % kMessagesInFlight * slot_elements_;
    gradients_.push_back(ranks.make_receive(to, bytes_of(stream_.push[m].elements), rank, kGradientsTag));
  }
  for (const ServerMessage& message : stream_.pull) {
    weights_.push_back(ranks.make_send(weights + message.remote, bytes_of(message.elements), rank, kWeightsTag));
  }
  receive_request_->start();
  end_push();
}

bool ServerLane::take_requests() {
  if (!receive_request_->test()) return false;
  if (count_ == requests_.size()) internal_error("a rank sends a server more requests than it may have open");
  requests_[(first_ + count_++) % requests_.size()] = inbox_;
  receive_request_->start();
  return true;
}

void ServerLane::pop() {
  first_ = (first_ + 1) % requests_.size();
  --count_;
}

bool ServerLane::gradient_is_here() { return gradients_[consumed_]->test(); }

void ServerLane::consume() {
  const std::size_t next = consumed_ + kMessagesInFlight;  // in the slot that is free now
  if (next < gradients_.size()) gradients_[next]->start();
  ++consumed_;
}

void ServerLane::end_push() {
  consumed_ = 0;
  for (std::size_t m = 0; m < std::min(kMessagesInFlight, gradients_.size()); ++m) gradients_[m]->start();
}

void ServerLane::begin_reply(const ServerReply& reply, bool weights) {
  outbox_ = reply;
  send_reply_->start();
  started_ = sent_ = 0;
  to_send_ = weights ? weights_.size() : 0;
  progress_reply();
}

bool ServerLane::progress_reply() {
  while (true) {
    while (sent_ < started_ && weights_[sent_]->test()) ++sent_;
    if (started_ == to_send_ || started_ - sent_ == kMessagesInFlight) break;
    weights_[started_++]->start();
  }
  return send_reply_->test() && sent_ == to_send_;
}

}  // namespace trainer::runtime
