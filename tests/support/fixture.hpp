// Reads the oracle's fixtures (tests/oracle/fixture.py says what is in them) and lends their tensors as a data set and
// a checkpoint.
#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "trainer/core/shape.hpp"
#include "trainer/storage/checkpoint.hpp"
#include "trainer/storage/dataset.hpp"

namespace trainer::test {

class Fixture {
 public:
  explicit Fixture(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("cannot read " + path);
    std::uint64_t length = 0;
    file.read(reinterpret_cast<char*>(&length), sizeof length);
    std::string header(length, ' ');
    file.read(header.data(), static_cast<std::streamsize>(length));
    header_ = nlohmann::json::parse(header);
    std::ostringstream rest;
    rest << file.rdbuf();
    bytes_ = rest.str();
  }

  std::string config() const { return header_.at("__metadata__").at("config").get<std::string>(); }
  bool has(const std::string& name) const { return header_.contains(name); }
  Shape shape(const std::string& name) const {
    Shape shape;
    for (const auto& extent : header_.at(name).at("shape")) shape.push_back(extent.get<std::int64_t>());
    return shape;
  }
  template <class T>
  const T* data(const std::string& name) const {
    return reinterpret_cast<const T*>(bytes_.data() + header_.at(name).at("data_offsets").at(0).get<std::size_t>());
  }
  std::string dtype(const std::string& name) const { return header_.at(name).at("dtype").get<std::string>(); }
  std::vector<std::string> names(const std::string& prefix) const {
    std::vector<std::string> all;
    for (const auto& [name, entry] : header_.items()) {
      if (name.starts_with(prefix)) all.push_back(name.substr(prefix.size()));
    }
    return all;
  }
  double error(const std::string& name) const { return *data<double>("error/" + name); }

 private:
  nlohmann::json header_;
  std::string bytes_;
};

/// The ten batches in the order in which a run with `seed` will ask for them.
class FixtureData final : public storage::Dataset {
 public:
  FixtureData(const Fixture& fixture, std::uint64_t seed) : fixture_(fixture) {
    const Shape inputs = fixture.shape("inputs");
    const Shape targets = fixture.shape("targets");
    kind_.tokens = fixture.dtype("inputs") == "I32";
    kind_.positions = kind_.tokens ? inputs[2] : 1;
    kind_.features = kind_.tokens ? 0 : inputs[2];
    if (fixture.dtype("targets") == "I32") {
      kind_.classes = 1;
    } else {
      kind_.target_features = targets[2];
    }
    stored_.resize(static_cast<std::size_t>(inputs[0] * inputs[1]));
    const storage::SampleOrder order(seed, size());
    for (std::int64_t p = 0; p < size(); ++p) stored_[static_cast<std::size_t>(order(p))] = p;
  }

  const storage::SampleKind& kind() const override { return kind_; }
  std::int64_t size() const override { return static_cast<std::int64_t>(stored_.size()); }
  std::size_t bytes() const override { return 0; }
  void read(std::int64_t sample, const storage::SampleTarget& to) const override {
    const std::int64_t i = stored_[static_cast<std::size_t>(sample)];
    copy("inputs", i, kind_.positions, to.tokens);
    copy("inputs", i, kind_.features, to.features);
    copy("targets", i, kind_.tokens ? kind_.positions : 1, to.labels);
    copy("targets", i, kind_.target_features, to.values);
  }

 private:
  template <class T>
  void copy(const std::string& name, std::int64_t sample, std::int64_t n, T* to) const {
    if (to != nullptr) std::memcpy(to, fixture_.data<T>(name) + sample * n, static_cast<std::size_t>(n) * sizeof(T));
  }

  const Fixture& fixture_;
  storage::SampleKind kind_;
  std::vector<std::int64_t> stored_;
};

/// The fixture's initial weights as a checkpoint with zero optimizer state.
class FixtureCheckpoint final : public storage::CheckpointReader {
 public:
  explicit FixtureCheckpoint(const Fixture& fixture) : fixture_(fixture) {}
  const storage::CheckpointRecord& record() const override { return record_; }
  const std::string& path() const override { return record_.build; }
  const std::vector<storage::TensorEntry>& tensors() const override { return tensors_; }
  bool has(const std::string& name) const override { return fixture_.has("initial/" + name); }
  void read(const std::string& name, const Box& box, void* to) const override {
    if (name.starts_with("optimizer.")) {
      std::memset(to, 0, static_cast<std::size_t>(box.elements()) * sizeof(float));
      return;
    }
    copy_box(box, whole(fixture_.shape("initial/" + name)), fixture_.data<float>("initial/" + name), box, to,
             sizeof(float));
  }
  void verify() const override {}

 private:
  const Fixture& fixture_;
  storage::CheckpointRecord record_;
  std::vector<storage::TensorEntry> tensors_;
};

}  // namespace trainer::test
