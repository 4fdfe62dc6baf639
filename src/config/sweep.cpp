// What a sweep varies.
#include "trainer/config/sweep.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "trainer/core/error.hpp"

namespace trainer::config {

namespace {

constexpr const char* kExample = "for example --over parallel.pipeline=1,2,4";
constexpr std::size_t kMostCombinations = 1000;

[[noreturn]] void refuse(const std::string& text, const std::string& why) {
  throw Error(ExitCode::Usage, fmt::format("--over {}: {}", text.substr(0, 200), why));
}

// At commas that no bracket, brace or quote encloses.
std::vector<std::string> parts_of(const std::string& list, const std::string& text) {
  std::vector<std::string> parts(1);
  std::string open;  // what closes each bracket that is open
  bool quoted = false;
  for (std::size_t i = 0; i < list.size(); ++i) {
    const char c = list[i];
    if (quoted) {
      if (c == '\\' && i + 1 < list.size()) parts.back() += list[i++];
      quoted = c != '"';
    } else if (c == '"') {
      quoted = true;
    } else if (c == '[' || c == '{') {
      open += c == '[' ? ']' : '}';
    } else if (c == ']' || c == '}') {
      if (open.empty() || open.back() != c) refuse(text, fmt::format("a \"{}\" closes nothing", c));
      open.pop_back();
    } else if (c == ',' && open.empty()) {
      parts.emplace_back();
      continue;
    }
    parts.back() += list[i];
  }
  if (quoted) refuse(text, "a quotation mark is not closed");
  if (!open.empty()) refuse(text, fmt::format("a \"{}\" is missing", open.back()));
  return parts;
}

std::string key_of(const std::string& override_text) { return override_text.substr(0, override_text.find('=')); }

// Whether setting one of two keys sets (part of) the other.
bool overlap(const std::string& a, const std::string& b) {
  const auto inside = [](const std::string& outer, const std::string& inner) {
    return inner.compare(0, outer.size(), outer) == 0 &&
           (inner.size() == outer.size() || inner[outer.size()] == '.' || inner[outer.size()] == '[');
  };
  return inside(a, b) || inside(b, a);
}

void check_key(const Over& over, const std::vector<Over>& before, const std::vector<std::string>& overrides) {
  const std::string text = over.key + "=…";
  for (const std::string& own : sweep_overrides(1)) {
    if (!overlap(over.key, key_of(own))) continue;
    refuse(text, own.rfind("training.steps", 0) == 0 || own.rfind("training.epochs", 0) == 0
                     ? "a sweep states the steps itself: --steps 10"
                     : "a sweep states this key itself: it neither evaluates nor writes checkpoints and logs");
  }
  for (const Over& other : before) {
    if (overlap(over.key, other.key)) refuse(text, fmt::format("--over {} is there already", other.key));
  }
  for (const std::string& set : overrides) {
    if (overlap(over.key, key_of(set))) refuse(text, fmt::format("--set {} states the same key", set.substr(0, 100)));
  }
}

}  // namespace

Over parse_over(const std::string& text) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0) refuse(text, fmt::format("expected KEY=VALUE,VALUE; {}", kExample));
  Over over{text.substr(0, equals), parts_of(text.substr(equals + 1), text)};
  for (std::size_t i = 0; i < over.values.size(); ++i) {
    const std::string& value = over.values[i];
    if (value.empty()) refuse(text, fmt::format("value {} is empty; {}", i + 1, kExample));
    if (std::find(over.values.begin(), over.values.begin() + static_cast<std::ptrdiff_t>(i), value) !=
        over.values.begin() + static_cast<std::ptrdiff_t>(i)) {
      refuse(text, fmt::format("{} is there twice", value));
    }
  }
  return over;
}

std::vector<Combination> combinations(const std::vector<Over>& over, const std::vector<std::string>& overrides) {
  std::vector<Combination> all(1);
  std::vector<Over> before;
  for (const Over& one : over) {
    check_key(one, before, overrides);
    before.push_back(one);
    if (all.size() * one.values.size() > kMostCombinations) {
      refuse(one.key + "=…", fmt::format("more than {} combinations; sweep fewer keys at a time", kMostCombinations));
    }
    std::vector<Combination> longer;
    for (const Combination& combination : all) {
      for (const std::string& value : one.values) {
        longer.push_back(combination);
        longer.back().emplace_back(one.key, value);
      }
    }
    all = std::move(longer);
  }
  return all;
}

std::vector<std::string> as_overrides(const Combination& combination) {
  std::vector<std::string> overrides;
  for (const auto& [key, value] : combination) overrides.push_back(key + "=" + value);
  return overrides;
}

std::vector<std::string> sweep_overrides(long long steps) {
  return {"training.epochs=null",     fmt::format("training.steps={}", steps),
          "training.eval_every=null", "training.time_limit=null",
          "checkpoint=null",          "logging=null"};
}

}  // namespace trainer::config
