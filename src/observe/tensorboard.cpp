// TensorBoard's event files: TFRecord framing (length and data, each with a masked CRC-32C) around the few fields of
// tensorflow/core/util/event.proto and framework/summary.proto that scalars need.
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "append_file.hpp"
#include "cadence.hpp"
#include "trainer/observe/reporters.hpp"

namespace trainer::observe {

namespace {

constexpr std::array<std::uint32_t, 256> make_crc_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t c = i;
    for (int bit = 0; bit < 8; ++bit) c = (c >> 1) ^ ((c & 1) != 0 ? 0x82F63B78u : 0u);  // Castagnoli, reflected
    table[i] = c;
  }
  return table;
}
constexpr std::array<std::uint32_t, 256> kCrcTable = make_crc_table();

std::uint32_t masked_crc(std::string_view data) {
  std::uint32_t c = 0xFFFFFFFFu;
  for (const char byte : data) c = (c >> 8) ^ kCrcTable[(c ^ static_cast<unsigned char>(byte)) & 0xFFu];
  c = ~c;
  return ((c >> 15) | (c << 17)) + 0xa282ead8u;
}

template <class T>
void put_little_endian(std::string& out, T value) {
  for (std::size_t i = 0; i < sizeof(T); ++i) out.push_back(static_cast<char>(value >> (8 * i)));
}

// Protocol buffers: a key is (field << 3 | wire type); 0 varint, 1 eight bytes, 2 counted bytes, 5 four bytes.
void put_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
  out.push_back(static_cast<char>(value));
}
void put_integer(std::string& out, int field, std::int64_t value) {
  put_varint(out, static_cast<std::uint64_t>(field) << 3);
  put_varint(out, static_cast<std::uint64_t>(value));
}
void put_bytes(std::string& out, int field, std::string_view bytes) {
  put_varint(out, static_cast<std::uint64_t>(field) << 3 | 2);
  put_varint(out, bytes.size());
  out += bytes;
}

/// Event: wall_time = 1, step = 2, and one of file_version = 3, summary = 5, session_log = 7.
std::string event_record(std::int64_t step, int field, std::string_view content) {
  const double wall_time = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  std::string event;
  put_varint(event, 1u << 3 | 1);
  put_little_endian(event, std::bit_cast<std::uint64_t>(wall_time));
  put_integer(event, 2, step);
  put_bytes(event, field, content);

  std::string record;
  put_little_endian(record, std::uint64_t{event.size()});
  put_little_endian(record, masked_crc(record));
  record += event;
  put_little_endian(record, masked_crc(event));
  return record;
}

/// Summary: value = 1 { tag = 1, simple_value = 2 }.
void put_scalar(std::string& summary, std::string_view tag, double value) {
  std::string scalar;
  put_bytes(scalar, 1, tag);
  put_varint(scalar, 2u << 3 | 5);
  put_little_endian(scalar, std::bit_cast<std::uint32_t>(static_cast<float>(value)));
  put_bytes(summary, 1, scalar);
}

std::string new_file_name() {
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0 || host[0] == '\0') host = {'h', 'o', 's', 't'};
  const auto seconds =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch());
  return fmt::format("events.out.tfevents.{:010}.{}.{}.0", seconds.count(), host.data(), ::getpid());
}

class TensorBoard final : public Observer {
 public:
  TensorBoard(const std::string& path, std::int64_t every_steps, Observer* warnings)
      : file_(path, 0, warnings), every_steps_(every_steps) {
    file_.append(event_record(0, 3, "brain.Event:2"));
  }

  void step(const StepReport& report) override {
    if (!first_step_) first_step_ = report.step;
    if (!is_logged(report, every_steps_)) return;
    std::string summary;
    put_scalar(summary, "loss", report.loss);
    put_scalar(summary, "grad_norm", report.grad_norm);
    put_scalar(summary, "learning_rate", report.learning_rate);
    if (report.tokens > 0) {
      put_scalar(summary, "tokens_per_second", static_cast<double>(report.step_tokens) / report.step_seconds);
    }
    write(report.step, summary);
  }

  void evaluation(const EvaluationReport& report) override {
    std::string summary;
    put_scalar(summary, "validation_loss", report.loss);
    if (report.accuracy) put_scalar(summary, "accuracy", *report.accuracy);
    write(report.step, summary);
  }

 private:
  void write(std::int64_t step, const std::string& summary) {
    std::string records;
    if (!started_) {
      std::string session;
      put_integer(session, 1, 1);  // SessionLog: status = START; readers drop older points from this step on
      records = event_record(first_step_.value_or(step), 7, session);
      started_ = true;
    }
    file_.append(records + event_record(step, 5, summary));
  }

  AppendFile file_;
  std::int64_t every_steps_;
  std::optional<std::int64_t> first_step_;
  bool started_ = false;
};

}  // namespace

std::unique_ptr<Observer> make_tensorboard(const std::string& directory, std::int64_t every_steps, Observer* warnings) {
  create_directory(directory);
  return std::make_unique<TensorBoard>(directory + "/" + new_file_name(), every_steps, warnings);
}

}  // namespace trainer::observe
