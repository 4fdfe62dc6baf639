// What all data sets share: choosing the loader, held-out samples, the order of samples, and samples made of random
// numbers.
#include "trainer/storage/dataset.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string_view>

#include "data_file.hpp"
#include "trainer/core/error.hpp"

namespace trainer::storage {

namespace {

/// An integer in [0, n) from 32 random bits.
std::int32_t below(std::uint64_t bits, std::int64_t n) {
  return static_cast<std::int32_t>(((bits >> 32) * static_cast<std::uint64_t>(n)) >> 32);
}

/// Of unit variance: uniform in ±√3.
float centred(std::uint32_t bits) { return (static_cast<float>(bits >> 8) * 0x1p-23f - 1.0f) * 1.7320508f; }

/// Every value is a function of (seed, sample, place in the sample).
class SyntheticDataset final : public Dataset {
 public:
  SyntheticDataset(std::int64_t samples, const ModelInput& model, std::uint64_t seed)
      : samples_(samples), inputs_(seed, "data.synthetic.inputs"), targets_(seed, "data.synthetic.targets") {
    kind_.tokens = model.tokens;
    kind_.positions = model.tokens ? model.positions : 1;
    kind_.features = model.tokens ? 0 : model.features;
    kind_.classes = model.tokens ? std::min(model.vocabulary, model.outputs) : (model.classes ? model.outputs : 0);
    kind_.target_features = model.classes ? 0 : model.outputs;
  }

  const SampleKind& kind() const override { return kind_; }
  std::int64_t size() const override { return samples_; }
  std::size_t bytes() const override { return sizeof(*this); }

  void read(std::int64_t sample, const SampleTarget& to) const override {
    if (kind_.tokens) {
      const std::uint64_t first = static_cast<std::uint64_t>(sample * (kind_.positions + 1));
      for (std::int64_t p = 0; p <= kind_.positions; ++p) {
        const std::int32_t token = below(inputs_.bits(first + static_cast<std::uint64_t>(p)), kind_.classes);
        if (to.tokens != nullptr && p < kind_.positions) to.tokens[p] = token;
        if (to.labels != nullptr && p > 0) to.labels[p - 1] = token;
      }
      return;
    }
    if (to.features != nullptr) fill(inputs_, sample, kind_.features, to.features);
    if (to.labels != nullptr && kind_.classes > 0) {
      to.labels[0] = below(targets_.bits(static_cast<std::uint64_t>(sample)), kind_.classes);
    } else if (to.values != nullptr && kind_.classes == 0) {
      fill(targets_, sample, kind_.target_features, to.values);
    }
  }

 private:
  static void fill(const RandomStream& stream, std::int64_t sample, std::int64_t count, float* values) {
    const std::uint64_t first = static_cast<std::uint64_t>(sample * ((count + 1) / 2));
    for (std::int64_t i = 0; i < count; i += 2) {
      const std::uint64_t bits = stream.bits(first + static_cast<std::uint64_t>(i / 2));
      values[i] = centred(static_cast<std::uint32_t>(bits));
      if (i + 1 < count) values[i + 1] = centred(static_cast<std::uint32_t>(bits >> 32));
    }
  }

  std::int64_t samples_;
  RandomStream inputs_;
  RandomStream targets_;
  SampleKind kind_;
};

}  // namespace

std::unique_ptr<Dataset> make_synthetic(const config::SyntheticData& data, const ModelInput& model,
                                        std::uint64_t seed) {
  if (data.samples < 1)
    throw Error(ExitCode::Data, fmt::format("data.samples is {}, at least 1 is needed", data.samples));
  if (model.tokens && !model.classes) {
    throw Error(ExitCode::Data,
                "synthetic tokens have tokens as targets, but the loss is for real targets; use cross_entropy");
  }
  return std::make_unique<SyntheticDataset>(data.samples, model, seed);
}

std::unique_ptr<Dataset> load_dataset(const config::Data& data, const ModelInput& model, std::uint64_t seed) {
  if (const auto* text = std::get_if<config::TextData>(&data.source)) return load_text(*text, model);
  if (const auto* csv = std::get_if<config::CsvData>(&data.source)) return load_csv(*csv, model);
  if (const auto* idx = std::get_if<config::IdxData>(&data.source)) return load_idx(*idx, model);
  return make_synthetic(std::get<config::SyntheticData>(data.source), model, seed);
}

Split split(std::int64_t samples, double validation_fraction) {
  if (validation_fraction <= 0) return {samples, 0};
  // The relative 1e-12 undoes the rounding of products such as 100 · 0.29, which is 28.999999999999996.
  const double exact = static_cast<double>(samples) * validation_fraction;
  const std::int64_t held_out = std::max<std::int64_t>(1, static_cast<std::int64_t>(std::floor(exact * (1 + 1e-12))));
  if (held_out >= samples) {
    throw Error(ExitCode::Data,
                fmt::format("holding out {} of {} samples (data.validation_fraction {}) leaves none to train on; "
                            "give more data or validation_fraction 0",
                            held_out, samples, validation_fraction));
  }
  return {samples - held_out, held_out};
}

SampleOrder::SampleOrder(std::uint64_t seed, std::int64_t training) : seed_(seed), training_(training) {
  if (training < 1) internal_error("an order of no samples");
}

std::int64_t SampleOrder::operator()(std::int64_t position) const {
  char name[48];  // no allocation: this is called for every sample
  const auto end = fmt::format_to(name, "data.order.epoch.{}", position / training_);
  const RandomPermutation order(seed_, std::string_view(name, static_cast<std::size_t>(end - name)),
                                static_cast<std::uint64_t>(training_));
  return static_cast<std::int64_t>(order(static_cast<std::uint64_t>(position % training_)));
}

}  // namespace trainer::storage
