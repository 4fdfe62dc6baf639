#include "trainer/runtime/batch_source.hpp"

#include <algorithm>

namespace trainer::runtime {

std::int64_t BatchSource::sample_at(std::int64_t position) const {
  if (position >= batch_.limit) return -1;
  return batch_.held_out ? split_.training + position : order_(position);
}

void BatchSource::load_inputs(std::int64_t micro_batch, std::int32_t* tokens, float* features) const {
  const storage::SampleKind& kind = data_.kind();
  const std::int64_t first = first_of(micro_batch);
  for (std::int64_t i = 0; i < samples(); ++i) {
    const std::int64_t sample = sample_at(first + i);
    storage::SampleTarget to;
    if (kind.tokens) {
      to.tokens = tokens + i * kind.positions;
      if (sample < 0) std::fill_n(to.tokens, kind.positions, 0);
    } else {
      to.features = features + i * kind.features;
      if (sample < 0) std::fill_n(to.features, kind.features, 0.0f);
    }
    if (sample >= 0) data_.read(sample, to);
  }
}

void BatchSource::load_targets(std::int64_t micro_batch, std::int32_t* labels, float* values) const {
  const storage::SampleKind& kind = data_.kind();
  const std::int64_t first = first_of(micro_batch);
  const std::int64_t labels_each = kind.tokens ? kind.positions : 1;
  for (std::int64_t i = 0; i < samples(); ++i) {
    const std::int64_t sample = sample_at(first + i);
    storage::SampleTarget to;
    if (labels != nullptr) {
      to.labels = labels + i * labels_each;
      if (sample < 0) std::fill_n(to.labels, labels_each, -1);
    } else {
      to.values = values + i * kind.target_features;
      if (sample < 0) std::fill_n(to.values, kind.target_features, 0.0f);
    }
    if (sample >= 0) data_.read(sample, to);
  }
}

void BatchSource::load_valid(std::int64_t micro_batch, std::uint8_t* valid) const {
  const std::int64_t first = first_of(micro_batch);
  for (std::int64_t i = 0; i < samples(); ++i) valid[i] = first + i < batch_.limit ? 1 : 0;
}

}  // namespace trainer::runtime
