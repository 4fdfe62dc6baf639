// Errors for the person who typed the command, and the exit codes that scripts rely on.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace trainer {

/// What the process returns to its caller; the same on every rank.
enum class ExitCode : int {
  Done = 0,
  Internal = 1,
  Usage = 2,        // command line or configuration
  Data = 3,         // a data set is missing, empty or malformed
  Storage = 4,      // a checkpoint or the disk under it
  Diverged = 5,     // a loss or gradient that is not finite
  Hang = 6,         // a wait that lasted longer than it may
  Interrupted = 75  // stopped on request after saving; can be resumed
};

/// The one exception type that crosses rooms. The message is a whole sentence for the user: where
/// (file, line, JSON path), what was found, what was expected, and what would work.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const noexcept { return code_; }

 private:
  ExitCode code_;
};

/// What std::bad_alloc means to the person who started the run; its exit code is Usage.
inline constexpr const char* kOutOfMemory =
    "out of memory: a smaller model, batch or micro-batch, or more ranks on more machines, would need less";

/// The word of `known` with the smallest edit distance to `word`, or "" when nothing is near
/// (farther than a third of the word's length, at least 1).
std::string nearest_word(std::string_view word, const std::vector<std::string>& known);

/// Throws Error(Internal): a promise between our own rooms was broken.
[[noreturn]] void internal_error(std::string_view what);

}  // namespace trainer
