// Words for numbers, and tables of them.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

#include "trainer/observe/reporters.hpp"

namespace trainer::observe {

namespace {

/// value / base^k with the k-th suffix, the largest that leaves at least 1 after rounding to one decimal.
std::string scaled(double value, double base, const std::array<std::string_view, 5>& suffixes) {
  if (!std::isfinite(value)) return "-";
  std::size_t k = 0;
  double magnitude = std::abs(value);
  while (k + 1 < suffixes.size() && std::round(magnitude * 10) / 10 >= base) {
    magnitude /= base;
    ++k;
  }
  const bool whole = k == 0 && magnitude == std::floor(magnitude);
  return fmt::format("{}{:.{}f}{}", value < 0 ? "-" : "", magnitude, whole ? 0 : 1, suffixes[k]);
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_unit(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '%' || c == '/'; }

/// Characters of "e5", "e-5" or "e+5" at the front; 0 when there is none.
std::size_t exponent_length(std::string_view text) {
  std::size_t i = 0;
  if (text.empty() || text[i++] != 'e') return 0;
  if (i < text.size() && (text[i] == '-' || text[i] == '+')) ++i;
  const std::size_t digits = i;
  while (i < text.size() && is_digit(text[i])) ++i;
  return i > digits ? i : 0;
}

/// Numbers, each followed by at most one unit, apart by spaces: "12", "-1.5e-3", "1.2 GiB", "41%", "3 min 10 s".
bool is_quantity(std::string_view cell) {
  if (cell.empty() || cell == "-" || cell == "inf" || cell == "-inf" || cell == "nan") return true;
  std::size_t i = 0;
  while (i < cell.size()) {
    if (cell[i] == '+' || cell[i] == '-') ++i;
    if (i == cell.size() || !is_digit(cell[i])) return false;
    while (i < cell.size() && (is_digit(cell[i]) || cell[i] == '.' || cell[i] == ',')) ++i;
    i += exponent_length(cell.substr(i));
    if (i + 1 < cell.size() && cell[i] == ' ' && is_unit(cell[i + 1])) ++i;
    while (i < cell.size() && is_unit(cell[i])) ++i;
    if (i < cell.size() && cell[i++] != ' ') return false;
  }
  return true;
}

/// Characters of UTF-8 text.
std::size_t width_of(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

struct Column {
  std::size_t width = 0;
  bool right = true;
};

std::string format_row(const std::vector<std::string>& cells, const std::vector<Column>& columns) {
  std::string line;
  for (std::size_t c = 0; c < columns.size(); ++c) {
    const std::string_view cell = c < cells.size() ? std::string_view(cells[c]) : std::string_view();
    const std::string padding(columns[c].width - width_of(cell), ' ');
    if (c > 0) line += "  ";
    if (columns[c].right) line += padding;
    line += cell;
    if (!columns[c].right) line += padding;
  }
  line.erase(line.find_last_not_of(' ') + 1);
  return line + "\n";
}

}  // namespace

std::string format_table(const std::vector<std::string>& header, const std::vector<std::vector<std::string>>& rows) {
  std::vector<Column> columns(header.size());
  for (const auto& row : rows) columns.resize(std::max(columns.size(), row.size()));
  for (std::size_t c = 0; c < header.size(); ++c) columns[c].width = width_of(header[c]);
  for (const auto& row : rows) {
    for (std::size_t c = 0; c < row.size(); ++c) {
      columns[c].width = std::max(columns[c].width, width_of(row[c]));
      columns[c].right = columns[c].right && is_quantity(row[c]);
    }
  }
  std::string table = format_row(header, columns);
  std::vector<std::string> rule;
  for (const Column& column : columns) rule.emplace_back(column.width, '-');
  table += format_row(rule, columns);
  for (const auto& row : rows) table += format_row(row, columns);
  return table;
}

std::string human_bytes(double bytes) { return scaled(bytes, 1024, {" B", " KiB", " MiB", " GiB", " TiB"}); }

std::string human_count(double count) { return scaled(count, 1000, {"", "k", "M", "B", "T"}); }

std::string human_duration(double seconds) {
  if (!std::isfinite(seconds)) return "-";
  if (seconds < 0) return "-" + human_duration(-seconds);
  if (seconds == 0) return "0 s";
  if (seconds < 0.09995) return fmt::format("{:.1f} ms", seconds * 1e3);
  if (seconds < 9.995) return fmt::format("{:.2f} s", seconds);
  if (seconds < 59.95) return fmt::format("{:.1f} s", seconds);
  const double rounded = std::round(seconds);
  if (rounded < 3600) return fmt::format("{:.0f} min {:02.0f} s", std::floor(rounded / 60), std::fmod(rounded, 60));
  const double minutes = std::round(seconds / 60);
  if (minutes < 24 * 60) return fmt::format("{:.0f} h {:02.0f} min", std::floor(minutes / 60), std::fmod(minutes, 60));
  const double hours = std::round(seconds / 3600);
  return fmt::format("{:.0f} d {:02.0f} h", std::floor(hours / 24), std::fmod(hours, 24));
}

}  // namespace trainer::observe
