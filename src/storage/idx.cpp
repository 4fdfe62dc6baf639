// IDX, the format of MNIST: two zero bytes, a type, a number of dims, big-endian sizes, big-endian values.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "data_file.hpp"

namespace trainer::storage {

namespace {

/// A file whose header and size were checked.
struct IdxFile {
  std::uint8_t type = 0;
  std::vector<std::int64_t> sizes;
  std::vector<std::uint8_t> bytes;
  std::size_t header = 0;

  std::int64_t values() const {
    std::int64_t product = 1;
    for (const std::int64_t size : sizes) product *= size;
    return product;
  }
};

std::size_t value_bytes(std::uint8_t type) {
  switch (type) {
    case 0x08:
    case 0x09:
      return 1;
    case 0x0B:
      return 2;
    case 0x0C:
    case 0x0D:
      return 4;
    case 0x0E:
      return 8;
    default:
      return 0;
  }
}

std::uint64_t big_endian(const std::uint8_t* bytes, std::size_t count) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < count; ++i) value = value << 8 | bytes[i];
  return value;
}

double value_at(const IdxFile& file, std::size_t i) {
  const std::size_t size = value_bytes(file.type);
  const std::uint64_t bits = big_endian(file.bytes.data() + file.header + i * size, size);
  switch (file.type) {
    case 0x08:
      return static_cast<double>(bits);
    case 0x09:
      return static_cast<std::int8_t>(bits);
    case 0x0B:
      return static_cast<std::int16_t>(bits);
    case 0x0C:
      return static_cast<std::int32_t>(bits);
    case 0x0D:
      return std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    default:
      return std::bit_cast<double>(bits);
  }
}

std::string dims_text(const std::vector<std::int64_t>& sizes, std::size_t from) {
  std::string text;
  for (std::size_t d = from; d < sizes.size(); ++d) text += (d > from ? "x" : "") + std::to_string(sizes[d]);
  return text;
}

IdxFile read_idx(const std::string& path) {
  IdxFile file;
  file.bytes = read_data_file(path);
  const std::vector<std::uint8_t>& b = file.bytes;
  if (b.size() < 4 || b[0] != 0 || b[1] != 0 || value_bytes(b[2]) == 0 || b[3] == 0) {
    throw data_error(
        path, "not an IDX file: it must begin with 00 00, a type (08, 09, 0b, 0c, 0d or 0e) and the number of dims");
  }
  file.type = b[2];
  file.header = 4 + std::size_t{4} * b[3];
  if (b.size() < file.header) {
    throw data_error(
        path, fmt::format("the IDX header of {} dims needs {} bytes, the file has {}", b[3], file.header, b.size()));
  }
  std::uint64_t expected = value_bytes(file.type);
  for (std::size_t d = 0; d < b[3]; ++d) {
    const std::uint64_t size = big_endian(b.data() + 4 + 4 * d, 4);
    file.sizes.push_back(static_cast<std::int64_t>(size));
    if (size == 0)
      throw data_error(path, fmt::format("dim {} of {} has size 0: the set is empty", d, dims_text(file.sizes, 0)));
    if (__builtin_mul_overflow(expected, size, &expected))
      throw data_error(path, "the sizes in the IDX header overflow");
  }
  const std::uint64_t present = b.size() - file.header;
  if (present != expected) {
    throw data_error(path,
                     fmt::format("the IDX header says {} values of {} bytes, so {} bytes of data, but there are {}{}",
                                 dims_text(file.sizes, 0), value_bytes(file.type), expected, present,
                                 present < expected ? "; the file is cut off" : ""));
  }
  return file;
}

/// Pixels of one byte stay bytes; what is read is the byte divided by 255.
class IdxDataset final : public Dataset {
 public:
  IdxDataset(std::vector<std::uint8_t> pixels, std::size_t header, std::vector<float> values,
             std::vector<std::int32_t> labels, std::int64_t features)
      : pixels_(std::move(pixels)), header_(header), values_(std::move(values)), labels_(std::move(labels)) {
    kind_.features = features;
    kind_.classes = *std::max_element(labels_.begin(), labels_.end()) + 1;
  }

  const SampleKind& kind() const override { return kind_; }
  std::int64_t size() const override { return static_cast<std::int64_t>(labels_.size()); }

  void read(std::int64_t sample, const SampleTarget& to) const override {
    if (sample < 0 || sample >= size()) internal_error("a sample outside of the data set");
    if (to.labels != nullptr) to.labels[0] = labels_[static_cast<std::size_t>(sample)];
    if (to.features == nullptr) return;
    if (pixels_.empty()) {
      std::copy_n(values_.data() + sample * kind_.features, kind_.features, to.features);
      return;
    }
    const std::uint8_t* pixel = pixels_.data() + header_ + sample * kind_.features;
    for (std::int64_t i = 0; i < kind_.features; ++i) to.features[i] = static_cast<float>(pixel[i]) / 255.0f;
  }

  std::size_t bytes() const override {
    return pixels_.capacity() + values_.capacity() * sizeof(float) + labels_.capacity() * sizeof(std::int32_t);
  }

 private:
  std::vector<std::uint8_t> pixels_;  // the file, header included
  std::size_t header_ = 0;
  std::vector<float> values_;  // of wider types
  std::vector<std::int32_t> labels_;
  SampleKind kind_;
};

std::vector<float> wide_values(const IdxFile& images, const std::string& path) {
  std::vector<float> values(static_cast<std::size_t>(images.values()));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(value_at(images, i));
    if (!std::isfinite(values[i])) throw data_error(path, fmt::format("value {} is not a finite number", i));
  }
  return values;
}

std::vector<std::int32_t> read_labels(const config::IdxData& data, std::int64_t images, std::int64_t outputs) {
  const IdxFile file = read_idx(data.labels);
  if (file.sizes.size() != 1) {
    throw data_error(data.labels,
                     fmt::format("labels must have 1 dim, this file has {} ({}); are images and labels exchanged?",
                                 file.sizes.size(), dims_text(file.sizes, 0)));
  }
  if (file.type == 0x0D || file.type == 0x0E)
    throw data_error(data.labels, "labels must be integers, this file has real numbers");
  if (file.sizes[0] != images) {
    throw data_error(data.labels,
                     fmt::format("there are {} labels, but {} images in '{}'", file.sizes[0], images, data.images));
  }
  std::vector<std::int32_t> labels(static_cast<std::size_t>(images));
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const double label = value_at(file, i);
    if (label < 0 || label >= static_cast<double>(outputs)) {
      throw data_error(data.labels,
                       fmt::format("label {} (counted from 0) is {}, but the model has {} outputs, so labels from 0 to "
                                   "{} are possible",
                                   i, label, outputs, outputs - 1));
    }
    labels[i] = static_cast<std::int32_t>(label);
  }
  return labels;
}

}  // namespace

std::unique_ptr<Dataset> load_idx(const config::IdxData& data, const ModelInput& model) {
  check_feature_model(model, data.images, "IDX", true);
  IdxFile images = read_idx(data.images);
  if (images.sizes.size() < 2) {
    throw data_error(data.images,
                     fmt::format("images must have at least 2 dims, this file has 1 ({}); are images and labels "
                                 "exchanged?",
                                 images.sizes[0]));
  }
  const std::int64_t features = images.values() / images.sizes[0];
  if (features != model.features) {
    throw data_error(data.images, fmt::format("an image has {} = {} values, but the model's input_size is {}",
                                              dims_text(images.sizes, 1), features, model.features));
  }
  std::vector<std::int32_t> labels = read_labels(data, images.sizes[0], model.outputs);
  std::vector<float> values;
  if (images.type != 0x08) {
    values = wide_values(images, data.images);
    std::vector<std::uint8_t>().swap(images.bytes);
  }
  return std::make_unique<IdxDataset>(std::move(images.bytes), images.header, std::move(values), std::move(labels),
                                      features);
}

}  // namespace trainer::storage
