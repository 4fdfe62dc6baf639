// What the program says: results on stdout, messages on stderr.
#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "app.hpp"

namespace trainer::app {

void print(const std::string& text) {
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
  if (written && std::fflush(stdout) == 0) return;
  throw OutputError(ExitCode::Storage,
                    fmt::format("stdout: cannot be written ({}); no file depends on it", std::strerror(errno)));
}

void note(const std::string& text) { std::fputs(text.c_str(), stderr); }

void say(const std::string& message) { note("trainer: " + message + "\n"); }

}  // namespace trainer::app
