// Tables of numbers with one target column.
#include "csv.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <optional>
#include <utility>

#include "data_file.hpp"

namespace trainer::storage {

namespace {

std::string_view trimmed(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

/// All of the text as a decimal number.
std::optional<double> number_in(std::string_view text) {
  if (text.size() > 1 && text.front() == '+' && text[1] != '-') text.remove_prefix(1);
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (end != text.data() + text.size() || text.empty()) return std::nullopt;
  if (error == std::errc::result_out_of_range) {
    // from_chars leaves the value alone; only underflow to zero has a finite answer.
    const std::size_t exponent = text.find_first_of("eE");
    const bool tiny = exponent != std::string_view::npos && exponent + 1 < text.size() && text[exponent + 1] == '-';
    return tiny ? 0.0 : HUGE_VAL;
  }
  if (error != std::errc()) return std::nullopt;
  return value;
}

/// The columns, the target among them.
struct Header {
  std::vector<std::string> names;
  std::size_t target = 0;
};

std::string join(const std::vector<std::string>& names) {
  constexpr std::size_t kShown = 20;
  std::string text;
  for (std::size_t i = 0; i < std::min(names.size(), kShown); ++i) text += (i > 0 ? ", '" : "'") + names[i] + "'";
  if (names.size() > kShown) text += fmt::format(", ... ({} in all)", names.size());
  return text;
}

Header read_header(CsvReader& reader, const config::CsvData& data) {
  std::vector<CsvField> record;
  if (!reader.next(record)) throw data_error(data.path, "the file has only blank lines; a header row was expected");
  Header header;
  for (const CsvField& field : record) {
    const std::string name(trimmed(field.text));
    if (name.empty()) {
      throw data_error(
          data.path, fmt::format("line {}: column {} of the header has no name; name it, or remove it if it counts the "
                                 "rows (every column but the target is a feature)",
                                 reader.line(), header.names.size() + 1));
    }
    if (std::find(header.names.begin(), header.names.end(), name) != header.names.end()) {
      throw data_error(data.path, fmt::format("line {}: two columns are named '{}'", reader.line(), name));
    }
    header.names.push_back(name);
  }
  const auto found = std::find(header.names.begin(), header.names.end(), data.target);
  if (found == header.names.end()) {
    const std::string near = nearest_word(data.target, header.names);
    throw data_error(
        data.path,
        fmt::format("line {}: the target column '{}' is not in the header{}; the columns are {} "
                    "(delimiter '{}')",
                    reader.line(), data.target, near.empty() ? "" : fmt::format(", the nearest is '{}'", near),
                    join(header.names), data.delimiter));
  }
  header.target = static_cast<std::size_t>(found - header.names.begin());
  return header;
}

/// Class labels as they come, each distinct one numbered by its first appearance.
class Labels {
 public:
  std::int32_t add(const std::string& text, std::int64_t line) {
    const auto [at, fresh] = numbers_.try_emplace(text, static_cast<std::int32_t>(lines_.size()));
    if (fresh) lines_.push_back(line);
    return at->second;
  }

  /// The class of each number: the label itself when all labels are integers, else its place in sorted order.
  /// Throws Error(Data) when a class is not below `outputs`. `names` gets the labels that are not integers.
  std::vector<std::int32_t> classes(const std::string& path, const std::string& column, std::int64_t outputs,
                                    std::vector<std::string>& names) const;

 private:
  std::map<std::string, std::int32_t> numbers_;
  std::vector<std::int64_t> lines_;  // of the first appearance
};

std::vector<std::int32_t> Labels::classes(const std::string& path, const std::string& column, std::int64_t outputs,
                                          std::vector<std::string>& names) const {
  std::vector<std::int32_t> classes(lines_.size());
  std::int64_t odd_line = 0;
  std::string odd;
  for (const auto& [text, number] : numbers_) {
    const std::optional<double> value = number_in(text);
    const std::int64_t line = lines_[static_cast<std::size_t>(number)];
    if (!value || std::floor(*value) != *value || std::isinf(*value)) {
      if (odd_line == 0 || line < odd_line) {
        odd_line = line;
        odd = text;
      }
    }
  }
  if (odd_line == 0) {
    for (const auto& [text, number] : numbers_) {
      const double value = *number_in(text);
      if (value < 0 || value >= static_cast<double>(outputs)) {
        throw data_error(
            path, fmt::format("line {}, column '{}': the class {} does not fit the model's {} outputs; classes are "
                              "integers from 0 to {}",
                              lines_[static_cast<std::size_t>(number)], column, text, outputs, outputs - 1));
      }
      classes[static_cast<std::size_t>(number)] = static_cast<std::int32_t>(value);
    }
    return classes;
  }
  if (static_cast<std::int64_t>(numbers_.size()) > outputs) {
    throw data_error(
        path, fmt::format("column '{}' has {} different labels, but the model has {} outputs (line {}: '{}' is not an "
                          "integer, so every label counts as a name)",
                          column, numbers_.size(), outputs, odd_line, odd));
  }
  for (const auto& [text, number] : numbers_) {
    classes[static_cast<std::size_t>(number)] = static_cast<std::int32_t>(names.size());
    names.push_back(text);
  }
  return classes;
}

/// What was read.
struct Table {
  SampleKind kind;
  std::vector<float> features;       // [samples, kind.features]
  std::vector<std::int32_t> labels;  // [samples] for classification
  std::vector<float> values;         // [samples] for regression
  std::vector<std::string> names;    // of the classes, when they are no integers
};

class CsvDataset final : public Dataset {
 public:
  explicit CsvDataset(Table table) : table_(std::move(table)) {}

  const SampleKind& kind() const override { return table_.kind; }
  std::int64_t size() const override {
    return static_cast<std::int64_t>(std::max(table_.labels.size(), table_.values.size()));
  }

  void read(std::int64_t sample, const SampleTarget& to) const override {
    if (sample < 0 || sample >= size()) internal_error("a sample outside of the data set");
    if (to.features != nullptr) {
      std::copy_n(table_.features.data() + sample * table_.kind.features, table_.kind.features, to.features);
    }
    if (to.labels != nullptr && table_.kind.classes > 0) {
      to.labels[0] = table_.labels[static_cast<std::size_t>(sample)];
    } else if (to.values != nullptr && table_.kind.classes == 0) {
      to.values[0] = table_.values[static_cast<std::size_t>(sample)];
    }
  }

  std::size_t bytes() const override {
    return (table_.features.capacity() + table_.values.capacity()) * sizeof(float) +
           table_.labels.capacity() * sizeof(std::int32_t);
  }

  std::string decode(std::int32_t label) const override {
    if (label < 0 || label >= table_.kind.classes) return {};
    return table_.names.empty() ? std::to_string(label) : table_.names[static_cast<std::size_t>(label)];
  }

 private:
  Table table_;
};

/// Reads the rows below the header.
class Loader {
 public:
  Loader(CsvReader& reader, const Header& header, const config::CsvData& data)
      : reader_(reader), header_(header), data_(data) {}

  Table load(const ModelInput& model) {
    std::vector<CsvField> record;
    while (reader_.next(record)) add(record);
    if (table_.labels.empty() && table_.values.empty())
      throw data_error(data_.path, "there is a header but no row below it");
    table_.kind.features = static_cast<std::int64_t>(header_.names.size()) - 1;
    if (data_.task == config::TaskKind::Regression) {
      table_.kind.target_features = 1;
    } else {
      const auto classes = labels_.classes(data_.path, header_.names[header_.target], model.outputs, table_.names);
      for (std::int32_t& label : table_.labels) label = classes[static_cast<std::size_t>(label)];
      table_.kind.classes = *std::max_element(classes.begin(), classes.end()) + 1;
    }
    table_.features.shrink_to_fit();
    table_.values.shrink_to_fit();
    table_.labels.shrink_to_fit();
    return std::move(table_);
  }

 private:
  void add(const std::vector<CsvField>& record) {
    if (record.size() != header_.names.size()) {
      throw data_error(data_.path, fmt::format("line {}: {} fields, but the header has {} columns (delimiter '{}')",
                                               reader_.line(), record.size(), header_.names.size(), data_.delimiter));
    }
    for (std::size_t c = 0; c < record.size(); ++c) {
      if (c != header_.target) {
        table_.features.push_back(number(record[c], c));
      } else if (data_.task == config::TaskKind::Regression) {
        table_.values.push_back(number(record[c], c));
      } else {
        table_.labels.push_back(labels_.add(std::string(text(record[c], c)), record[c].line));
      }
    }
  }

  std::string_view text(const CsvField& field, std::size_t column) const {
    const std::string_view text = trimmed(field.text);
    if (text.empty()) throw data_error(data_.path, fmt::format("{}: the field is empty", place(field, column)));
    return text;
  }

  float number(const CsvField& field, std::size_t column) const {
    const std::string_view found = text(field, column);
    const std::optional<double> value = number_in(found);
    if (!value) {
      throw data_error(data_.path,
                       fmt::format("{}: '{}' is not a number; {}", place(field, column), found,
                                   column == header_.target ? "for names of classes use task 'classification'"
                                                            : "encode the column as numbers or remove it"));
    }
    if (!std::isfinite(static_cast<float>(*value))) {
      throw data_error(data_.path, fmt::format("{}: '{}' is not a finite 32-bit number", place(field, column), found));
    }
    return static_cast<float>(*value);
  }

  std::string place(const CsvField& field, std::size_t column) const {
    return fmt::format("line {}, column '{}'", field.line, header_.names[column]);
  }

  CsvReader& reader_;
  const Header& header_;
  const config::CsvData& data_;
  Table table_;
  Labels labels_;
};

void check_sizes(const Header& header, const config::CsvData& data, const ModelInput& model) {
  const std::int64_t features = static_cast<std::int64_t>(header.names.size()) - 1;
  if (features != model.features) {
    throw data_error(data.path,
                     fmt::format("there are {} columns beside the target '{}', but the model's input_size is {} "
                                 "(delimiter '{}')",
                                 features, data.target, model.features, data.delimiter));
  }
  if (data.task == config::TaskKind::Regression && model.outputs != 1) {
    throw data_error(data.path, fmt::format("the target '{}' is 1 number a row, but the model has {} outputs",
                                            data.target, model.outputs));
  }
}

}  // namespace

std::unique_ptr<Dataset> load_csv(const config::CsvData& data, const ModelInput& model) {
  check_feature_model(model, data.path, "CSV with this task", data.task == config::TaskKind::Classification);
  const std::vector<std::uint8_t> bytes = read_data_file(data.path);
  CsvReader reader({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, data.delimiter, data.path);
  const Header header = read_header(reader, data);
  check_sizes(header, data, model);
  return std::make_unique<CsvDataset>(Loader(reader, header, data).load(model));
}

}  // namespace trainer::storage
