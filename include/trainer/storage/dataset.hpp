// Data sets in memory: what a sample is, which samples are held out, and in which order they come.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "trainer/config/config.hpp"
#include "trainer/core/random.hpp"
#include "trainer/core/shape.hpp"

namespace trainer::storage {

/// What one sample gives: `positions` input tokens and as many target tokens, or `features` floats with one class or
/// `target_features` real targets.
struct SampleKind {
  bool tokens = false;
  std::int64_t positions = 1;
  std::int64_t features = 0;         // inputs when not tokens
  std::int64_t classes = 0;          // number of distinct classes or tokens; 0 for real targets
  std::int64_t target_features = 0;  // real targets
};

/// Where a sample is written: the parts that somebody wants, of those that its kind has; null: not wanted.
struct SampleTarget {
  std::int32_t* tokens = nullptr;  // [positions]
  float* features = nullptr;       // [features]
  std::int32_t* labels = nullptr;  // [positions] (next tokens) or [1] (class)
  float* values = nullptr;         // [target_features]
};

/// Read-only after loading; read() may be called from several threads and allocates nothing.
class Dataset {
 public:
  virtual ~Dataset() = default;
  virtual const SampleKind& kind() const = 0;
  virtual std::int64_t size() const = 0;  // samples, held-out ones included
  virtual void read(std::int64_t sample, const SampleTarget& to) const = 0;
  virtual std::size_t bytes() const = 0;  // resident memory, for the plan
  /// The tokenizer for generation: empty for data without text. Throws Error(Usage) for a character that has no token.
  virtual std::vector<std::int32_t> encode(const std::string& /*text*/) const { return {}; }
  /// U+FFFD for a token that stands for nothing. For CSV: the label that a class had in the file.
  virtual std::string decode(std::int32_t /*token*/) const { return {}; }
  /// What a checkpoint must keep so that text can be encoded and decoded without the data ("" for byte).
  virtual std::string vocabulary() const { return {}; }
};

/// What the model wants, to check the data against: thrown messages name both numbers.
struct ModelInput {
  bool tokens = false;
  std::int64_t positions = 1;
  std::int64_t vocabulary = 0;  // of an embedding
  std::int64_t features = 0;    // of the first layer otherwise
  std::int64_t outputs = 0;     // classes or real targets
  bool classes = true;          // cross-entropy
};

/// Loads the configured set. Throws Error(Data): missing, empty, malformed (line and column), label out of range, sizes
/// that do not fit the model. Text: samples are windows of positions + 1 tokens at multiples of `positions`. Pixels of
/// IDX are scaled to [0, 1]. gzip is recognised by its magic number.
std::unique_ptr<Dataset> load_dataset(const config::Data& data, const ModelInput& model, std::uint64_t seed);

/// Encoder and decoder of a tokenizer without its data: `vocabulary` as Dataset::vocabulary() gave it.
std::unique_ptr<Dataset> tokenizer_only(config::Tokenizer tokenizer, const std::string& vocabulary);

/// Training and held-out samples of a set: the last ⌊n · fraction⌋ (at least 1 when fraction > 0) are held out.
struct Split {
  std::int64_t training = 0;
  std::int64_t held_out = 0;  // samples [training, training + held_out)
};
Split split(std::int64_t samples, double validation_fraction);

/// The global order of training samples: position i of the endless stream of epochs → sample, a function of (seed, i).
/// Every epoch is a permutation of [0, training).
class SampleOrder {
 public:
  SampleOrder(std::uint64_t seed, std::int64_t training);
  std::int64_t operator()(std::int64_t position) const;

 private:
  std::uint64_t seed_;
  std::int64_t training_;
};

}  // namespace trainer::storage
