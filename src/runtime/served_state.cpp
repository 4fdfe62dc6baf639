#include "served_state.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "trainer/core/error.hpp"

namespace trainer::runtime {

namespace {

constexpr const char* kClocksTensor = "optimizer.exchange_clocks";  // I64 [replicas]
constexpr const char* kBookTensor = "optimizer.exchange_book";      // I64 [words], BatchBook::state

// A list of integers; empty where the checkpoint has none.
std::vector<std::int64_t> integers(const storage::CheckpointReader& checkpoint, const char* name) {
  std::vector<std::int64_t> values;
  for (const storage::TensorEntry& tensor : checkpoint.tensors()) {
    if (tensor.name != name) continue;
    if (tensor.type != DType::I64 || tensor.shape.dims() != 1) {
      throw Error(ExitCode::Storage, fmt::format("{}: {} is {} {}; expected a list of I64", checkpoint.path(), name,
                                                 name_of(tensor.type), to_string(tensor.shape)));
    }
    values.resize(static_cast<std::size_t>(tensor.shape.elements()));
    checkpoint.read(name, whole(tensor.shape), values.data());
  }
  return values;
}

storage::Piece piece_of(const char* name, const std::vector<std::int64_t>& values) {
  const Shape shape{static_cast<std::int64_t>(values.size())};
  return {name, DType::I64, shape, whole(shape), values.data()};
}

}  // namespace

void ServedState::initialise() {
  store_.initialise();
  position_ = {};
  clocks_ = {
      .version = 0, .updates = 0, .replicas = std::vector<std::int64_t>(static_cast<std::size_t>(plan_.mesh.data))};
  if (book_ != nullptr) book_->restore(0, {});
}

bool ServedState::load(const storage::CheckpointReader& checkpoint) {
  const bool complete = store_.load(checkpoint);
  const std::int64_t step = checkpoint.record().step;
  const auto replicas = static_cast<std::size_t>(plan_.mesh.data);
  const std::vector<ExchangePosition> positions = exchange_positions(checkpoint);
  position_ = {};
  if (positions.size() == static_cast<std::size_t>(plan_.servers())) {
    position_ = positions[static_cast<std::size_t>(server_)];
  }
  clocks_.version = bulk() ? step : step * plan_.mesh.data;
  // bsp counts as all_reduce does. Where each push is an update, their number is the servers' to tell.
  clocks_.updates = bulk() || positions.empty() ? step : positions.front().updates;
  clocks_.replicas = integers(checkpoint, kClocksTensor);
  if (clocks_.replicas.size() != replicas) clocks_.replicas.assign(replicas, 0);
  if (book_ != nullptr) book_->restore(step, integers(checkpoint, kBookTensor));
  return complete;
}

std::vector<storage::Piece> ServedState::pieces() const {
  std::vector<storage::Piece> pieces = store_.pieces();
  pieces.push_back(position_piece(position_, server_, static_cast<int>(plan_.servers())));
  if (book_ == nullptr) return pieces;
  pieces.push_back(piece_of(kClocksTensor, clocks_.replicas));
  if (!book_words_.empty()) pieces.push_back(piece_of(kBookTensor, book_words_));
  return pieces;
}

void ServedState::open_log(storage::FileSystem& files, std::int64_t step) {
  const config::Config& config = plan_.config;
  if (config.checkpoint.directory.empty()) return;
  const ExchangeHeader header{.run = exchange_identity(config),
                              .server = server_,
                              .servers = static_cast<int>(plan_.servers()),
                              .replicas = plan_.mesh.data,
                              .consistency = consistency_word(config.parallel.server.consistency),
                              .after = position_.after};
  log_ = std::make_unique<ExchangeLogWriter>(files, config.checkpoint.directory, header, position_.sequence, step);
}

void ServedState::log(const ServerOperation& operation) {
  if (log_ == nullptr) return;
  ExchangeRecord record{.kind = ExchangeKind::Pull,
                        .replica = operation.replica,
                        .clock = operation.batch.clock,
                        .version = operation.version,
                        .first = operation.batch.batch.first,
                        .count = operation.batch.batch.size};
  if (operation.kind == ServerOperation::Kind::Apply) record.kind = ExchangeKind::Apply;
  if (operation.kind == ServerOperation::Kind::Push) {
    record.kind = ExchangeKind::Push;
    if (bulk()) --record.version;  // it is the apply behind the pushes that makes the version
  }
  log_->append(record);
}

void ServedState::keep(const ServerClocks& clocks) {
  clocks_ = clocks;
  if (book_ != nullptr) book_words_ = book_->state();
  position_.version = clocks.version;
  position_.updates = clocks.updates;
  if (log_ == nullptr) return;
  log_->sync();
  position_.sequence = log_->sequence();
  position_.after = log_->after();
  if (log_->failure().empty() || told_) return;
  told_ = true;
  std::fputs(fmt::format("warning: {}; the run goes on, but cannot be replayed any more\n", log_->failure()).c_str(),
             stderr);
}

}  // namespace trainer::runtime
