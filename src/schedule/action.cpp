// Actions as text: "2F0" and back.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "trainer/schedule/schedule.hpp"

namespace trainer::schedule {
namespace {

// In the order of ActionKind.
constexpr std::array<std::string_view, 9> kNames{"F",      "B",      "I",      "W",          "SEND_F",
                                                 "RECV_F", "SEND_B", "RECV_B", "REDUCE_GRAD"};

/// Takes a decimal number without leading zeros off the front of `text`.
std::optional<std::int32_t> take_number(std::string_view& text) {
  std::int32_t value = 0;
  if (text.empty() || text[0] < '0' || text[0] > '9') return std::nullopt;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const auto digits = static_cast<std::size_t>(end - text.data());
  if (error != std::errc{} || (text[0] == '0' && digits > 1)) return std::nullopt;
  text.remove_prefix(digits);
  return value;
}

std::optional<ActionKind> kind_of(std::string_view name) {
  for (std::size_t k = 0; k < kNames.size(); ++k) {
    if (kNames[k] == name) return static_cast<ActionKind>(k);
  }
  return std::nullopt;
}

}  // namespace

std::string to_string(const Action& action) {
  const std::string_view name = kNames[static_cast<std::size_t>(action.kind)];
  if (action.kind == ActionKind::ReduceGradients) return fmt::format("{}{}", action.stage.value, name);
  return fmt::format("{}{}{}", action.stage.value, name, action.micro_batch.value);
}

std::optional<Action> parse_action(std::string_view text) {
  const std::optional<std::int32_t> stage = take_number(text);
  if (!stage) return std::nullopt;
  const std::size_t letters = std::min(text.find_first_of("0123456789"), text.size());
  const std::optional<ActionKind> kind = kind_of(text.substr(0, letters));
  if (!kind) return std::nullopt;
  text.remove_prefix(letters);

  Action action{StageId(*stage), *kind, MicroBatchId()};
  if (*kind != ActionKind::ReduceGradients) {
    const std::optional<std::int32_t> micro_batch = take_number(text);
    if (!micro_batch) return std::nullopt;
    action.micro_batch = MicroBatchId(*micro_batch);
  }
  if (!text.empty()) return std::nullopt;
  return action;
}

}  // namespace trainer::schedule
