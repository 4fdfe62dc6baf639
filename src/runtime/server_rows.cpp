#include "server_rows.hpp"

#include <algorithm>
#include <cstring>

#include "server_messages.hpp"

namespace trainer::runtime {

namespace {

std::size_t bytes_of(std::int64_t elements) { return static_cast<std::size_t>(elements) * sizeof(float); }

// −0 is another number than the +0 that takes the place of a row that was left out.
bool is_zero(const float* row, std::int64_t width) {
  std::uint32_t any = 0;
  for (std::int64_t i = 0; i < width; ++i) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, row + i, sizeof(bits));
    any |= bits;
  }
  return any == 0;
}

}  // namespace

RowsTransfer::RowsTransfer(const RowsArea& area, comm::Communicator& ranks, int peer, bool sends)
    : area_(area), numbers_(static_cast<std::size_t>(area.most)), rows_(bytes_of(area.elements())) {
  const auto make = [&](void* memory, std::size_t bytes) {
    return sends ? ranks.make_send(memory, bytes, peer, kRowsTag) : ranks.make_receive(memory, bytes, peer, kRowsTag);
  };
  move_numbers_ = make(numbers_.data(), numbers_.size() * sizeof(std::int32_t));
  for (std::int64_t begin = 0; begin < area.elements(); begin += kRowsMessageElements) {
    const std::int64_t count = std::min(kRowsMessageElements, area.elements() - begin);
    move_rows_.push_back(make(rows_.f32() + begin, bytes_of(count)));
  }
}

std::int64_t RowsTransfer::pack(const float* gradients) {
  std::int64_t count = 0;
  for (std::int64_t r = 0; r < area_.rows; ++r) {
    const float* const row = gradients + area_.local + r * area_.width;
    if (is_zero(row, area_.width)) continue;
    if (count == area_.most) return -1;
    numbers_[static_cast<std::size_t>(count)] = static_cast<std::int32_t>(r);
    std::copy_n(row, area_.width, rows_.f32() + count++ * area_.width);
  }
  return count;
}

void RowsTransfer::start(std::int64_t rows) {
  count_ = rows;
  moved_ = 0;
  moving_ = static_cast<std::size_t>((rows * area_.width + kRowsMessageElements - 1) / kRowsMessageElements);
  move_numbers_->start();
  for (std::size_t m = 0; m < moving_; ++m) move_rows_[m]->start();
}

bool RowsTransfer::test() {
  while (moved_ < moving_ && move_rows_[moved_]->test()) ++moved_;
  return move_numbers_->test() && moved_ == moving_;
}

void RowsTransfer::unpack(std::int64_t begin, std::int64_t count, float* to) const {
  std::fill_n(to, count, 0.0f);
  const auto end = numbers_.begin() + count_;
  const auto first = std::lower_bound(numbers_.begin(), end, static_cast<std::int32_t>(begin / area_.width));
  for (auto number = first; number != end && *number * area_.width < begin + count; ++number) {
    const std::int64_t at = *number * area_.width;  // of its row in the area
    const std::int64_t from = std::max(at, begin);
    const std::int64_t until = std::min(at + area_.width, begin + count);
    const float* const row = rows_.f32() + (number - numbers_.begin()) * area_.width;
    std::copy_n(row + (from - at), until - from, to + (from - begin));
  }
}

std::int64_t RowsTransfer::bytes(std::int64_t rows) const {
  const std::int64_t messages = (rows * area_.width + kRowsMessageElements - 1) / kRowsMessageElements;
  const std::int64_t elements = std::min(messages * kRowsMessageElements, area_.elements());
  return static_cast<std::int64_t>(bytes_of(elements) + numbers_.size() * sizeof(std::int32_t));
}

std::size_t RowsTransfer::memory_bytes(const RowsArea& area) {
  return bytes_of(area.elements()) + static_cast<std::size_t>(area.most) * sizeof(std::int32_t);
}

}  // namespace trainer::runtime
