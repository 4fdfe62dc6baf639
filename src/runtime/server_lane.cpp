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
  const std::size_t rows = stream.rows ? RowsTransfer::memory_bytes(*stream.rows) : 0;
  return std::min(kMessagesInFlight, stream.push.size()) * slot_elements_of(stream) * sizeof(float) + rows;
}

ServerLane::ServerLane(comm::Communicator& ranks, int rank, ServerStream stream, const float* weights)
    : stream_(std::move(stream)),
      slot_elements_(slot_elements_of(stream_)),
      slots_(std::min(kMessagesInFlight, stream_.push.size()) * slot_elements_ * sizeof(float)) {
  receive_request_ = ranks.make_receive(&inbox_, sizeof(inbox_), rank, kRequestTag);
  send_reply_ = ranks.make_send(&outbox_, sizeof(outbox_), rank, kReplyTag);
  for (std::size_t m = 0; m < stream_.push.size(); ++m) {
    float* const to = slots_.f32() + m % kMessagesInFlight * slot_elements_;
    gradients_.push_back(ranks.make_receive(to, bytes_of(stream_.push[m].elements), rank, kGradientsTag));
  }
  least_from_.assign(stream_.push.size(), kAll);
  for (std::size_t m = stream_.push.size(); m-- > 0;) {
    const std::int64_t behind = m + 1 < least_from_.size() ? least_from_[m + 1] : kAll;
    least_from_[m] = std::min(stream_.push[m].remote, behind);
  }
  if (stream_.rows) rows_ = std::make_unique<RowsTransfer>(*stream_.rows, ranks, rank, /*sends=*/false);
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

void ServerLane::begin_push(std::int64_t rows) {
  by_rows_ = rows >= 0;
  if (by_rows_) {
    unpacked_ = stream_.first_of_rows;
    rows_->start(rows);
    return;
  }
  for (std::size_t m = stream_.first_of_rows; m < std::min(kMessagesInFlight, gradients_.size()); ++m) {
    gradients_[m]->start();
  }
}

bool ServerLane::gradient_is_here() {
  if (!comes_as_rows(consumed_)) return gradients_[consumed_]->test();
  if (!rows_->test()) return false;
  if (unpacked_ == consumed_) {
    const ServerMessage& message = stream_.push[unpacked_];
    float* const to = slots_.f32() + unpacked_ % kMessagesInFlight * slot_elements_;
    rows_->unpack(message.remote - stream_.rows->remote, message.elements, to);
    ++unpacked_;
  }
  return true;
}

void ServerLane::consume() {
  const std::size_t next = consumed_ + kMessagesInFlight;  // in the slot that is free now
  if (next < gradients_.size() && !comes_as_rows(next)) gradients_[next]->start();
  ++consumed_;
}

// What the next push certainly sends is awaited at once.
void ServerLane::end_push() {
  consumed_ = 0;
  const std::size_t certain = stream_.first_of_rows;
  for (std::size_t m = 0; m < std::min(kMessagesInFlight, certain); ++m) gradients_[m]->start();
}

void ServerLane::begin_reply(const ServerReply& reply, bool weights, std::int64_t until) {
  outbox_ = reply;
  until_ = until;
  send_reply_->start();
  started_ = sent_ = 0;
  to_send_ = weights ? weights_.size() : 0;
  progress_reply();
}

bool ServerLane::progress_reply() {
  while (true) {
    while (sent_ < started_ && weights_[sent_]->test()) ++sent_;
    if (started_ == to_send_ || started_ - sent_ == kMessagesInFlight) break;
    if (stream_.pull[started_].remote + stream_.pull[started_].elements > until_) break;
    weights_[started_++]->start();
  }
  return send_reply_->test() && sent_ == to_send_;
}

}  // namespace trainer::runtime
