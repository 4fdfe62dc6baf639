#include "trainer/runtime/exchange_log.hpp"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cstring>
#include <optional>

#include "trainer/core/error.hpp"

namespace trainer::runtime {

namespace {

constexpr std::string_view kTitle = "trainer exchange log 1";
constexpr std::uint64_t kMostBytes = std::uint64_t{4} << 30;
constexpr std::size_t kBufferBytes = std::size_t{1} << 16;
constexpr std::array<std::string_view, 3> kKinds{"pull", "push", "apply"};
constexpr std::array<std::string_view, 3> kConsistencies{"bsp", "ssp", "async"};

constexpr const char* kRecordForm = "SEQUENCE pull|push|apply replica N clock N version N samples FIRST COUNT";
constexpr const char* kHeaderForm = "run DIGITS server N of N replicas N consistency bsp|ssp|async after N";

// A line for a message: its beginning, without what a terminal would obey.
std::string quoted(std::string_view line) {
  std::string text(line.substr(0, 120));
  for (char& c : text) {
    if (c < ' ' || c > '~') c = '?';
  }
  return text;
}

// Words of a line that are one space apart.
class Words {
 public:
  Words(std::string_view line, const std::string& path, std::size_t number, const char* form)
      : line_(line), rest_(line), path_(path), number_(number), form_(form) {}

  std::string_view next() {
    if (over_) complain();
    const std::size_t end = rest_.find(' ');
    const std::string_view word = rest_.substr(0, end);
    over_ = end == std::string_view::npos;
    rest_ = over_ ? std::string_view{} : rest_.substr(end + 1);
    return word;
  }
  void expect(std::string_view word) {
    if (next() != word) complain();
  }
  std::int64_t number(std::int64_t least) {
    const std::string_view word = next();
    std::int64_t value = 0;
    const auto [end, problem] = std::from_chars(word.data(), word.data() + word.size(), value);
    const bool plain = word == "0" || word == "-1" || (!word.empty() && word[0] >= '1' && word[0] <= '9');
    if (problem != std::errc{} || end != word.data() + word.size() || value < least || !plain) complain();
    return value;
  }
  template <std::size_t N>
  std::size_t one_of(const std::array<std::string_view, N>& words) {
    const std::string_view word = next();
    for (std::size_t i = 0; i < N; ++i) {
      if (words[i] == word) return i;
    }
    complain();
  }
  void end() const {
    if (!over_) complain();
  }
  [[noreturn]] void complain() const {
    throw Error(ExitCode::Storage, fmt::format("{}:{}: is \"{}\"; expected {}", path_, number_, quoted(line_), form_));
  }

 private:
  std::string_view line_, rest_;
  const std::string& path_;
  std::size_t number_;
  const char* form_;
  bool over_ = false;
};

ExchangeHeader parse_header(std::string_view line, const std::string& path) {
  Words words(line, path, 2, kHeaderForm);
  ExchangeHeader header;
  words.expect("run");
  header.run = words.next();
  if (header.run.size() != 16 || header.run.find_first_not_of("0123456789abcdef") != std::string::npos) {
    words.complain();
  }
  constexpr std::int64_t kMostServers = 1 << 20;
  words.expect("server");
  const std::int64_t server = words.number(0);
  words.expect("of");
  const std::int64_t servers = words.number(1);
  if (server >= servers || servers > kMostServers) words.complain();
  header.server = static_cast<int>(server);
  header.servers = static_cast<int>(servers);
  words.expect("replicas");
  header.replicas = words.number(1);
  words.expect("consistency");
  header.consistency = kConsistencies[words.one_of(kConsistencies)];
  words.expect("after");
  header.after = words.number(0);
  words.end();
  return header;
}

ExchangeRecord parse_record(std::string_view line, const std::string& path, std::size_t number,
                            const ExchangeHeader& header) {
  Words words(line, path, number, kRecordForm);
  ExchangeRecord record;
  record.sequence = words.number(1);
  record.kind = static_cast<ExchangeKind>(words.one_of(kKinds));
  words.expect("replica");
  record.replica = words.number(-1);
  words.expect("clock");
  record.clock = words.number(0);
  words.expect("version");
  record.version = words.number(0);
  words.expect("samples");
  record.first = words.number(0);
  record.count = words.number(0);
  words.end();
  if ((record.replica < 0) != (record.kind == ExchangeKind::Apply)) words.complain();
  if (record.replica >= header.replicas) {
    throw Error(ExitCode::Storage, fmt::format("{}:{}: names replica {}, but the run has {}", path, number,
                                               record.replica, header.replicas));
  }
  return record;
}

}  // namespace

const char* consistency_word(config::Consistency consistency) {
  switch (consistency) {
    case config::Consistency::Bsp:
      return "bsp";
    case config::Consistency::Ssp:
      return "ssp";
    case config::Consistency::Async:
      return "async";
  }
  return "";
}

std::string exchange_log_path(const std::string& directory, int server) {
  return fmt::format("{}/exchange-{}.log", directory, server);
}

std::size_t print(const ExchangeRecord& r, std::span<char, kExchangeLineBytes> line) {
  const auto written =
      fmt::format_to_n(line.data(), line.size(), "{} {} replica {} clock {} version {} samples {} {}\n", r.sequence,
                       kKinds[static_cast<std::size_t>(r.kind)], r.replica, r.clock, r.version, r.first, r.count);
  return written.size;
}

std::string print(const ExchangeHeader& h) {
  return fmt::format("{}\nrun {} server {} of {} replicas {} consistency {} after {}\n", kTitle, h.run, h.server,
                     h.servers, h.replicas, h.consistency, h.after);
}

std::string print(const ExchangeLog& log) {
  std::string text = print(log.header);
  std::array<char, kExchangeLineBytes> line;
  for (const ExchangeRecord& record : log.records) text.append(line.data(), print(record, line));
  return text;
}

ExchangeLog parse_exchange_log(std::string_view text, const std::string& path) {
  ExchangeLog log;
  std::size_t number = 0;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    if (end == std::string_view::npos) {
      log.torn = true;
      break;
    }
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end + 1);
    if (++number == 1) {
      if (line == kTitle) continue;
      throw Error(ExitCode::Storage,
                  fmt::format("{}:1: is \"{}\"; expected \"{}\": this is no log of a parameter server, or another "
                              "version of trainer wrote it",
                              path, quoted(line), kTitle));
    }
    if (number == 2) {
      log.header = parse_header(line, path);
      continue;
    }
    const ExchangeRecord record = parse_record(line, path, number, log.header);
    const auto expected = static_cast<std::int64_t>(log.records.size()) + 1;
    if (record.sequence != expected) {
      throw Error(ExitCode::Storage, fmt::format("{}:{}: has sequence number {}; expected {}: lines are missing or "
                                                 "written twice",
                                                 path, number, record.sequence, expected));
    }
    log.records.push_back(record);
  }
  if (number < 2) {
    throw Error(ExitCode::Storage,
                fmt::format("{}: ends before its header does; expected \"{}\" and \"{}\"", path, kTitle, kHeaderForm));
  }
  return log;
}

ExchangeLog read_exchange_log(const storage::FileSystem& files, const std::string& path) {
  return parse_exchange_log(files.read_text(path, kMostBytes), path);
}

namespace {

constexpr std::int64_t kPositionNumbers = sizeof(ExchangePosition) / sizeof(std::int64_t);
static_assert(kPositionNumbers == 4);

}  // namespace

storage::Piece position_piece(const ExchangePosition& position, int server, int servers) {
  return {kPositionsTensor, DType::I64, {servers, kPositionNumbers}, {{server, 0}, {1, kPositionNumbers}}, &position};
}

std::vector<ExchangePosition> exchange_positions(const storage::CheckpointReader& checkpoint) {
  std::vector<ExchangePosition> positions;
  for (const storage::TensorEntry& tensor : checkpoint.tensors()) {
    if (tensor.name != kPositionsTensor) continue;
    if (tensor.type != DType::I64 || tensor.shape.dims() != 2 || tensor.shape[1] != kPositionNumbers) {
      throw Error(ExitCode::Storage,
                  fmt::format("{}: {} is {} {}; expected I64 [servers, {}]", checkpoint.path(), kPositionsTensor,
                              name_of(tensor.type), to_string(tensor.shape), kPositionNumbers));
    }
    positions.resize(static_cast<std::size_t>(tensor.shape[0]));
    checkpoint.read(kPositionsTensor, whole(tensor.shape), positions.data());
  }
  for (const ExchangePosition& p : positions) {
    if (p.after >= 0 && p.sequence >= 0 && p.version >= 0 && p.updates >= 0) continue;
    throw Error(ExitCode::Storage,
                fmt::format("{}: {} holds {} {} {} {}, which is no position of a log", checkpoint.path(),
                            kPositionsTensor, p.after, p.sequence, p.version, p.updates));
  }
  return positions;
}

std::string exchange_identity(const config::Config& config) {
  config::Config matters;
  matters.model = config.model;
  matters.data = config.data;
  matters.optimizer = config.optimizer;
  matters.training = config.training;
  const config::Training usual;
  matters.training.eval_every = usual.eval_every;
  matters.training.time_limit = usual.time_limit;
  matters.training.hang_timeout = usual.hang_timeout;
  matters.training.recompute = usual.recompute;
  matters.training.recompute_layers = usual.recompute_layers;
  matters.parallel.data = config.parallel.data;
  matters.parallel.tensor = config.parallel.tensor;
  matters.parallel.exchange = config.parallel.exchange;
  matters.parallel.server.count = config.parallel.server.count;
  matters.parallel.server.consistency = config.parallel.server.consistency;
  matters.parallel.server.backup = config.parallel.server.backup;
  std::uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  for (const char c : config::to_json(matters)) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return fmt::format("{:016x}", hash);
}

namespace {

// The older log that a resumed run goes on from; nothing where it cannot.
std::optional<ExchangeLog> older_log(const storage::FileSystem& files, const std::string& path,
                                     const ExchangeHeader& header, std::int64_t keep) {
  if (keep <= 0 || !files.exists(path)) return std::nullopt;
  try {
    ExchangeLog log = read_exchange_log(files, path);
    if (!(log.header == header) || static_cast<std::int64_t>(log.records.size()) < keep) return std::nullopt;
    log.records.resize(static_cast<std::size_t>(keep));
    log.torn = false;
    return log;
  } catch (const Error&) {
    return std::nullopt;  // a damaged log is no reason to lose the run
  }
}

}  // namespace

ExchangeLogWriter::ExchangeLogWriter(storage::FileSystem& files, const std::string& directory, ExchangeHeader header,
                                     std::int64_t keep, std::int64_t step)
    : buffer_(kBufferBytes), after_(header.after) {
  const std::string path = exchange_log_path(directory, header.server);
  if (const std::optional<ExchangeLog> log = older_log(files, path, header, keep)) {
    files.truncate(path, print(*log).size());
    file_ = files.append(path);
    sequence_ = keep;
    return;
  }
  anew_ = step > 0;
  after_ = header.after = step;
  const std::string text = print(header);
  file_ = files.create(path);
  file_->write(std::as_bytes(std::span(text)));
}

ExchangeLogWriter::~ExchangeLogWriter() { flush(); }

void ExchangeLogWriter::append(ExchangeRecord record) {
  record.sequence = ++sequence_;
  if (used_ + kExchangeLineBytes > buffer_.size()) flush();
  used_ += print(record, std::span<char, kExchangeLineBytes>(buffer_.data() + used_, kExchangeLineBytes));
}

void ExchangeLogWriter::flush() {
  if (file_ != nullptr && used_ > 0) {
    try {
      file_->write(std::as_bytes(std::span(buffer_.data(), used_)));
    } catch (const Error& error) {
      failure_ = error.what();
      file_.reset();
    }
  }
  used_ = 0;
}

void ExchangeLogWriter::sync() {
  flush();
  if (file_ == nullptr) return;
  try {
    file_->sync();
  } catch (const Error& error) {
    failure_ = error.what();
    file_.reset();
  }
}

}  // namespace trainer::runtime
