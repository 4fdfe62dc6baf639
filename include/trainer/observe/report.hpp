// A run as one HTML page: curves, a step as a picture, promises and measurements, where time and memory went.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace trainer::observe {

/// The texts of a run's files; those that are missing have no value.
struct RunFiles {
  std::string name;                    // for the title
  std::optional<std::string> metrics;  // metrics.jsonl
  std::optional<std::string> run;      // run.json
  std::optional<std::string> summary;  // summary.json
  std::optional<std::string> actions;  // actions.json
};

struct ReportPage {
  std::string html;  // complete; asks for nothing from anywhere, runs no script
  std::vector<std::string>
      notices;  // what was broken or missing in the files, a sentence each; the page shows them too
};

/// Never throws for what the files hold: what cannot be read is left out and noticed.
ReportPage report_page(const RunFiles& files);

}  // namespace trainer::observe
