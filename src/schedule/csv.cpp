// Tables as comma-separated rows, and back.
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "channels.hpp"
#include "trainer/core/error.hpp"

namespace trainer::schedule {
namespace {

constexpr std::int64_t kNotYet = -1;

/// The step of each action: the first one behind the action before it and behind what it needs from other stages.
class Steps {
 public:
  explicit Steps(const Schedule& schedule)
      : schedule_(schedule), channels_(schedule), done_(channels_.messages(), kNotYet), steps_(schedule.ranks.size()) {
    std::vector<std::size_t> work;
    for (std::size_t r = schedule.ranks.size(); r-- > 0;) work.push_back(r);
    while (!work.empty()) {
      const std::size_t rank = work.back();
      work.pop_back();
      advance(rank, work);
    }
  }
  const std::vector<std::int64_t>& operator[](std::size_t rank) const { return steps_[rank]; }

 private:
  void advance(std::size_t rank, std::vector<std::size_t>& work) {
    const std::vector<Action>& row = schedule_.ranks[rank];
    std::vector<std::int64_t>& steps = steps_[rank];
    while (steps.size() < row.size()) {
      const Action& action = row[steps.size()];
      std::int64_t step = steps.empty() ? 0 : steps.back() + 1;
      if (const std::int64_t in = channels_.input(action); in != Channels::kNone) {
        const std::int64_t made = done_[channels_.message(in, action.micro_batch)];
        if (made == kNotYet) return;  // its maker puts this rank to work again
        step = std::max(step, made + 1);
      }
      steps.push_back(step);
      if (const std::int64_t out = channels_.output(action); out != Channels::kNone) {
        done_[channels_.message(out, action.micro_batch)] = step;
        if (channels_.crosses(out)) work.push_back(static_cast<std::size_t>(channels_.receiver_rank(out)));
      }
    }
  }

  const Schedule& schedule_;
  Channels channels_;
  std::vector<std::int64_t> done_;                // [message] step that made it
  std::vector<std::vector<std::int64_t>> steps_;  // [rank][action]
};

[[noreturn]] void fail(std::size_t row, std::size_t cell, const std::string& what) {
  throw Error(ExitCode::Usage, fmt::format("row {}, cell {}: {}", row, cell, what));
}

std::string_view trimmed(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(" \t\r");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r") - begin + 1);
}

/// Takes the part up to the next separator off the front.
std::string_view take(std::string_view& text, char separator) {
  const std::size_t end = text.find(separator);
  const std::string_view part = text.substr(0, end);
  text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  return part;
}

class Reader {
 public:
  CsvTable read(std::string_view text) {
    while (!text.empty()) read_row(take(text, '\n'));
    // Blank lines at the end are no ranks.
    while (!table_.schedule.ranks.empty() && table_.schedule.ranks.back().empty()) {
      table_.schedule.ranks.pop_back();
      table_.cells.pop_back();
    }
    finish();
    return std::move(table_);
  }

 private:
  void read_row(std::string_view line) {
    table_.schedule.ranks.emplace_back();
    table_.cells.emplace_back();
    const std::size_t row = table_.schedule.ranks.size();
    std::size_t cell = 0;
    while (!line.empty()) read_cell(trimmed(take(line, ',')), row, ++cell);
  }

  void read_cell(std::string_view text, std::size_t row, std::size_t cell) {
    constexpr std::string_view kOverlap = ")OVERLAP_F_B";
    if (text.empty()) return;
    if (text.starts_with('(') && text.ends_with(kOverlap)) {
      text = text.substr(1, text.size() - 1 - kOverlap.size());
      while (!text.empty()) read_action(trimmed(take(text, ';')), row, cell);
      return;
    }
    read_action(text, row, cell);
  }

  void read_action(std::string_view text, std::size_t row, std::size_t cell) {
    const std::optional<Action> action = parse_action(text);
    if (!action) {
      fail(row, cell,
           fmt::format("\"{}\" is no action; expected a stage, F, B, I or W, and a micro-batch, such as 0F3",
                       text.substr(0, 40)));
    }
    constexpr std::int32_t kMost = 1 << 20;
    if (action->stage.value >= kMost || action->micro_batch.value >= kMost) {
      fail(row, cell, fmt::format("{}: stages and micro-batches are numbers below {}", text, kMost));
    }
    const auto [place, first] = home_.try_emplace(action->stage.value, row, cell);
    if (place->second.first != row) {
      fail(row, cell,
           fmt::format("{}, but row {} has stage {} already (cell {}); a stage is on one rank", text,
                       place->second.first, action->stage.value, place->second.second));
    }
    table_.schedule.micro_batches =
        std::max<std::int64_t>(table_.schedule.micro_batches, action->micro_batch.value + 1);
    table_.schedule.ranks.back().push_back(*action);
    table_.cells.back().push_back(static_cast<std::int32_t>(cell));
  }

  void finish() {
    if (home_.empty()) throw Error(ExitCode::Usage, "there is no action in it; expected a row a rank, such as 0F0,0B0");
    Schedule& schedule = table_.schedule;
    schedule.stages = home_.rbegin()->first + 1;
    for (std::int32_t s = 0; s < schedule.stages; ++s) {
      const auto home = home_.find(s);
      if (home == home_.end()) {
        throw Error(ExitCode::Usage,
                    fmt::format("stage {} is missing from all rows; the stages are 0 to {}", s, schedule.stages - 1));
      }
      schedule.rank_of_stage.push_back(static_cast<std::int32_t>(home->second.first) - 1);
    }
    for (std::size_t r = 0; r < schedule.ranks.size(); ++r) {
      if (schedule.ranks[r].empty()) {
        throw Error(ExitCode::Usage, fmt::format("row {} is empty; every rank holds a stage", r + 1));
      }
    }
  }

  CsvTable table_;
  std::map<std::int32_t, std::pair<std::size_t, std::size_t>> home_;  // stage → row and cell of its first action
};

}  // namespace

std::string to_csv(const Schedule& schedule) {
  std::string csv;
  for (const std::vector<Action>& row : schedule.ranks) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      if (i > 0) csv += ',';
      csv += to_string(row[i]);
    }
    csv += '\n';
  }
  return csv;
}

std::string to_step_csv(const Schedule& schedule) {
  Schedule compute = schedule;
  for (std::vector<Action>& row : compute.ranks) {
    std::erase_if(row, [](const Action& action) { return !is_compute(action.kind); });
  }
  const Steps steps(compute);
  std::string csv;
  for (std::size_t r = 0; r < compute.ranks.size(); ++r) {
    std::int64_t column = 0;
    for (std::size_t i = 0; i < compute.ranks[r].size(); ++i) {
      csv.append(static_cast<std::size_t>(steps[r].at(i) - column), ',');
      column = steps[r][i];
      csv += to_string(compute.ranks[r][i]);
    }
    csv += '\n';
  }
  return csv;
}

CsvTable parse_csv(std::string_view text) { return Reader().read(text); }

}  // namespace trainer::schedule
