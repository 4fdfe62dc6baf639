// Tables from files.
#include "trainer/schedule/table_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "channels.hpp"
#include "trainer/core/error.hpp"

namespace trainer::schedule {
namespace {

/// "row 2, cell 5" of a file for what the verifier found; "" where it has no place.
std::string place(const CsvTable& read, const Schedule& verified, const Violation& violation) {
  if (violation.rank < 0) return "";
  const auto rank = static_cast<std::size_t>(violation.rank);
  if (violation.position < 0) return fmt::format("row {}: ", rank + 1);
  // The verified row has messages between the file's actions: the same action, the same time that it occurs.
  const std::vector<Action>& row = verified.ranks[rank];
  const auto end = row.begin() + violation.position + 1;
  const std::vector<Action>& written = read.schedule.ranks[rank];
  auto wanted = std::count(row.begin(), end, *(end - 1));
  for (std::size_t i = 0; i < written.size(); ++i) {
    if (written[i] == *(end - 1) && --wanted == 0) {
      return fmt::format("row {}, cell {}: ", rank + 1, read.cells[rank][i]);
    }
  }
  return fmt::format("row {}: ", rank + 1);
}

}  // namespace

CsvTable parse_csv_of(const std::string& name, const std::string& text) {
  try {
    return parse_csv(text);
  } catch (const Error& error) {
    throw Error(error.code(), fmt::format("{}: {}", name, error.what()));
  }
}

Schedule lowered(const Schedule& table) { return has_communication(table) ? table : add_communication(table); }

void require_valid(const Schedule& table, const CsvTable* read, const std::string& name) {
  const Schedule full = lowered(table);
  const std::optional<Violation> violation = verify(full);
  if (!violation) return;
  const bool deadlock = violation->message.starts_with("deadlock");  // has a place on every rank that it names
  std::string message = (read != nullptr && !deadlock ? place(*read, full, *violation) : "") + violation->message;
  if (deadlock) {
    message += "\n" + draw(full, std::vector<StageTimes>(static_cast<std::size_t>(full.stages)));
    message.pop_back();
  }
  throw Error(ExitCode::Usage, fmt::format("{}: {}", name, message));
}

}  // namespace trainer::schedule
