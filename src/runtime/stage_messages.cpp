#include "trainer/runtime/stage_messages.hpp"

#include <set>
#include <utility>

namespace trainer::runtime {

StageMessages::StageMessages(comm::Communicator& pipeline, std::size_t bytes, int boundaries)
    : pipeline_(pipeline), lanes_count_(kLanesOfBoundary * boundaries) {
  if (pipeline.size() > 1) {
    shared_ = pipeline.share(comm::SharedLanes::record_bytes(lanes_count_) + bytes,
                             comm::SharedLanes::channels(lanes_count_));
  }
  if (shared_) {
    lanes_ = std::make_unique<comm::SharedLanes>(*shared_, pipeline.rank(), lanes_count_);
  } else {
    own_ = Buffer(bytes);
  }
}

std::byte* StageMessages::memory() {
  return shared_ ? shared_->part(pipeline_.rank()) + comm::SharedLanes::record_bytes(lanes_count_) : own_.data();
}

std::unique_ptr<comm::Transfer> StageMessages::make_send(const void* data, std::size_t bytes, int peer, int tag) {
  if (lanes_ && lanes_->reaches(peer)) return lanes_->make_send(data, bytes, peer, tag % lanes_count_);
  remote_ = true;
  return pipeline_.make_send(data, bytes, peer, tag % lanes_count_);
}

std::unique_ptr<comm::Transfer> StageMessages::make_receive(void* data, std::size_t bytes, int peer, int tag) {
  if (lanes_ && lanes_->reaches(peer)) return lanes_->make_receive(data, bytes, peer, tag % lanes_count_);
  remote_ = true;
  return pipeline_.make_receive(data, bytes, peer, tag % lanes_count_);
}

int boundary_numbers(const std::vector<std::int32_t>& rank_of_stage) {
  for (int modulus = 1;; ++modulus) {
    std::set<std::pair<std::int32_t, int>> taken;
    bool apart = true;
    for (std::size_t s = 0; s < rank_of_stage.size() && apart; ++s) {
      apart = taken.insert({rank_of_stage[s], static_cast<int>(s) % modulus}).second;
    }
    if (apart) return modulus;
  }
}

}  // namespace trainer::runtime
