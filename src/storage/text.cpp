// Text as tokens: bytes, or the code points that occur in it, numbered in their order.
#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <string_view>
#include <utility>
#include <variant>

#include "data_file.hpp"

namespace trainer::storage {

namespace {

constexpr std::int64_t kByteTokens = 256;
constexpr const char* kReplacement = "\xEF\xBF\xBD";  // U+FFFD, for tokens that stand for nothing

/// Goes through UTF-8 one code point at a time (the table of well-formed sequences of Unicode's chapter 3).
class CodePoints {
 public:
  explicit CodePoints(std::string_view text) : text_(text) {}

  bool done() const { return at_ == text_.size(); }
  std::size_t offset() const { return at_; }

  /// The next code point, or -1 when the bytes at offset() are not one.
  std::int32_t next() {
    const std::uint32_t lead = byte(0);
    if (lead < 0x80) return take(1, lead);
    if (lead >= 0xC2 && lead <= 0xDF && follows(1, 0x80, 0xBF)) return take(2, (lead & 0x1F) << 6 | tail(1));
    const bool three = lead >= 0xE0 && lead <= 0xEF &&
                       follows(1, lead == 0xE0 ? 0xA0 : 0x80, lead == 0xED ? 0x9F : 0xBF) && follows(2, 0x80, 0xBF);
    if (three) return take(3, (lead & 0x0F) << 12 | tail(1) << 6 | tail(2));
    const bool four = lead >= 0xF0 && lead <= 0xF4 &&
                      follows(1, lead == 0xF0 ? 0x90 : 0x80, lead == 0xF4 ? 0x8F : 0xBF) && follows(2, 0x80, 0xBF) &&
                      follows(3, 0x80, 0xBF);
    if (four) return take(4, (lead & 0x07) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3));
    return -1;
  }

 private:
  std::uint32_t byte(std::size_t i) const { return static_cast<unsigned char>(text_[at_ + i]); }
  std::uint32_t tail(std::size_t i) const { return byte(i) & 0x3F; }
  bool follows(std::size_t i, std::uint32_t from, std::uint32_t to) const {
    return at_ + i < text_.size() && byte(i) >= from && byte(i) <= to;
  }
  std::int32_t take(std::size_t bytes, std::uint32_t point) {
    at_ += bytes;
    return static_cast<std::int32_t>(point);
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

std::string utf8(std::int32_t point) {
  const auto byte = [](std::int32_t value) { return static_cast<char>(value); };
  if (point < 0x80) return {byte(point)};
  if (point < 0x800) return {byte(0xC0 | point >> 6), byte(0x80 | (point & 0x3F))};
  if (point < 0x10000) {
    return {byte(0xE0 | point >> 12), byte(0x80 | (point >> 6 & 0x3F)), byte(0x80 | (point & 0x3F))};
  }
  return {byte(0xF0 | point >> 18), byte(0x80 | (point >> 12 & 0x3F)), byte(0x80 | (point >> 6 & 0x3F)),
          byte(0x80 | (point & 0x3F))};
}

/// Code points ↔ tokens; empty for bytes, which are their own tokens.
class Vocabulary {
 public:
  Vocabulary() = default;
  explicit Vocabulary(std::vector<std::int32_t> points) : points_(std::move(points)) {}

  bool bytes() const { return points_.empty(); }
  std::int64_t size() const { return bytes() ? kByteTokens : static_cast<std::int64_t>(points_.size()); }

  /// -1 when the code point has no token.
  std::int32_t token(std::int32_t point) const {
    const auto found = std::lower_bound(points_.begin(), points_.end(), point);
    if (found == points_.end() || *found != point) return -1;
    return static_cast<std::int32_t>(found - points_.begin());
  }

  std::vector<std::int32_t> encode(const std::string& text) const;

  std::string decode(std::int32_t token) const {
    if (token < 0 || token >= size()) return kReplacement;
    if (bytes()) return {static_cast<char>(token)};
    return utf8(points_[static_cast<std::size_t>(token)]);
  }

  std::string text() const {
    std::string all;
    for (const std::int32_t point : points_) all += utf8(point);
    return all;
  }

 private:
  std::vector<std::int32_t> points_;  // ascending
};

std::vector<std::int32_t> Vocabulary::encode(const std::string& text) const {
  std::vector<std::int32_t> tokens;
  if (bytes()) {
    for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
    return tokens;
  }
  CodePoints points(text);
  while (!points.done()) {
    const std::size_t offset = points.offset();
    const std::int32_t point = points.next();
    if (point < 0) throw Error(ExitCode::Usage, fmt::format("the text to encode is not UTF-8 at byte {}", offset));
    const std::int32_t id = token(point);
    if (id < 0) {
      throw Error(ExitCode::Usage,
                  fmt::format("the character '{}' (U+{:04X}) at byte {} of the text is not among the {} "
                              "characters that the model was trained on",
                              utf8(point), point, offset, size()));
    }
    tokens.push_back(id);
  }
  return tokens;
}

/// Tokens in the smallest integers that hold them.
using Tokens = std::variant<std::vector<std::uint8_t>, std::vector<std::uint16_t>, std::vector<std::int32_t>>;

class TextDataset final : public Dataset {
 public:
  TextDataset(Vocabulary vocabulary, Tokens tokens, std::int64_t positions)
      : vocabulary_(std::move(vocabulary)), tokens_(std::move(tokens)) {
    kind_.tokens = true;
    kind_.positions = positions;
    kind_.classes = vocabulary_.size();
    const std::int64_t count = std::visit([](const auto& t) { return static_cast<std::int64_t>(t.size()); }, tokens_);
    samples_ = count > 0 ? (count - 1) / positions : 0;
  }

  const SampleKind& kind() const override { return kind_; }
  std::int64_t size() const override { return samples_; }

  void read(std::int64_t sample, const SampleTarget& to) const override {
    if (sample < 0 || sample >= samples_) internal_error("a sample outside of the text");
    std::visit(
        [&](const auto& tokens) {
          const auto* window = tokens.data() + sample * kind_.positions;
          if (to.tokens != nullptr) std::copy_n(window, kind_.positions, to.tokens);
          if (to.labels != nullptr) std::copy_n(window + 1, kind_.positions, to.labels);
        },
        tokens_);
  }

  std::size_t bytes() const override {
    return std::visit([](const auto& t) { return t.capacity() * sizeof(t[0]); }, tokens_);
  }
  std::vector<std::int32_t> encode(const std::string& text) const override { return vocabulary_.encode(text); }
  std::string decode(std::int32_t token) const override { return vocabulary_.decode(token); }
  std::string vocabulary() const override { return vocabulary_.text(); }

 private:
  Vocabulary vocabulary_;
  Tokens tokens_;
  SampleKind kind_;
  std::int64_t samples_ = 0;
};

std::string_view view(const std::vector<std::uint8_t>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// The code points that occur, ascending.
std::vector<std::int32_t> distinct(std::string_view text, const std::string& path) {
  std::vector<bool> seen(0x110000, false);
  CodePoints points(text);
  while (!points.done()) {
    const std::size_t offset = points.offset();
    const std::int32_t point = points.next();
    if (point < 0) {
      throw data_error(
          path, fmt::format("the byte 0x{:02x} at offset {} does not begin a UTF-8 character; convert the file to "
                            "UTF-8 or use the tokenizer 'byte'",
                            static_cast<unsigned char>(text[offset]), offset));
    }
    seen[static_cast<std::size_t>(point)] = true;
  }
  std::vector<std::int32_t> found;
  for (std::size_t p = 0; p < seen.size(); ++p) {
    if (seen[p]) found.push_back(static_cast<std::int32_t>(p));
  }
  return found;
}

template <class T>
std::vector<T> tokens_of(std::string_view text, const Vocabulary& vocabulary) {
  const auto characters = std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
  std::vector<T> tokens;
  tokens.reserve(static_cast<std::size_t>(characters));
  CodePoints points(text);
  while (!points.done()) tokens.push_back(static_cast<T>(vocabulary.token(points.next())));
  return tokens;
}

Tokens smallest_tokens(std::string_view text, const Vocabulary& vocabulary) {
  if (vocabulary.size() <= std::numeric_limits<std::uint8_t>::max() + 1)
    return tokens_of<std::uint8_t>(text, vocabulary);
  if (vocabulary.size() <= std::numeric_limits<std::uint16_t>::max() + 1)
    return tokens_of<std::uint16_t>(text, vocabulary);
  return tokens_of<std::int32_t>(text, vocabulary);
}

void check_model(const ModelInput& model, const std::string& path) {
  if (!model.tokens) {
    throw data_error(
        path, fmt::format("text gives tokens, but the model takes {} numbers a sample; use a model that begins with an "
                          "embedding (type 'gpt'), or data.type 'csv' or 'idx'",
                          model.features));
  }
  if (!model.classes) {
    throw data_error(
        path, "text has the next tokens as targets, but the loss is for real targets; use the loss cross_entropy");
  }
}

void check_vocabulary(const ModelInput& model, std::int64_t tokens, const char* tokenizer, const std::string& path) {
  if (model.vocabulary < tokens) {
    throw data_error(path,
                     fmt::format("the tokenizer '{}' has {} tokens, but the model's vocabulary has {}; set the model's "
                                 "vocab_size to at least {}",
                                 tokenizer, tokens, model.vocabulary, tokens));
  }
  if (model.outputs < tokens) {
    throw data_error(path,
                     fmt::format("the tokenizer '{}' has {} tokens, but the model's output has {}; give it at least {}",
                                 tokenizer, tokens, model.outputs, tokens));
  }
}

}  // namespace

std::unique_ptr<Dataset> load_text(const config::TextData& data, const ModelInput& model) {
  check_model(model, data.path);
  std::vector<std::uint8_t> bytes = read_data_file(data.path);
  Vocabulary vocabulary;
  Tokens tokens;
  if (data.tokenizer == config::Tokenizer::Byte) {
    tokens = std::move(bytes);
  } else {
    vocabulary = Vocabulary(distinct(view(bytes), data.path));
    tokens = smallest_tokens(view(bytes), vocabulary);
  }
  const char* const tokenizer = data.tokenizer == config::Tokenizer::Byte ? "byte" : "char";
  check_vocabulary(model, vocabulary.size(), tokenizer, data.path);
  const std::size_t count = std::visit([](const auto& t) { return t.size(); }, tokens);
  if (count < static_cast<std::size_t>(model.positions) + 1) {
    throw data_error(data.path,
                     fmt::format("the text has {} tokens, but a sample of {} positions needs {}; give more text or a "
                                 "smaller training.sequence_length",
                                 count, model.positions, model.positions + 1));
  }
  return std::make_unique<TextDataset>(std::move(vocabulary), std::move(tokens), model.positions);
}

std::unique_ptr<Dataset> tokenizer_only(config::Tokenizer tokenizer, const std::string& vocabulary) {
  if (tokenizer == config::Tokenizer::Byte) return std::make_unique<TextDataset>(Vocabulary(), Tokens(), 1);
  std::vector<std::int32_t> points;
  CodePoints text(vocabulary);
  while (!text.done()) {
    const std::int32_t point = text.next();
    if (point < 0 || (!points.empty() && point <= points.back())) {
      throw Error(ExitCode::Storage, "the vocabulary in the checkpoint is not a list of characters in ascending order");
    }
    points.push_back(point);
  }
  if (points.empty())
    throw Error(ExitCode::Storage, "the checkpoint has no vocabulary, but its tokenizer 'char' needs one");
  return std::make_unique<TextDataset>(Vocabulary(std::move(points)), Tokens(), 1);
}

}  // namespace trainer::storage
