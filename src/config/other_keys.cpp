#include "other_keys.hpp"

#include <array>
#include <charconv>
#include <cmath>
#include <utility>

#include "trainer/core/error.hpp"

namespace trainer::config {

namespace {

struct Unit {
  const char* name;
  double bytes;
};
constexpr std::array<Unit, 10> kUnits = {{{"", 1},
                                          {"B", 1},
                                          {"KiB", 0x1p10},
                                          {"MiB", 0x1p20},
                                          {"GiB", 0x1p30},
                                          {"TiB", 0x1p40},
                                          {"kB", 1e3},
                                          {"MB", 1e6},
                                          {"GB", 1e9},
                                          {"TB", 1e12}}};

constexpr std::array<std::pair<const char*, Recompute>, 3> kRecompute = {
    {{"none", Recompute::None}, {"full", Recompute::Full}, {"auto", Recompute::Auto}}};

void set_recompute(Training& training, const Value& value) {
  if (const Array* names = value.as<Array>()) {
    training.recompute = Recompute::Written;
    for (const Value& name : *names) training.recompute_layers.push_back(*name.as<std::string>());
    return;
  }
  for (const auto& [word, meaning] : kRecompute) {
    if (*value.as<std::string>() == word) training.recompute = meaning;
  }
}

Value get_recompute(const Training& training) {
  for (const auto& [word, meaning] : kRecompute) {
    if (training.recompute == meaning) return Value{std::string(word)};
  }
  Array names;
  for (const std::string& name : training.recompute_layers) names.push_back({name});
  return {std::move(names)};
}

// The largest binary unit that loses nothing.
Value written_bytes(std::int64_t bytes) {
  for (std::size_t i = 5; i >= 2 && bytes > 0; --i) {
    const auto unit = static_cast<std::int64_t>(kUnits[i].bytes);
    if (bytes % unit == 0) return Value{std::to_string(bytes / unit) + kUnits[i].name};
  }
  return Value{bytes};
}

template <class T>
Key<T> make_key(const char* name, Rule rule, const char* help, std::function<void(T&, const Value&)> set,
                std::function<Value(const T&)> get) {
  Value default_value = get(T{});
  return {{name, std::move(rule), help, "", std::move(default_value)}, std::move(set), std::move(get)};
}

}  // namespace

std::optional<std::int64_t> bytes_of(std::string_view text) {
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, std::chars_format::fixed);
  if (error != std::errc{} || !(number >= 0)) return std::nullopt;
  std::string_view unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
  if (unit.starts_with(' ')) unit.remove_prefix(1);
  for (const Unit& known : kUnits) {
    if (unit != known.name) continue;
    const double bytes = std::floor(number * known.bytes);
    if (bytes >= 0x1p62) return std::nullopt;
    return static_cast<std::int64_t>(bytes);
  }
  return std::nullopt;
}

Key<Training> recompute_key(const char* help) {
  Rule rule{.kind = Kind::Names};
  for (const auto& [word, meaning] : kRecompute) rule.choices.emplace_back(word);
  return make_key<Training>("recompute", std::move(rule), help, set_recompute, get_recompute);
}

Key<CsvData> delimiter_key(const char* help) {
  return make_key<CsvData>(
      "delimiter", {.kind = Kind::Character}, help,
      [](CsvData& d, const Value& v) { d.delimiter = v.as<std::string>()->front(); },
      [](const CsvData& d) { return Value{std::string(1, d.delimiter)}; });
}

Key<Parallel> memory_key(const char* help) {
  return make_key<Parallel>(
      "memory_per_rank", {.kind = Kind::Bytes}, help,
      [](Parallel& parallel, const Value& value) {
        const std::string* text = value.as<std::string>();
        parallel.memory_per_rank = text ? *bytes_of(*text) : *value.as<std::int64_t>();
      },
      [](const Parallel& parallel) { return written_bytes(parallel.memory_per_rank); });
}

}  // namespace trainer::config
