// What the tests of this room share: a directory that goes away, and reports to feed.
#pragma once

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>

#include "trainer/core/observer.hpp"

namespace trainer::observe {

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "observe_test_XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp");
    path_ = name;
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline void write_file(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

/// A step of a language model: 4 samples of 128 tokens in half a second.
inline StepReport step_report(std::int64_t step, std::int64_t total_steps) {
  StepReport r;
  r.step = step;
  r.total_steps = total_steps;
  r.loss = 1.0 / 3.0 + static_cast<double>(step);
  r.grad_norm = 0.1;
  r.learning_rate = 3e-4;
  r.step_seconds = 0.5;
  r.step_samples = 4;
  r.step_tokens = 512;
  r.samples = 4 * step;
  r.tokens = 512 * step;
  r.flops = 1e9;
  r.peak_flops = 8e9;
  return r;
}

/// Remembers what it was told.
struct Listener final : Observer {
  std::string heard;
  void step(const StepReport& r) override { heard += "step " + std::to_string(r.step) + ";"; }
  void evaluation(const EvaluationReport& r) override { heard += "evaluation " + std::to_string(r.step) + ";"; }
  void saved(std::int64_t step, std::string_view directory, double) override {
    heard += "saved " + std::to_string(step) + " " + std::string(directory) + ";";
  }
  void note(std::string_view m) override { heard += "note " + std::string(m) + ";"; }
  void warning(std::string_view m) override { heard += "warning " + std::string(m) + ";"; }
};

}  // namespace trainer::observe
