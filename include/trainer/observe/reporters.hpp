// Listeners of the training loop: the progress line, metrics.jsonl, TensorBoard; and words for numbers.
#pragma once

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <memory>
#include <string>
#include <vector>

#include "trainer/core/observer.hpp"

namespace trainer::observe {

// A logged step is the first, the last, and every `every_steps`-th, counted from step 1 of the training, so that a
// resumed run logs what an uninterrupted one would have. every_steps of 0: only the first and the last.

/// One voice on stderr: a line rewritten in place on a terminal (about ten times a second), plain lines of logged steps
/// otherwise. Step, loss, rate (tokens/s or samples/s), share of the cores' measured peak, time left; rate and share
/// are means since the line before. Warnings begin with "warning: ".
std::unique_ptr<Observer> make_progress(bool terminal, std::int64_t every_steps);

struct ProgressSettings {
  bool terminal = false;
  std::int64_t every_steps = 1;
  int columns = 0;                // of the terminal; 0: asks the one on stderr
  std::function<double()> clock;  // seconds, ascending; empty: the steady clock
};

/// The same on any stream, which must outlive the observer.
std::unique_ptr<Observer> make_progress(std::ostream& out, ProgressSettings settings);

/// Appends one object a logged training step and evaluation to DIRECTORY/metrics.jsonl (keys in the README). Creates
/// the directory; a file that cannot be opened is Error(Storage). Opening keeps whole lines of steps up to
/// `resume_step` (0: none) and drops the rest. Each line is one write, so a kill leaves at most one partial line. Write
/// errors become one warning, told to `warnings` (which must outlive this; null: a line on stderr), and leave no
/// partial line behind. DIRECTORY/balance.jsonl gets a line {"step", "micro_batches", "seconds"?} for each ShareReport,
/// in the same way.
std::unique_ptr<Observer> make_metrics(const std::string& directory, std::int64_t every_steps, std::int64_t resume_step,
                                       Observer* warnings = nullptr);

/// Writes a new TensorBoard event file in DIRECTORY (created): loss, grad_norm, learning_rate, tokens_per_second
/// (sequence models) of logged steps, validation_loss and accuracy of evaluations. The first record makes TensorBoard
/// drop what earlier files hold from that step on. Errors as for make_metrics.
std::unique_ptr<Observer> make_tensorboard(const std::string& directory, std::int64_t every_steps,
                                           Observer* warnings = nullptr);

/// Hands every call to each, in order.
std::unique_ptr<Observer> make_fan_out(std::vector<std::unique_ptr<Observer>> observers);

/// A table with aligned columns: numbers right, text left. For the partition table, inspect, and the end of a run.
/// Columns whose cells are all quantities ("12", "1.2 GiB", "41%", "3 min 10 s", "-") are numbers. Lines end in '\n'.
std::string format_table(const std::vector<std::string>& header, const std::vector<std::vector<std::string>>& rows);

std::string human_bytes(double bytes);       // "1.2 GiB"
std::string human_count(double count);       // "14.2M"
std::string human_duration(double seconds);  // "1 h 02 min", "3 min 10 s", "0.42 s"

}  // namespace trainer::observe
