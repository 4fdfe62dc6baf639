#include "server_client.hpp"

#include <algorithm>
#include <span>

#include "server_lane.hpp"
#include "server_rows.hpp"

namespace trainer::runtime {

namespace {

std::size_t bytes_of(std::int64_t elements) { return static_cast<std::size_t>(elements) * sizeof(float); }

// Messages of several runs are packed into memory of their own; those of one go from and to where it lies.
std::int64_t packed_elements(const std::vector<ServerMessage>& messages) {
  std::int64_t elements = 0;
  for (const ServerMessage& message : messages) elements += message.runs.size() > 1 ? message.elements : 0;
  return elements;
}

}  // namespace

/// All messages between this rank and one server.
class ServerClient::Link {
 public:
  Link(comm::Communicator& ranks, int server, ServerStream stream, Parameters& parameters)
      : stream_(std::move(stream)),
        gradients_(parameters.gradients()),
        weights_(parameters.weights()),
        packed_(bytes_of(packed_elements(stream_.push) + packed_elements(stream_.pull))) {
    send_request_ = ranks.make_send(&outbox_, sizeof(outbox_), server, kRequestTag);
    receive_reply_ = ranks.make_receive(&inbox_, sizeof(inbox_), server, kReplyTag);
    float* packed = packed_.f32();
    const auto place = [&packed](const ServerMessage& message, float* memory) {
      if (message.runs.size() == 1) return memory + message.runs.front().local;
      packed += message.elements;
      return packed - message.elements;
    };
    for (const ServerMessage& message : stream_.push) {
      push_places_.push_back(place(message, gradients_));
      pushes_.push_back(ranks.make_send(push_places_.back(), bytes_of(message.elements), server, kGradientsTag));
    }
    if (stream_.rows) rows_ = std::make_unique<RowsTransfer>(*stream_.rows, ranks, server, /*sends=*/true);
    for (const ServerMessage& message : stream_.pull) {
      pull_places_.push_back(place(message, weights_));
      pulls_.push_back(ranks.make_receive(pull_places_.back(), bytes_of(message.elements), server, kWeightsTag));
    }
  }

  void begin(const ServerRequest& request) {
    outbox_ = request;
    pushes_gradients_ = request.kind == RequestKind::Push;
    outbox_.rows = pushes_gradients_ && rows_ ? rows_->pack(gradients_) : -1;
    send_request_->start();
    to_send_ = outbox_.rows < 0 ? pushes_.size() : stream_.first_of_rows;
    if (outbox_.rows >= 0) rows_->start(outbox_.rows);
    takes_reply_ = request.kind == RequestKind::Pull || request.kind == RequestKind::Read || request.then != 0;
    started_ = sent_ = taken_ = 0;
    reply_is_here_ = false;
    if (takes_reply_) receive_reply_->start();
  }

  /// Whether everything that begin() asked for has been done.
  bool progress() {
    const bool pushed = !pushes_gradients_ || progress_push();
    const bool pulled = !takes_reply_ || progress_pull();
    return send_request_->test() && pushed && pulled;
  }

  const ServerReply& reply() const { return inbox_; }
  /// Of the push that has begun.
  std::int64_t push_bytes() const {
    return bytes(std::span(stream_.push).first(to_send_)) + (outbox_.rows < 0 ? 0 : rows_->bytes(outbox_.rows));
  }
  std::int64_t pull_bytes() const { return bytes(stream_.pull); }

 private:
  static std::int64_t bytes(std::span<const ServerMessage> messages) {
    std::int64_t sum = 0;
    for (const ServerMessage& message : messages) sum += static_cast<std::int64_t>(bytes_of(message.elements));
    return sum;
  }

  bool progress_push() {
    while (true) {
      while (sent_ < started_ && pushes_[sent_]->test()) ++sent_;
      if (started_ == to_send_ || started_ - sent_ == kMessagesInFlight) break;
      const ServerMessage& message = stream_.push[started_];
      if (message.runs.size() > 1) {
        float* to = push_places_[started_];
        for (const ServerMessage::Run& run : message.runs) to = std::copy_n(gradients_ + run.local, run.elements, to);
      }
      pushes_[started_++]->start();
    }
    return sent_ == to_send_ && (outbox_.rows < 0 || rows_->test());
  }

  bool progress_pull() {
    if (!reply_is_here_) {
      if (!receive_reply_->test()) return false;
      reply_is_here_ = true;
      if (inbox_.status == ServerStatus::Diverged) return true;
      for (auto& pull : pulls_) pull->start();
    }
    if (inbox_.status == ServerStatus::Diverged) return true;
    for (; taken_ < pulls_.size() && pulls_[taken_]->test(); ++taken_) {
      const ServerMessage& message = stream_.pull[taken_];
      if (message.runs.size() == 1) continue;
      const float* from = pull_places_[taken_];
      for (const ServerMessage::Run& run : message.runs) {
        std::copy_n(from, run.elements, weights_ + run.local);
        from += run.elements;
      }
    }
    return taken_ == pulls_.size();
  }

  const ServerStream stream_;
  float* const gradients_;
  float* const weights_;
  Buffer packed_;
  ServerRequest outbox_;
  ServerReply inbox_;
  std::unique_ptr<comm::Transfer> send_request_, receive_reply_;
  std::vector<std::unique_ptr<comm::Transfer>> pushes_, pulls_;  // [message]
  std::vector<float*> push_places_, pull_places_;                // [message] what is sent or received
  std::unique_ptr<RowsTransfer> rows_;                           // null: the stream has no area
  std::size_t to_send_ = 0, started_ = 0, sent_ = 0, taken_ = 0;
  bool pushes_gradients_ = false, takes_reply_ = false, reply_is_here_ = false;
};

ServerClient::ServerClient(comm::Communicator& ranks, const RunPlan& plan, const ServerPlan& servers,
                           const plan::Coordinates& at, Parameters& parameters, ActionLog* log)
    : first_server_(static_cast<int>(plan.mesh.size())), log_(log) {
  for (int s = 0; s < servers.count(); ++s) {
    links_.push_back(std::make_unique<Link>(ranks, first_server_ + s, make_stream(plan, servers, s, at), parameters));
  }
}

ServerClient::~ServerClient() = default;

ServerReply ServerClient::exchange(const ServerRequest& request) {
  const bool pushes = request.kind == RequestKind::Push;
  const bool pulls = request.kind == RequestKind::Pull || request.kind == RequestKind::Read || request.then != 0;
  const ActivitySpan span(log_, pulls ? Activity::Weights : Activity::Replicas);
  for (auto& link : links_) {
    link->begin(request);
    if (pushes) moved_bytes_ += link->push_bytes();
    if (pulls) moved_bytes_ += link->pull_bytes();
  }
  const auto poll = [this] {
    bool done = true;
    for (auto& link : links_) done = link->progress() && done;
    return done;
  };
  comm::wait_until(std::ref(poll), {pulls ? "the parameters of the servers, clock" : "sending gradients to the servers",
                                    first_server_, pulls ? request.next.clock : request.pushed.clock});
  ServerReply reply = links_.front()->reply();
  if (!pulls) return {};
  for (const auto& link : links_) {
    if (link->reply().status == ServerStatus::Diverged) reply.status = ServerStatus::Diverged;
  }
  return reply;
}

std::size_t ServerClient::memory_bytes(const RunPlan& plan, const ServerPlan& servers, const plan::Coordinates& at) {
  std::size_t bytes = 0;
  for (int s = 0; s < servers.count(); ++s) {
    const ServerStream stream = make_stream(plan, servers, s, at);
    bytes += bytes_of(packed_elements(stream.push) + packed_elements(stream.pull));
    if (stream.rows) bytes += RowsTransfer::memory_bytes(*stream.rows);
  }
  return bytes;
}

}  // namespace trainer::runtime
