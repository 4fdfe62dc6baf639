// metrics.jsonl: one JSON object a line, and how a resumed run finds its place in it.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "append_file.hpp"
#include "cadence.hpp"
#include "trainer/core/error.hpp"
#include "trainer/observe/reporters.hpp"

namespace trainer::observe {

namespace {

using Object = nlohmann::ordered_json;  // keys in the order in which they are set

/// The step of a whole line; nothing for a broken one.
std::optional<std::int64_t> step_of(const std::string& line) {
  const auto object = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return std::nullopt;
  const auto step = object.find("step");
  if (step == object.end() || !step->is_number_integer()) return std::nullopt;
  return step->get<std::int64_t>();
}

/// The lines of `text` that a run resumed after `resume_step` continues.
std::string kept_lines(const std::string& text, std::int64_t resume_step) {
  std::string kept;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    const std::optional<std::int64_t> step = step_of(line);
    if (step && *step <= resume_step) kept += line + "\n";
    begin = end + 1;
  }
  return kept;
}

/// Puts `text` in the place of the file: a crash leaves the old or the new one, whole.
void replace_file(const std::string& path, const std::string& text) {
  const std::string temporary = path + ".tmp";
  const int descriptor = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  bool done = descriptor >= 0;
  for (std::size_t at = 0; done && at < text.size();) {
    const ssize_t written = ::write(descriptor, text.data() + at, text.size() - at);
    if (written < 0 && errno == EINTR) continue;
    done = written >= 0;
    if (done) at += static_cast<std::size_t>(written);
  }
  done = done && ::fsync(descriptor) == 0;
  const int error = errno;
  if (descriptor >= 0) ::close(descriptor);
  if (done && ::rename(temporary.c_str(), path.c_str()) == 0) return;
  const int reason = done ? errno : error;
  ::unlink(temporary.c_str());
  throw Error(ExitCode::Storage,
              fmt::format("{}: cannot be rewritten to drop its broken lines ({})", path, std::strerror(reason)));
}

/// Drops from the file what a run resumed after `resume_step` does not continue; returns the bytes that stay.
std::int64_t trim(const std::string& path, std::int64_t resume_step) {
  if (resume_step <= 0) return 0;
  if (!std::filesystem::exists(path)) return 0;
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file.is_open() || file.bad()) {
    throw Error(ExitCode::Storage, fmt::format("{}: cannot be read, so the resumed run could not continue it; "
                                               "change its permissions or move it away",
                                               path));
  }
  const std::string kept = kept_lines(text, resume_step);
  // Almost always the file is cut at its end, which AppendFile does in place.
  if (!text.starts_with(kept)) replace_file(path, kept);
  return static_cast<std::int64_t>(kept.size());
}

/// {"forward": [seconds of rank 0, …], …}, to the nanosecond; parts that are 0 on every rank are left out.
Object time_by_rank(std::span<const TimeSplit> splits) {
  Object time = Object::object();
  for (std::size_t p = 0; p < kStepParts; ++p) {
    const TimePart& part = kTimeParts[p];
    Object seconds = Object::array();
    bool any = false;
    for (const TimeSplit& split : splits) {
      seconds.push_back(std::round(split.*part.seconds * 1e9) / 1e9);
      any = any || seconds.back() != 0.0;
    }
    if (any) time[std::string(part.name)] = std::move(seconds);
  }
  return time;
}

class Metrics final : public Observer {
 public:
  Metrics(const std::string& path, std::int64_t every_steps, std::int64_t resume_step, Observer* warnings)
      : file_(path, trim(path, resume_step), warnings),
        every_steps_(every_steps),
        resume_step_(resume_step),
        shares_path_(std::filesystem::path(path).replace_filename("balance.jsonl").string()),
        warnings_(warnings) {}

  void step(const StepReport& report) override {
    if (!is_logged(report, every_steps_)) return;
    Object line;
    line["step"] = report.step;
    line["loss"] = report.loss;
    line["grad_norm"] = report.grad_norm;
    line["learning_rate"] = report.learning_rate;
    line["step_seconds"] = report.step_seconds;
    line["samples_per_second"] = static_cast<double>(report.step_samples) / report.step_seconds;
    if (report.tokens > 0) {
      line["tokens_per_second"] = static_cast<double>(report.step_tokens) / report.step_seconds;
    }
    line["samples"] = report.samples;
    line["tokens"] = report.tokens;
    if (report.peak_flops > 0) line["flops_share"] = report.flops / report.step_seconds / report.peak_flops;
    if (report.exchange_bytes > 0) line["exchange_bytes"] = static_cast<std::int64_t>(report.exchange_bytes);
    if (!report.micro_batches.empty()) line["micro_batches"] = report.micro_batches;
    if (report.allocations >= 0) line["allocations"] = report.allocations;
    if (!report.splits.empty()) line["time"] = time_by_rank(report.splits);
    write(line);
  }

  void evaluation(const EvaluationReport& report) override {
    Object line;
    line["step"] = report.step;
    line["validation_loss"] = report.loss;
    if (report.accuracy) line["accuracy"] = *report.accuracy;
    line["validation_targets"] = report.targets;
    line["seconds"] = report.seconds;
    write(line);
  }

  void shares(const ShareReport& report) override {
    if (!shares_file_) shares_file_.emplace(shares_path_, trim(shares_path_, resume_step_), warnings_);
    Object line;
    line["step"] = report.step;
    line["micro_batches"] = report.micro_batches;
    if (!report.seconds.empty()) line["seconds"] = report.seconds;
    shares_file_->append(line.dump() + "\n");
  }

 private:
  // dump() writes the fewest digits that read back as the same double, and null for what is not finite.
  void write(const Object& line) { file_.append(line.dump() + "\n"); }

  AppendFile file_;
  std::int64_t every_steps_, resume_step_;
  std::string shares_path_;
  std::optional<AppendFile> shares_file_;
  Observer* warnings_;
};

}  // namespace

std::unique_ptr<Observer> make_metrics(const std::string& directory, std::int64_t every_steps, std::int64_t resume_step,
                                       Observer* warnings) {
  create_directory(directory);
  return std::make_unique<Metrics>(directory + "/metrics.jsonl", every_steps, resume_step, warnings);
}

}  // namespace trainer::observe
