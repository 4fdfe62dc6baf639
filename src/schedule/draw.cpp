// Draws a table over time for people.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "engine.hpp"
#include "structure.hpp"
#include "trainer/core/error.hpp"

namespace trainer::schedule {
namespace {

/// A label gets its room unless its action is shorter than the longest one by more than this; then it is cut.
constexpr double kSpread = 8;

std::string label_of(const Action& action, bool with_stage) {
  std::string label = to_string(action);
  return with_stage ? label : label.substr(label.find_first_not_of("0123456789"));
}

class Drawing {
 public:
  Drawing(const Schedule& schedule, const std::vector<StageTimes>& times)
      : schedule_(schedule), engine_(schedule, times, 0) {
    engine_.run();
    for (std::size_t r = 0; r < schedule.ranks.size(); ++r) step_ = std::max(step_, engine_.clock(r));
    std::vector<int> stages(schedule.ranks.size(), 0);
    for (std::int32_t rank : schedule.rank_of_stage) with_stage_ |= ++stages[static_cast<std::size_t>(rank)] > 1;
    columns_per_second_ = scale();
  }

  std::string text() {
    const std::size_t name_width = std::to_string(schedule_.ranks.size() - 1).size();
    std::string text;
    for (std::size_t r = 0; r < schedule_.ranks.size(); ++r) {
      text += fmt::format("rank {:>{}}  {}\n", r, name_width, row(r));
    }
    return text;
  }

 private:
  /// Calls visit(label, duration, start) for each action that was run and takes time.
  template <class Visit>
  void for_each_cell(std::size_t rank, Visit&& visit) {
    for (std::size_t i = 0; i < engine_.position(rank); ++i) {
      const Action& action = schedule_.ranks[rank][i];
      const double duration = engine_.duration(action);
      if (duration > 0) visit(label_of(action, with_stage_), duration, engine_.starts()[rank][i]);
    }
  }

  double scale() {
    double longest = 0;
    for (std::size_t r = 0; r < schedule_.ranks.size(); ++r) {
      for_each_cell(r, [&](const std::string&, double duration, double) { longest = std::max(longest, duration); });
    }
    double columns = 0;
    for (std::size_t r = 0; r < schedule_.ranks.size(); ++r) {
      for_each_cell(r, [&](const std::string& label, double duration, double) {
        columns = std::max(columns, static_cast<double>(label.size() + 1) / std::max(duration, longest / kSpread));
      });
    }
    return columns;
  }

  std::size_t column(double time) const { return static_cast<std::size_t>(std::llround(time * columns_per_second_)); }

  std::string row(std::size_t rank) {
    std::string line(column(step_), '.');
    for_each_cell(rank, [&](std::string label, double duration, double start) {
      const std::size_t begin = column(start);
      const std::size_t width = column(start + duration) - begin;
      if (width == 0) return;
      label.resize(std::max(label.size(), width - 1), '-');
      label.resize(width, ' ');
      line.replace(begin, width, label);
    });
    line.erase(line.find_last_not_of(' ') + 1);
    if (engine_.done(rank)) return line;
    return line + " stands at " + to_string(schedule_.ranks[rank][engine_.position(rank)]);
  }

  const Schedule& schedule_;
  Engine engine_;
  double step_ = 0;
  double columns_per_second_ = 0;
  bool with_stage_ = false;  // in the labels
};

}  // namespace

std::string draw(const Schedule& schedule, const std::vector<StageTimes>& times) {
  if (static_cast<std::int64_t>(times.size()) != schedule.stages) {
    internal_error(fmt::format("{} stage times for a schedule of {} stages", times.size(), schedule.stages));
  }
  const Schedule table = has_communication(schedule) ? schedule : add_communication(schedule);
  if (std::optional<Violation> fault = structural_fault(table)) return fault->message + "\n";
  return Drawing(table, times).text();
}

}  // namespace trainer::schedule
