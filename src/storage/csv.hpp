// The records of a CSV text (RFC 4180), one at a time.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace trainer::storage {

struct CsvField {
  std::string text;       // unquoted
  std::int64_t line = 0;  // from 1
};

/// Fields end at the delimiter, records at LF or CRLF; a field in double quotes may hold all of them, and a quote as
/// "". Blank lines are passed over. A byte order mark at the beginning too.
class CsvReader {
 public:
  /// `path` is for messages. The text must outlive the reader.
  CsvReader(std::string_view text, char delimiter, std::string path);

  /// Reads the next record; false at the end. Throws Error(Data) naming the line of a quote that does not fit.
  bool next(std::vector<CsvField>& record);
  /// Of the record that next() gave.
  std::int64_t line() const { return record_line_; }

 private:
  void read_field(CsvField& field);
  void read_quoted(CsvField& field);
  bool at_end_of_line() const;
  void skip_end_of_line();

  std::string_view text_;
  char delimiter_;
  std::string path_;
  std::size_t at_ = 0;
  std::int64_t line_ = 1;
  std::int64_t record_line_ = 0;
};

}  // namespace trainer::storage
