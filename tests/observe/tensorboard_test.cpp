// The event file, read back by an independent reader that checks every CRC.
#include <doctest/doctest.h>

#include <bit>
#include <cstring>
#include <map>
#include <stdexcept>
#include <vector>

#include "support.hpp"
#include "trainer/observe/reporters.hpp"

namespace trainer::observe {
namespace {

/// CRC-32C bit by bit, as its definition has it.
std::uint32_t crc32c(std::string_view data) {
  std::uint32_t c = 0xFFFFFFFFu;
  for (const char byte : data) {
    c ^= static_cast<unsigned char>(byte);
    for (int bit = 0; bit < 8; ++bit) c = (c & 1) != 0 ? (c >> 1) ^ 0x82F63B78u : c >> 1;
  }
  return ~c;
}

template <class T>
T take(std::string_view& in) {
  T value;
  if (in.size() < sizeof value) throw std::runtime_error("the record ends early");
  std::memcpy(&value, in.data(), sizeof value);
  in.remove_prefix(sizeof value);
  return value;
}

std::uint64_t take_varint(std::string_view& in) {
  std::uint64_t value = 0;
  for (int shift = 0;; shift += 7) {
    const auto byte = take<std::uint8_t>(in);
    value |= std::uint64_t{byte & 0x7Fu} << shift;
    if ((byte & 0x80) == 0) return value;
  }
}

/// The fields of a message by number; fixed-size values keep their bits, counted ones stay in `bytes`.
struct Field {
  std::uint64_t bits = 0;
  std::string_view bytes;
};
std::multimap<int, Field> parse(std::string_view in) {
  std::multimap<int, Field> fields;
  while (!in.empty()) {
    const std::uint64_t key = take_varint(in);
    Field field;
    switch (key & 7) {
      case 0:
        field.bits = take_varint(in);
        break;
      case 1:
        field.bits = take<std::uint64_t>(in);
        break;
      case 2: {
        const std::uint64_t size = take_varint(in);
        if (size > in.size()) throw std::runtime_error("a field ends early");
        field.bytes = in.substr(0, size);
        in.remove_prefix(size);
        break;
      }
      case 5:
        field.bits = take<std::uint32_t>(in);
        break;
      default:
        throw std::runtime_error("an unknown wire type");
    }
    fields.emplace(static_cast<int>(key >> 3), field);
  }
  return fields;
}

std::vector<std::string_view> records(std::string_view file) {
  const auto masked = [](std::string_view data) {
    const std::uint32_t c = crc32c(data);
    return std::rotr(c, 15) + 0xa282ead8u;
  };
  std::vector<std::string_view> all;
  while (!file.empty()) {
    const std::string_view length_bytes = file.substr(0, 8);
    const auto length = take<std::uint64_t>(file);
    CHECK(take<std::uint32_t>(file) == masked(length_bytes));
    REQUIRE(length <= file.size());
    all.push_back(file.substr(0, length));
    file.remove_prefix(length);
    CHECK(take<std::uint32_t>(file) == masked(all.back()));
  }
  return all;
}

std::map<std::string, float> scalars(std::string_view event) {
  std::map<std::string, float> all;
  const auto fields = parse(event);
  REQUIRE(fields.count(5) == 1);
  for (const auto& [number, value] : parse(fields.find(5)->second.bytes)) {
    CHECK(number == 1);
    const auto parts = parse(value.bytes);
    all[std::string(parts.find(1)->second.bytes)] =
        std::bit_cast<float>(static_cast<std::uint32_t>(parts.find(2)->second.bits));
  }
  return all;
}

TEST_CASE("the reader's CRC is CRC-32C") {
  CHECK(crc32c("123456789") == 0xE3069283u);            // the check value of the polynomial
  CHECK(crc32c(std::string(32, '\0')) == 0x8A9136AAu);  // RFC 3720, B.4
}

TEST_CASE("an event file holds the scalars of logged steps and evaluations") {
  const TemporaryDirectory directory;
  {
    const auto board = make_tensorboard(directory.path() + "/tb", 300);
    for (std::int64_t step = 299; step <= 301; ++step) board->step(step_report(step, 1000));
    board->evaluation({.step = 301, .loss = 2.5, .accuracy = 0.75, .targets = 8, .seconds = 1});
    StepReport plain = step_report(600, 1000);
    plain.tokens = plain.step_tokens = 0;
    board->step(plain);
  }
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(directory.path() + "/tb")) files.push_back(entry.path());
  REQUIRE(files.size() == 1);
  CHECK(files[0].filename().string().find("tfevents") != std::string::npos);
  const std::string file = read_file(files[0].string());
  const auto events = records(file);
  REQUIRE(events.size() == 5);

  CHECK(parse(events[0]).find(3)->second.bytes == "brain.Event:2");
  for (const std::string_view event : events) {
    const double wall_time = std::bit_cast<double>(parse(event).find(1)->second.bits);
    CHECK(wall_time > 1.5e9);
    CHECK(wall_time < 1e11);
  }
  const auto start = parse(events[1]);
  CHECK(start.find(2)->second.bits == 299);  // the first step of this run, logged or not
  CHECK(parse(start.find(7)->second.bytes).find(1)->second.bits == 1);

  CHECK(parse(events[2]).find(2)->second.bits == 300);
  CHECK(scalars(events[2]) == std::map<std::string, float>{{"loss", static_cast<float>(300 + 1.0 / 3)},
                                                           {"grad_norm", 0.1f},
                                                           {"learning_rate", 3e-4f},
                                                           {"tokens_per_second", 1024.0f}});
  CHECK(parse(events[3]).find(2)->second.bits == 301);
  CHECK(scalars(events[3]) == std::map<std::string, float>{{"validation_loss", 2.5f}, {"accuracy", 0.75f}});
  CHECK(scalars(events[4]).count("tokens_per_second") == 0);
}

}  // namespace
}  // namespace trainer::observe
