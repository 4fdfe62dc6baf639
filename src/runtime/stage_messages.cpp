#include "trainer/runtime/stage_messages.hpp"

namespace trainer::runtime {

StageMessages::StageMessages(comm::Communicator& pipeline, std::size_t bytes) : pipeline_(pipeline) {
  if (pipeline.size() > 1) {
    shared_ = pipeline.share(comm::SharedLanes::record_bytes(kLanes) + bytes, comm::SharedLanes::channels(kLanes));
  }
  if (shared_) {
    lanes_ = std::make_unique<comm::SharedLanes>(*shared_, pipeline.rank(), kLanes);
  } else {
    own_ = Buffer(bytes);
  }
}

std::byte* StageMessages::memory() {
  return shared_ ? shared_->part(pipeline_.rank()) + comm::SharedLanes::record_bytes(kLanes) : own_.data();
}

std::unique_ptr<comm::Transfer> StageMessages::make_send(const void* data, std::size_t bytes, int peer, int tag) {
  if (lanes_ && lanes_->reaches(peer)) return lanes_->make_send(data, bytes, peer, tag % kLanes);
  remote_ = true;
  return pipeline_.make_send(data, bytes, peer, tag);
}

std::unique_ptr<comm::Transfer> StageMessages::make_receive(void* data, std::size_t bytes, int peer, int tag) {
  if (lanes_ && lanes_->reaches(peer)) return lanes_->make_receive(data, bytes, peer, tag % kLanes);
  remote_ = true;
  return pipeline_.make_receive(data, bytes, peer, tag);
}

}  // namespace trainer::runtime
