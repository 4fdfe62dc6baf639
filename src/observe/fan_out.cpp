// One observer that stands for several.
#include <utility>

#include "trainer/observe/reporters.hpp"

namespace trainer::observe {

namespace {

class FanOut final : public Observer {
 public:
  explicit FanOut(std::vector<std::unique_ptr<Observer>> observers) : observers_(std::move(observers)) {}

  void step(const StepReport& report) override {
    for (const auto& o : observers_) o->step(report);
  }
  void evaluation(const EvaluationReport& report) override {
    for (const auto& o : observers_) o->evaluation(report);
  }
  void shares(const ShareReport& report) override {
    for (const auto& o : observers_) o->shares(report);
  }
  void saved(std::int64_t step, std::string_view directory, double seconds) override {
    for (const auto& o : observers_) o->saved(step, directory, seconds);
  }
  void note(std::string_view message) override {
    for (const auto& o : observers_) o->note(message);
  }
  void warning(std::string_view message) override {
    for (const auto& o : observers_) o->warning(message);
  }

 private:
  std::vector<std::unique_ptr<Observer>> observers_;
};

}  // namespace

std::unique_ptr<Observer> make_fan_out(std::vector<std::unique_ptr<Observer>> observers) {
  return std::make_unique<FanOut>(std::move(observers));
}

}  // namespace trainer::observe
