#include "served_state.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "trainer/core/error.hpp"
#include "trainer/runtime/task_book.hpp"

namespace trainer::runtime {

namespace {

// A tensor of whole numbers; empty where the checkpoint has none of this name.
std::vector<std::int64_t> read_numbers(const storage::CheckpointReader& checkpoint, const char* name) {
  for (const storage::TensorEntry& tensor : checkpoint.tensors()) {
    if (tensor.name != name || tensor.type != DType::I64 || tensor.shape.dims() != 1) continue;
    std::vector<std::int64_t> numbers(static_cast<std::size_t>(tensor.shape[0]));
    checkpoint.read(name, whole(tensor.shape), numbers.data());
    return numbers;
  }
  return {};
}

storage::Piece numbers_piece(const char* name, const std::vector<std::int64_t>& numbers) {
  const Shape shape{static_cast<std::int64_t>(numbers.size())};
  return {name, DType::I64, shape, whole(shape), numbers.data()};
}

const char* word_of(config::Consistency consistency) {
  switch (consistency) {
    case config::Consistency::Bsp:
      return "bsp";
    case config::Consistency::Ssp:
      return "ssp";
    case config::Consistency::Async:
      return "async";
  }
  return "";
}

}  // namespace

ServedState::ServedState(const RunPlan& plan, const ServerPlan& servers, int server, ServerStore& store,
                         BatchBook* book)
    : plan_(plan), server_(server), servers_(servers.count()), store_(store), book_(book) {}

bool ServedState::load(const storage::CheckpointReader& checkpoint) {
  const bool complete = store_.load(checkpoint);
  loaded_ = true;
  loaded_positions_ = exchange_positions(checkpoint);
  loaded_clocks_ = read_numbers(checkpoint, kClocksTensor);
  loaded_book_ = read_numbers(checkpoint, kBookTensor);
  loaded_batch_ = config::parse(checkpoint.record().config, checkpoint.path()).training.batch_size;
  return complete;
}

std::vector<storage::Piece> ServedState::pieces() const {
  std::vector<storage::Piece> pieces = store_.pieces();
  pieces.push_back(position_piece(position_, server_, servers_));
  if (book_ == nullptr) return pieces;
  pieces.push_back(numbers_piece(kClocksTensor, clocks_));
  if (!words_.empty()) pieces.push_back(numbers_piece(kBookTensor, words_));
  return pieces;
}

ServerClocks ServedState::clocks(std::int64_t step) const {
  const bool bulk = plan_.config.parallel.server.consistency == config::Consistency::Bsp;
  const auto replicas = static_cast<std::size_t>(plan_.mesh.data);
  ServerClocks clocks;
  clocks.version = bulk ? step : step * plan_.mesh.data;
  // All servers have made all updates at a pause; steps of a run that was not served are one each.
  clocks.updates = loaded_positions_.empty() ? step : loaded_positions_.front().updates;
  // Clocks of other replicas say nothing: all begin alike.
  clocks.replicas = loaded_clocks_.size() == replicas ? loaded_clocks_ : std::vector<std::int64_t>(replicas);
  // Further apart than ssp lets them come, as another consistency left them: the fast would wait for the slow to make
  // up for all of it.
  const auto [slowest, fastest] = std::minmax_element(clocks.replicas.begin(), clocks.replicas.end());
  const bool ssp = plan_.config.parallel.server.consistency == config::Consistency::Ssp;
  if (ssp && *fastest - *slowest > plan_.config.parallel.server.staleness + 1) {
    clocks.replicas.assign(replicas, *fastest);
  }
  return clocks;
}

std::unique_ptr<ExchangeLogWriter> ServedState::open_log(storage::FileSystem& files, const std::string& directory,
                                                         std::int64_t step) const {
  ExchangeHeader header;
  header.run = exchange_identity(plan_.config);
  header.server = server_;
  header.servers = servers_;
  header.replicas = plan_.mesh.data;
  header.consistency = word_of(plan_.config.parallel.server.consistency);
  std::int64_t keep = 0;
  if (loaded_positions_.size() == static_cast<std::size_t>(servers_)) {
    const ExchangePosition& mine = loaded_positions_[static_cast<std::size_t>(server_)];
    header.after = mine.after;
    keep = mine.sequence;
  }
  return std::make_unique<ExchangeLogWriter>(files, directory, header, keep, step);
}

void ServedState::restore_book(std::int64_t step) {
  if (book_ == nullptr) return;
  const std::int64_t now = plan_.config.training.batch_size;
  // Where the stream stands is a number of whole batches; holes are positions in it.
  if (plan_.config.parallel.tasks && loaded_ && loaded_batch_ != now && !holes_of(loaded_book_).empty()) {
    throw Error(
        ExitCode::Usage,
        fmt::format("training.batch_size is {}, but the run was stopped in the middle of its tasks with {}, and "
                    "the samples that it left out are positions among such batches; go on with {}, or without "
                    "parallel.tasks",
                    now, loaded_batch_, loaded_batch_));
  }
  book_->restore(step, loaded_book_);
}

void ServedState::set(const ServerClocks& clocks, const ExchangeLogWriter* log) {
  position_ = {.after = log != nullptr ? log->after() : 0,
               .sequence = log != nullptr ? log->sequence() : 0,
               .version = clocks.version,
               .updates = clocks.updates};
  clocks_ = clocks.replicas;
  if (book_ != nullptr) words_ = book_->state();
}

std::string lost_of_tasks(const storage::CheckpointReader& checkpoint, const config::Config& now) {
  if (now.parallel.tasks || !checkpoint.has(kBookTensor)) return {};
  std::int64_t samples = 0;
  const std::vector<StreamRange> holes = holes_of(read_numbers(checkpoint, kBookTensor));
  for (const StreamRange& hole : holes) samples += hole.count;
  if (samples == 0) return {};
  return fmt::format(
      "{} was stopped in the middle of its tasks: {} samples from position {} of the stream on are left out, and as "
      "many "
      "behind them count already. Only a run with parallel.tasks goes back for them; this one counts some twice",
      checkpoint.path(), samples, holes.front().first);
}

}  // namespace trainer::runtime
