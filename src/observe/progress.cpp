// The progress line for people: rewritten in place on a terminal, plain lines in a log.
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <iostream>
#include <utility>

#include "cadence.hpp"
#include "trainer/observe/reporters.hpp"

namespace trainer::observe {

namespace {

constexpr double kRedrawSeconds = 0.1;
constexpr double kMemory = 0.9;  // how much of the mean step time one more step keeps
constexpr std::string_view kClearLine = "\r\x1b[K";

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int columns_of_stderr() {
  winsize size{};
  return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

std::string format_loss(double loss) {
  const double magnitude = std::abs(loss);
  const bool plain = !std::isfinite(loss) || loss == 0 || (magnitude >= 1e-3 && magnitude < 1e5);
  return plain ? fmt::format("{:.4f}", loss) : fmt::format("{:.3e}", loss);
}

/// What happened since the line before.
struct Window {
  double seconds = 0;
  double flops = 0;
  std::int64_t samples = 0;
  std::int64_t tokens = 0;

  void add(const StepReport& report) {
    seconds += report.step_seconds;
    flops += report.flops;
    samples += report.step_samples;
    tokens += report.step_tokens;
  }
};

class Progress final : public Observer {
 public:
  Progress(std::ostream& out, ProgressSettings settings) : out_(out), settings_(std::move(settings)) {
    if (!settings_.clock) settings_.clock = steady_seconds;
  }
  ~Progress() override {
    if (!live_.empty()) print("\n");
  }

  void step(const StepReport& report) override {
    window_.add(report);
    mean_ = kMemory * mean_ + (1 - kMemory) * report.step_seconds;
    weight_ = kMemory * weight_ + (1 - kMemory);
    const bool last = report.step == report.total_steps;
    if (settings_.terminal) {
      const double now = settings_.clock();
      if (drawn_ && !last && now - drawn_at_ < kRedrawSeconds) return;
      drawn_ = true;
      drawn_at_ = now;
      live_ = facts(report);
      draw();
      if (last) {
        live_.clear();
        print("\n");
      }
    } else {
      if (!is_logged(report, settings_.every_steps)) return;
      print(facts(report) + "\n");
    }
    window_ = {};
  }

  void evaluation(const EvaluationReport& report) override {
    std::string text = fmt::format("step {}  validation loss {}", report.step, format_loss(report.loss));
    if (report.accuracy) text += fmt::format("  accuracy {:.2f}%", *report.accuracy * 100);
    text += fmt::format("  ({} targets, {})", human_count(static_cast<double>(report.targets)),
                        human_duration(report.seconds));
    line(text);
  }

  void saved(std::int64_t step, std::string_view directory, double seconds) override {
    line(fmt::format("step {}  saved to {} ({})", step, directory, human_duration(seconds)));
  }

  void note(std::string_view message) override { line(std::string(message)); }
  void warning(std::string_view message) override { line(fmt::format("warning: {}", message)); }

 private:
  std::string facts(const StepReport& report) const {
    const std::string total = std::to_string(report.total_steps);
    std::string text =
        fmt::format("step {:>{}}/{}  loss {}", report.step, total.size(), total, format_loss(report.loss));
    const bool sequences = report.tokens > 0;
    const double rate = static_cast<double>(sequences ? window_.tokens : window_.samples) / window_.seconds;
    text += fmt::format("  {} {}/s", human_count(rate), sequences ? "tokens" : "samples");
    if (report.peak_flops > 0) {
      const double percent = 100 * window_.flops / window_.seconds / report.peak_flops;
      text += fmt::format("  {:.{}f}% of peak", percent, percent < 9.95 ? 1 : 0);
    }
    if (report.step < report.total_steps) {
      const double left = static_cast<double>(report.total_steps - report.step) * mean_ / weight_;
      text += fmt::format("  {} left", human_duration(left));
    }
    return text;
  }

  /// A line that stays; the live one moves below it.
  void line(const std::string& text) {
    if (live_.empty()) {
      print(text + "\n");
      return;
    }
    print(std::string(kClearLine) + text + "\n" + fitted());
  }

  void draw() { print(std::string(kClearLine) + fitted()); }

  /// A wrapped line could not be rewritten, so it is cut (it is plain ASCII).
  std::string fitted() const {
    const int columns = settings_.columns > 0 ? settings_.columns : columns_of_stderr();
    return live_.substr(0, static_cast<std::size_t>(columns - 1));
  }

  void print(const std::string& text) {
    out_.write(text.data(), static_cast<std::streamsize>(text.size()));
    out_.flush();
    out_.clear();  // a closed terminal is no reason to stop
  }

  std::ostream& out_;
  ProgressSettings settings_;
  Window window_;
  double mean_ = 0;    // of step_seconds, the recent ones weighing more, times weight_
  double weight_ = 0;  //
  bool drawn_ = false;
  double drawn_at_ = 0;
  std::string live_;  // the line on the terminal that the next one replaces
};

}  // namespace

std::unique_ptr<Observer> make_progress(bool terminal, std::int64_t every_steps) {
  return make_progress(std::cerr, {.terminal = terminal, .every_steps = every_steps, .columns = 0, .clock = {}});
}

std::unique_ptr<Observer> make_progress(std::ostream& out, ProgressSettings settings) {
  return std::make_unique<Progress>(out, std::move(settings));
}

}  // namespace trainer::observe
