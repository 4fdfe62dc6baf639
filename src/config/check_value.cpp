// The rules of the table of keys, applied to values.
#include "check_value.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "trainer/core/error.hpp"

namespace trainer::config {

namespace {

constexpr std::size_t kMostElements = 10'000;  // of a list of numbers

bool contains(const std::vector<std::string>& words, const std::string& word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

class ValueChecker {
 public:
  explicit ValueChecker(const Origin& origin) : origin_(origin) {}
  void check(const Value& value, const std::string& path, const Rule& rule);

 private:
  void check_list(const Array& array, const std::string& path, const Rule& rule);
  void check_word(const Value& value, const std::string& path, const Rule& rule);
  void check_names(const Array& array, const std::string& path);
  void check_text(const Value& value, const std::string& path, const Rule& rule);
  void check_integer(const Value& value, const std::string& path, const Rule& rule);
  void check_number(const Value& value, const std::string& path, const Rule& rule);
  [[noreturn]] void mismatch(const Value& value, const std::string& path, const Rule& rule);

  const Origin& origin_;
};

void ValueChecker::mismatch(const Value& value, const std::string& path, const Rule& rule) {
  // A number in quotes looks like a number.
  const bool wants_text = rule.kind == Kind::Text || rule.kind == Kind::Character || rule.kind == Kind::Choice ||
                          rule.kind == Kind::Names || rule.kind == Kind::Bytes;
  const char* kind = value.as<std::string>() && !wants_text ? " (a string)" : "";
  origin_.fail({path}, fmt::format("{} is {}{}; expected {}", path, to_short_text(value), kind, expectation(rule)));
}

void ValueChecker::check_integer(const Value& value, const std::string& path, const Rule& rule) {
  if (const double* number = value.as<double>(); number && std::floor(*number) == *number && std::abs(*number) < 1e15) {
    origin_.fail({path}, fmt::format("{} is {}; expected an integer, written without point or exponent: {}", path,
                                     to_short_text(value), static_cast<std::int64_t>(*number)));
  }
  const auto* integer = value.as<std::int64_t>();
  if (rule.kind == Kind::Seed) {
    if (value.as<std::uint64_t>() || (integer && *integer >= 0)) return;
  } else if (integer && *integer >= rule.least && *integer <= rule.most) {
    return;
  }
  Rule one = rule;
  if (rule.kind != Kind::Seed) one.kind = Kind::Integer;
  mismatch(value, path, one);
}

void ValueChecker::check_number(const Value& value, const std::string& path, const Rule& rule) {
  Rule one = rule;
  one.kind = Kind::Number;
  double number = 0;
  if (const auto* integer = value.as<std::int64_t>()) {
    number = static_cast<double>(*integer);
  } else if (const auto* large = value.as<std::uint64_t>()) {
    number = static_cast<double>(*large);
  } else if (const double* real = value.as<double>()) {
    number = *real;
  } else {
    mismatch(value, path, one);
  }
  const bool above = rule.open_low ? number > rule.low : number >= rule.low;
  const bool below = rule.open_high ? number < rule.high : number <= rule.high;
  if (!above || !below) mismatch(value, path, one);
}

void ValueChecker::check_word(const Value& value, const std::string& path, const Rule& rule) {
  const std::string* word = value.as<std::string>();
  if (!word) mismatch(value, path, rule);
  if (contains(rule.choices, *word)) return;
  if (contains(rule.later, *word)) {
    origin_.fail({path}, fmt::format("{} is \"{}\", which this version does not have; available: {}", path, *word,
                                     expectation(rule)));
  }
  const std::string near = nearest_word(word->substr(0, 100), rule.choices);
  const std::string hint = near.empty() ? "" : fmt::format("; did you mean \"{}\"?", near);
  origin_.fail({path}, fmt::format("{} is {}; expected {}{}", path, to_short_text(value), expectation(rule), hint));
}

void ValueChecker::check_list(const Array& array, const std::string& path, const Rule& rule) {
  if (array.size() > kMostElements) {
    origin_.fail({path}, fmt::format("{} has {} elements; at most {} are read", path, array.size(), kMostElements));
  }
  for (std::size_t i = 0; i < array.size(); ++i) {
    if (rule.kind == Kind::NumberPair || rule.kind == Kind::Numbers) {
      check_number(array[i], join_path(path, i), rule);
    } else {
      check_integer(array[i], join_path(path, i), rule);
    }
  }
}

void ValueChecker::check_names(const Array& array, const std::string& path) {
  if (array.size() > kMostElements) {
    origin_.fail({path}, fmt::format("{} has {} elements; at most {} are read", path, array.size(), kMostElements));
  }
  const Rule name{.kind = Kind::Text, .least = 1};
  for (std::size_t i = 0; i < array.size(); ++i) check_text(array[i], join_path(path, i), name);
}

void ValueChecker::check_text(const Value& value, const std::string& path, const Rule& rule) {
  const std::string* text = value.as<std::string>();
  if (!text || text->size() < static_cast<std::size_t>(rule.least)) mismatch(value, path, rule);
  if (text->find('\0') != std::string::npos) {
    origin_.fail({path}, fmt::format("{} is {}; expected a string without \\u0000", path, to_short_text(value)));
  }
}

void ValueChecker::check(const Value& value, const std::string& path, const Rule& rule) {
  const std::string* text = value.as<std::string>();
  const Array* array = value.as<Array>();
  switch (rule.kind) {
    case Kind::Integer:
    case Kind::Seed:
      return check_integer(value, path, rule);
    case Kind::Number:
      return check_number(value, path, rule);
    case Kind::Boolean:
      if (!value.as<bool>()) mismatch(value, path, rule);
      return;
    case Kind::Text:
      return check_text(value, path, rule);
    case Kind::Character:
      if (!text || text->size() != 1 || text->front() <= 0) mismatch(value, path, rule);
      return;
    case Kind::Choice:
      return check_word(value, path, rule);
    case Kind::Partition:
      if (!array) return check_word(value, path, rule);
      if (array->empty()) mismatch(value, path, rule);
      return check_list(*array, path, rule);
    case Kind::Names:
      if (!array) return check_word(value, path, rule);
      if (array->empty()) mismatch(value, path, rule);
      return check_names(*array, path);
    case Kind::Bytes: {
      const auto* integer = value.as<std::int64_t>();
      if (!(integer && *integer >= 0) && !(text && bytes_of(*text))) mismatch(value, path, rule);
      return;
    }
    case Kind::NumberPair:
      if (!array || array->size() != 2) mismatch(value, path, rule);
      return check_list(*array, path, rule);
    case Kind::Integers:
    case Kind::Numbers:
      if (!array) mismatch(value, path, rule);
      return check_list(*array, path, rule);
    case Kind::Layers:
      if (!array || array->empty() || array->size() > static_cast<std::size_t>(rule.most)) mismatch(value, path, rule);
      return;
  }
}

}  // namespace

void check_value(const Value& value, const std::string& path, const Rule& rule, const Origin& origin) {
  ValueChecker(origin).check(value, path, rule);
}

}  // namespace trainer::config
