#include "server_store.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "trainer/ops/sum.hpp"
#include "trainer/runtime/parameters.hpp"

namespace trainer::runtime {

namespace {

Range overlap(Range a, Range b) {
  const std::int64_t begin = std::max(a.begin, b.begin);
  return {begin, std::max(begin, std::min(a.end, b.end))};
}

bool is_bulk(const RunPlan& plan) { return plan.config.parallel.server.consistency == config::Consistency::Bsp; }

}  // namespace

ServerStore::ServerStore(const RunPlan& plan, const ServerPlan& servers, int server, ThreadPool& pool)
    : plan_(plan),
      servers_(servers),
      range_(servers.range(server)),
      blocks_(blocks_of(servers, range_)),
      pool_(pool),
      places_(gradient_places(plan, servers, server)),
      optimizer_(optim::make_optimizer(plan.config.optimizer)) {
  const std::size_t bytes = static_cast<std::size_t>(range_.size()) * sizeof(float);
  weights_ = Buffer(bytes);
  if (is_bulk(plan)) gradients_ = Buffer(static_cast<std::size_t>(places_.elements) * sizeof(float));
  for (int s = 0; s < optimizer_->state_count(); ++s) states_.emplace_back(bytes);
  some_.reserve(servers.parts.size());
  if (is_bulk(plan)) collect(0, range_.size(), gradients_.f32(), all_);
}

void ServerStore::initialise() {
  for (const ServedPart& part : servers_.parts) {
    for (const FlatBox& piece : boxes_of(part, range_)) {
      set_initial_values(plan_.graph.parameters[part.id.index()], piece.box, plan_.config.training.seed,
                         weights() + (piece.begin - range_.begin), pool_);
    }
  }
}

bool ServerStore::load(const storage::CheckpointReader& checkpoint) {
  bool complete = true;
  for (const ServedPart& part : servers_.parts) {
    const std::string& name = plan_.graph.parameters[part.id.index()].name;
    for (const FlatBox& piece : boxes_of(part, range_)) {
      const std::int64_t at = piece.begin - range_.begin;
      checkpoint.read(name, piece.box, weights() + at);
      for (std::size_t s = 0; s < states_.size(); ++s) {
        const std::string state = fmt::format("optimizer.{}.{}", optimizer_->state_name(static_cast<int>(s)), name);
        if (checkpoint.has(state)) {
          checkpoint.read(state, piece.box, states_[s].f32() + at);
        } else {
          std::fill_n(states_[s].f32() + at, piece.box.elements(), 0.0f);
          complete = false;
        }
      }
    }
  }
  return complete;
}

std::vector<storage::Piece> ServerStore::pieces() const {
  std::vector<storage::Piece> pieces;
  for (const ServedPart& part : servers_.parts) {
    const model::Parameter& parameter = plan_.graph.parameters[part.id.index()];
    for (const FlatBox& piece : boxes_of(part, range_)) {
      const std::int64_t at = piece.begin - range_.begin;
      pieces.push_back({parameter.name, DType::F32, parameter.shape, piece.box, weights_.f32() + at});
      for (std::size_t s = 0; s < states_.size(); ++s) {
        const std::string state =
            fmt::format("optimizer.{}.{}", optimizer_->state_name(static_cast<int>(s)), parameter.name);
        pieces.push_back({state, DType::F32, parameter.shape, piece.box, states_[s].f32() + at});
      }
    }
  }
  return pieces;
}

void ServerStore::sum(std::span<const float* const> terms, std::int64_t remote, std::int64_t count) {
  ops::sum_terms(pool_, terms, gradients() + remote, count, /*accumulate=*/false);
}

void ServerStore::add_uses() {
  for (std::size_t i = 0; i < places_.tied.size();) {
    const TiedArea& first = places_.tied[i];
    float* const sum = gradients() + (first.flat.begin - range_.begin);
    // ((use 0 + use 1) + use 2) …
    for (; i < places_.tied.size() && places_.tied[i].part == first.part; ++i) {
      const float* const terms[] = {sum, gradients() + places_.tied[i].begin};
      ops::sum_terms(pool_, terms, sum, first.flat.size(), /*accumulate=*/false);
    }
  }
}

void ServerStore::measure_blocks(std::span<double> sums) {
  for (std::size_t i = 0; i < servers_.pieces.size(); ++i) {
    const Range here = overlap(servers_.pieces[i].flat, range_);
    if (here.size() == 0) continue;
    const std::int64_t skipped = (here.begin - servers_.pieces[i].flat.begin) / optim::kNormBlockElements;
    optim::sum_of_squares(pool_, {gradients() + (here.begin - range_.begin), static_cast<std::size_t>(here.size())},
                          sums.data() + servers_.block[i] + skipped);
  }
}

void ServerStore::collect(std::int64_t first, std::int64_t count, const float* gradient,
                          std::vector<optim::Segment>& segments) {
  const Range wanted{range_.begin + first, range_.begin + first + count};
  const auto begins_behind = [](std::int64_t element, const ServedPart& part) { return element < part.flat.end; };
  auto part = std::upper_bound(servers_.parts.begin(), servers_.parts.end(), wanted.begin, begins_behind);
  for (; part != servers_.parts.end() && part->flat.begin < wanted.end; ++part) {
    const Range here = overlap(part->flat, wanted);
    if (here.size() == 0) continue;
    const std::int64_t at = here.begin - range_.begin;
    optim::Segment segment;
    segment.weight = weights() + at;
    segment.gradient = gradient + (at - first);
    for (std::size_t s = 0; s < states_.size(); ++s) segment.state[s] = states_[s].f32() + at;
    segment.count = here.size();
    segment.decay = part->decay;
    segments.push_back(segment);
  }
}

void ServerStore::update(const UpdateStep& step) {
  optimizer_->update(pool_, all_, step.number, step.learning_rate, step.scale);
}

void ServerStore::update(std::int64_t first, const float* gradient, std::int64_t count, const UpdateStep& step) {
  some_.clear();
  collect(first, count, gradient, some_);
  optimizer_->update(pool_, some_, step.number, step.learning_rate, step.scale);
}

std::size_t norm_scratch_elements(const RunPlan& plan) {
  return plan.graph.parameters.size() * static_cast<std::size_t>(plan.mesh.data * plan.mesh.tensor);
}

double squared_norm(const RunPlan& plan, const ServerPlan& servers, std::span<const double> blocks,
                    std::span<double> scratch) {
  const auto ranks = static_cast<std::size_t>(plan.mesh.data * plan.mesh.tensor);
  std::fill(scratch.begin(), scratch.end(), 0.0);
  for (std::size_t i = 0; i < servers.pieces.size(); ++i) {
    const NormPiece& piece = servers.pieces[i];
    const ServedPart& part = servers.parts[static_cast<std::size_t>(piece.part)];
    double squares = 0;
    for (std::int64_t b = servers.block[i]; b < servers.block[i + 1]; ++b)
      squares += blocks[static_cast<std::size_t>(b)];
    const auto rank = static_cast<std::size_t>(piece.replica * plan.mesh.tensor + part.tensor);
    scratch[part.id.index() * ranks + rank] += squares;
  }
  double all = 0;
  for (std::size_t p = 0; p < plan.graph.parameters.size(); ++p) {
    double squares = 0;
    for (std::size_t r = 0; r < ranks; ++r) squares += scratch[p * ranks + r];
    all += squares;
  }
  return all;
}

}  // namespace trainer::runtime
