// Splits CSV text into records.
#include <fmt/format.h>

#include <utility>

#include "csv.hpp"
#include "data_file.hpp"

namespace trainer::storage {

CsvReader::CsvReader(std::string_view text, char delimiter, std::string path)
    : text_(text), delimiter_(delimiter), path_(std::move(path)) {
  if (text_.starts_with("\xEF\xBB\xBF")) at_ = 3;
}

bool CsvReader::at_end_of_line() const {
  if (at_ == text_.size() || text_[at_] == '\n') return true;
  return text_[at_] == '\r' && (at_ + 1 == text_.size() || text_[at_ + 1] == '\n');
}

void CsvReader::skip_end_of_line() {
  if (at_ < text_.size() && text_[at_] == '\r') ++at_;
  if (at_ < text_.size()) ++at_;
  ++line_;
}

bool CsvReader::next(std::vector<CsvField>& record) {
  while (at_ < text_.size() && at_end_of_line()) skip_end_of_line();
  if (at_ == text_.size()) return false;
  record_line_ = line_;
  std::size_t count = 0;
  while (true) {
    if (count == record.size()) record.emplace_back();
    read_field(record[count++]);
    if (at_end_of_line()) break;
    ++at_;  // the delimiter
  }
  record.resize(count);
  skip_end_of_line();
  return true;
}

void CsvReader::read_field(CsvField& field) {
  field.line = line_;
  if (at_ < text_.size() && text_[at_] == '"') {
    read_quoted(field);
    return;
  }
  const std::size_t begin = at_;
  while (!at_end_of_line() && text_[at_] != delimiter_) ++at_;
  field.text.assign(text_.substr(begin, at_ - begin));
}

void CsvReader::read_quoted(CsvField& field) {
  field.text.clear();
  ++at_;
  while (true) {
    if (at_ == text_.size()) {
      throw data_error(path_, fmt::format("line {}: the quote that opens a field here is never closed", field.line));
    }
    const char c = text_[at_++];
    if (c == '\n') ++line_;
    if (c != '"') {
      field.text += c;
    } else if (at_ < text_.size() && text_[at_] == '"') {
      field.text += '"';
      ++at_;
    } else {
      break;
    }
  }
  if (!at_end_of_line() && text_[at_] != delimiter_) {
    throw data_error(
        path_, fmt::format("line {}: after the closing quote comes '{}', a delimiter '{}' or the end of the line was "
                           "expected (a quote inside of quotes is written twice)",
                           line_, text_[at_], delimiter_));
  }
}

}  // namespace trainer::storage
