#include "served_status.hpp"

#include <chrono>

#include "trainer/core/error.hpp"
#include "trainer/runtime/exchange_log.hpp"

namespace trainer::runtime {

namespace {

constexpr double kLookSeconds = 0.05;
constexpr double kWriteSeconds = 1;
constexpr double kStoodStillSeconds = 1;  // this process was stopped, or the run saved or evaluated

std::string path_of(const config::Config& config) {
  const std::string& directory =
      config.logging.directory.empty() ? config.checkpoint.directory : config.logging.directory;
  return directory.empty() ? "" : directory + "/status.json";
}

}  // namespace

ServedStatus::ServedStatus(const RunPlan& plan, storage::FileSystem& files, ParameterServer& server,
                           const TaskBook* tasks, std::int64_t total_steps)
    : files_(files),
      server_(server),
      tasks_(tasks),
      path_(path_of(plan.config)),
      watch_(plan.mesh, static_cast<int>(plan.servers()), plan.config.parallel.server.timeout),
      timeout_(plan.config.parallel.server.timeout),
      parked_(static_cast<std::size_t>(plan.mesh.data)) {
  status_.total_steps = total_steps;
  status_.consistency = consistency_word(plan.config.parallel.server.consistency);
  for (std::int64_t s = 0; s < plan.servers(); ++s) {
    status_.servers.push_back({static_cast<int>(plan.mesh.size() + s), -1});
  }
}

void ServedStatus::look(std::int64_t step, double now) {
  if (began_ < 0) began_ = now;
  if (now - looked_ < kLookSeconds) return;
  if (now - looked_ > kStoodStillSeconds) {  // who has not looked has not heard either
    watch_.hear_all(now);
    awaited_since_ = now;
  }
  looked_ = now;
  for (std::size_t r = 0; r < parked_.size(); ++r) parked_[r] = server_.owes(r);
  const std::string silent = watch_.silent(parked_, now);
  if (!silent.empty()) throw Error(ExitCode::Hang, silent);
  look_at_update(now);
  if (now - written_ >= kWriteSeconds) write(step, now);
}

// Within an update of bsp all replicas wait, so that none of them is missed.
void ServedStatus::look_at_update(double now) {
  const ParameterServer::Awaited awaited = server_.awaits();
  const std::int64_t version = server_.clocks().version;
  if (!(awaited == awaited_) || version != awaited_for_) {
    awaited_ = awaited;
    awaited_for_ = version;
    awaited_since_ = now;
  }
  const double silence = now - awaited_since_;
  if ((awaited.replica < 0 && awaited.server < 0) || silence <= timeout_) return;
  throw Error(ExitCode::Hang, awaited.server >= 0 ? watch_.silent_server(awaited.server, version + 1, silence)
                                                  : watch_.silent_push(awaited.replica, version + 1, silence));
}

void ServedStatus::write(std::int64_t step, double now) {
  written_ = now;
  if (path_.empty()) return;
  status_.step = step;
  status_.seconds = now - began_;
  status_.epoch = tasks_ == nullptr ? 0 : tasks_->epoch();
  status_.servers.front().version = server_.clocks().version;
  status_.written = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  watch_.fill(status_, parked_, server_.clocks().version, tasks_, now);
  if (status_.state == "done" || status_.state == "interrupted") {
    for (observe::RunStatus::Replica& replica : status_.replicas) replica.doing = "-";
  }
  const std::string text = observe::to_json(status_);
  try {
    const std::string partial = path_ + ".partial";
    const auto file = files_.create(partial);  // not synced: after a crash of the machine nobody asks for it
    file->write(std::as_bytes(std::span(text)));
    file->close();
    files_.rename(partial, path_);
  } catch (const Error&) {
    // A full disk is told by what must be written.
  }
}

void ServedStatus::end(const std::string& state, ExitCode code, const std::string& message, std::int64_t step) {
  status_.state = state;
  status_.exit_code = static_cast<int>(code);
  status_.message = message;
  write(step, std::max(0.0, looked_));
}

}  // namespace trainer::runtime
