// Listeners of the training loop: the progress line, metrics.jsonl.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "trainer/core/observer.hpp"

namespace trainer::observe {

/// One voice on stderr: a line rewritten in place on a terminal, plain lines otherwise. Step, loss, rate (tokens/s or
/// samples/s), share of the cores' measured peak, time left.
std::unique_ptr<Observer> make_progress(bool terminal, std::int64_t every_steps);

/// Appends one object a logged training step and evaluation to DIRECTORY/metrics.jsonl (keys in the README). Opening truncates
/// what lies past `resume_step` (0: everything), an incomplete last line included. Write errors become one warning.
std::unique_ptr<Observer> make_metrics(const std::string& directory, std::int64_t every_steps, std::int64_t resume_step);

/// Hands every call to each.
std::unique_ptr<Observer> make_fan_out(std::vector<std::unique_ptr<Observer>> observers);

/// A table with aligned columns: numbers right, text left. For the partition table, inspect, and the end of a run.
std::string format_table(const std::vector<std::string>& header, const std::vector<std::vector<std::string>>& rows);

std::string human_bytes(double bytes);     // "1.2 GiB"
std::string human_count(double count);     // "14.2M"
std::string human_duration(double seconds);  // "1 h 02 min", "3 min 10 s", "0.42 s"

}  // namespace trainer::observe
