// Tables from files, checked so that a mistake names its row and cell.
#pragma once

#include <string>

#include "trainer/schedule/schedule.hpp"

namespace trainer::schedule {

/// parse_csv whose errors begin with the name of the file.
CsvTable parse_csv_of(const std::string& name, const std::string& text);

/// With communication: its own where it has any, else that of add_communication.
Schedule lowered(const Schedule& table);

/// Throws Error(Usage), "name: row 2, cell 5: …", for what verify() has against the lowered table; a deadlock is drawn.
/// `read`: the text's places; null when the table is from no text.
void require_valid(const Schedule& table, const CsvTable* read, const std::string& name);

}  // namespace trainer::schedule
