// What a parameter server did in which order: DIRECTORY/exchange-<server>.log, from which `trainer replay` repeats the
// run serially. Lines of text:
//
//   trainer exchange log 1
//   run 5f0c7a3b91d2e4f6 server 0 of 2 replicas 4 consistency async after 0
//   1 pull replica 0 clock 1 version 0 samples 0 8
//   2 push replica 0 clock 1 version 1 samples 0 8
//   3 apply replica -1 clock 1 version 2 samples 0 16
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/config/config.hpp"
#include "trainer/storage/checkpoint.hpp"
#include "trainer/storage/file_system.hpp"

namespace trainer::runtime {

enum class ExchangeKind : std::uint8_t {
  Pull,   // the server's parameters, of `version`, went to the replica, for the batch that it computes next
  Push,   // the replica's gradient of that batch came; ssp and async: it was applied, and made `version`
  Apply,  // bsp: the pushes since the last one were added in the order of replicas and applied, which made `version`
};

/// One operation of one server. An operation is whole before the next one begins.
struct ExchangeRecord {
  std::int64_t sequence = 0;  // from 1, without gaps
  ExchangeKind kind = ExchangeKind::Pull;
  std::int64_t replica = 0;  // −1: Apply
  std::int64_t clock = 0;    // of the replica; Apply: the step
  std::int64_t version = 0;  // updates that the server's parameters hold: read by a pull, behind a push or an apply
  std::int64_t first = 0;    // the batch's samples: [first, first + count) of the training stream
  std::int64_t count = 0;
  bool operator==(const ExchangeRecord&) const = default;
};

struct ExchangeHeader {
  std::string run;  // 16 hexadecimal digits: of everything that the numbers depend on beside this log
  int server = 0;
  int servers = 1;
  std::int64_t replicas = 1;
  std::string consistency = "async";  // a word of parallel.consistency
  std::int64_t after = 0;             // the log begins behind the checkpoint of this step; 0: at the beginning
  bool operator==(const ExchangeHeader&) const = default;
};

struct ExchangeLog {
  ExchangeHeader header;
  std::vector<ExchangeRecord> records;
  bool torn = false;  // a last line without its end was left out
};

/// As parallel.consistency has it.
const char* consistency_word(config::Consistency consistency);

std::string exchange_log_path(const std::string& directory, int server);

/// The line of a record with its end; at most this many bytes. Allocates nothing.
inline constexpr std::size_t kExchangeLineBytes = 192;
std::size_t print(const ExchangeRecord& record, std::span<char, kExchangeLineBytes> line);
std::string print(const ExchangeHeader& header);  // both lines
std::string print(const ExchangeLog& log);

/// parse(print(log)) == log. Throws Error(Storage): `path`, line, what was found and what was expected.
ExchangeLog parse_exchange_log(std::string_view text, const std::string& path);
ExchangeLog read_exchange_log(const storage::FileSystem& files, const std::string& path);

/// Where a server stands at a checkpoint; in it a row of the tensor kPositionsTensor, I64 [servers, 4].
struct ExchangePosition {
  std::int64_t after = 0;     // of its log's header
  std::int64_t sequence = 0;  // its last operation
  std::int64_t version = 0;   // updates that its parameters hold
  std::int64_t updates =
      0;  // that its optimizer's state has seen: also of other forms of the run, which count otherwise
};
inline constexpr const char* kPositionsTensor = "optimizer.exchange_positions";
/// A server's row; points to it.
storage::Piece position_piece(const ExchangePosition& position, int server, int servers);
/// [server]; empty where servers did not write the checkpoint. Throws Error(Storage) for values that they never write.
std::vector<ExchangePosition> exchange_positions(const storage::CheckpointReader& checkpoint);

/// What the log of a run is known by: a hash of all keys that its numbers depend on. Of a resolved configuration.
std::string exchange_identity(const config::Config& config);

/// The log of a running server. What it could not write it says once and then writes no more: the run goes on, its log
/// ends there.
class ExchangeLogWriter {
 public:
  /// `keep`: operations of an older log to go on from, which begins behind the checkpoint `header.after`; both as the
  /// checkpoint of `step` that the run resumes from has them. 0: a new file. A file that is not the same run's, or
  /// lacks some of them, is begun anew behind `step`. Throws Error(Storage) when the file cannot be written.
  ExchangeLogWriter(storage::FileSystem& files, const std::string& directory, ExchangeHeader header, std::int64_t keep,
                    std::int64_t step);
  ~ExchangeLogWriter();
  ExchangeLogWriter(const ExchangeLogWriter&) = delete;
  ExchangeLogWriter& operator=(const ExchangeLogWriter&) = delete;

  /// Numbers the record and takes it into a buffer. Allocates nothing.
  void append(ExchangeRecord record);
  /// Everything so far is on the disk afterwards: before a checkpoint that counts on it.
  void sync();

  std::int64_t sequence() const { return sequence_; }  // of the last record; 0: none yet
  std::int64_t after() const { return after_; }        // of its header: checkpoints keep both numbers
  bool anew() const { return anew_; }                  // an older log could not be continued
  const std::string& failure() const { return failure_; }

 private:
  void flush();

  std::unique_ptr<storage::OutputFile> file_;
  std::vector<char> buffer_;
  std::size_t used_ = 0;
  std::int64_t sequence_ = 0;
  std::int64_t after_ = 0;
  bool anew_ = false;
  std::string failure_;
};

}  // namespace trainer::runtime
