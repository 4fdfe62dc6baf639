// What of a worker is in checkpoints.
#include <fmt/format.h>

#include <algorithm>

#include "trainer/runtime/worker.hpp"

namespace trainer::runtime {

bool Worker::load(const storage::CheckpointReader& checkpoint) {
  const int states = training_ != nullptr ? optimizer_->state_count() : 0;
  bool complete = true;
  for (const HeldParameter& held : parameters_->layout().held) {
    const model::Parameter& parameter = plan_.graph.parameters[held.id.index()];
    for (const Piece& piece : parameters_->duty(held)) {
      checkpoint.read(parameter.name, piece.box, parameters_->weights() + held.weight + piece.begin);
      for (int s = 0; s < states; ++s) {
        const std::string name = fmt::format("optimizer.{}.{}", optimizer_->state_name(s), parameter.name);
        if (checkpoint.has(name)) {
          checkpoint.read(name, piece.box, parameters_->state(s) + piece.state);
        } else {
          std::fill_n(parameters_->state(s) + piece.state, piece.box.elements(), 0.0f);
          complete = false;
        }
      }
    }
  }
  if (sync_ && sync_->compressed()) sync_->compressed()->load(checkpoint);
  if (delayed_) load_delayed(checkpoint);
  if (rounds_) rounds_->load(checkpoint);
  if (shares_ && shares_->load(checkpoint)) take_share();
  return complete;
}

std::vector<storage::Piece> Worker::pieces() const {
  if (rounds_) return rounds_->pieces();
  std::vector<storage::Piece> pieces;
  for (const HeldParameter& held : parameters_->layout().held) {
    if (!held.counted) continue;
    const model::Parameter& parameter = plan_.graph.parameters[held.id.index()];
    for (const Piece& piece : held.share) {
      const std::size_t weight = held.weight + static_cast<std::size_t>(piece.begin);
      const std::size_t state = parameters_->shared() != nullptr ? piece.state : weight;
      pieces.push_back({parameter.name, DType::F32, parameter.shape, piece.box, parameters_->weights() + weight});
      for (int s = 0; s < optimizer_->state_count(); ++s) {
        pieces.push_back({fmt::format("optimizer.{}.{}", optimizer_->state_name(s), parameter.name), DType::F32,
                          parameter.shape, piece.box, parameters_->state(s) + state});
      }
    }
  }
  if (delayed_) add_delayed_pieces(pieces);
  if (sync_ && sync_->compressed()) {
    const std::vector<storage::Piece> more = sync_->compressed()->pieces();
    pieces.insert(pieces.end(), more.begin(), more.end());
  }
  if (shares_) {
    const std::vector<storage::Piece> more = shares_->pieces();
    pieces.insert(pieces.end(), more.begin(), more.end());
  }
  return pieces;
}

}  // namespace trainer::runtime
