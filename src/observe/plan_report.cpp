#include "trainer/observe/plan_report.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "trainer/observe/reporters.hpp"

namespace trainer::observe {

namespace {

std::string share(double part, double whole) { return whole > 0 ? fmt::format("{:.1f}%", 100 * part / whole) : "-"; }

std::string order_of(const PlanRow& row) {
  if (row.pipeline == 1) return "-";
  return row.schedule + (row.chunks > 1 ? fmt::format(" × {}", row.chunks) : "") +
         (row.split_backward ? "" : ", joint");
}

std::size_t shown(const PlanReport& report) {
  const auto all = report.rows.size();
  return report.wanted > 0 ? std::min(all, static_cast<std::size_t>(report.wanted)) : all;
}

}  // namespace

std::string to_text(const PlanReport& report) {
  std::string text = fmt::format("{}\n", report.basis);
  std::vector<std::vector<std::string>> rows;
  for (std::size_t i = 0; i < shown(report); ++i) {
    const PlanRow& row = report.rows[i];
    rows.push_back(
        {fmt::to_string(i + 1), fmt::format("{:.1f}", 1e3 * row.step_seconds), fmt::to_string(row.data),
         fmt::to_string(row.pipeline), fmt::to_string(row.tensor),
         fmt::format("{} × {}", row.micro_batches, row.samples), order_of(row), row.pipeline == 1 ? "-" : row.partition,
         row.recompute, row.pipeline == 1 ? "-" : fmt::format("{:.1f}%", 100 * row.bubble),
         share(row.communication, row.step_seconds), share(row.optimizer, row.step_seconds), human_bytes(row.memory)});
  }
  if (!rows.empty()) {
    text += format_table({"", "step, ms", "data", "pipeline", "tensor", "micro-batches", "schedule", "cut", "recompute",
                          "bubble", "communication", "optimizer", "peak memory"},
                         rows);
  }
  const auto hidden = static_cast<std::int64_t>(report.rows.size() - shown(report));
  if (hidden + report.bounded > 0) {
    text += fmt::format("{} slower layouts are not shown{}\n", hidden + report.bounded,
                        report.bounded > 0
                            ? fmt::format(", {} of them by a lower bound of their step alone", report.bounded)
                            : "; --top 0 shows them");
  }
  if (!report.rows.empty() && !report.rows.front().stages.empty()) {
    text += fmt::format("stages of the first: {}\n", report.rows.front().stages);
  }
  for (const PlanReport::Rejected& rejected : report.rejected) {
    text += fmt::format("not possible: {} (for example {}): {}\n", rejected.count, rejected.example, rejected.reason);
  }
  if (!report.best.empty()) {
    text += fmt::format("the first one's configuration: {} (mpiexec -n {} trainer --config {})\n", report.best,
                        report.ranks, report.best);
  }
  return text;
}

std::string to_json(const PlanReport& report) {
  using Json = nlohmann::ordered_json;
  Json json{{"basis", report.basis}, {"ranks", report.ranks}, {"layouts", Json::array()}};
  for (std::size_t i = 0; i < shown(report); ++i) {
    const PlanRow& row = report.rows[i];
    json["layouts"].push_back({{"data", row.data},
                               {"pipeline", row.pipeline},
                               {"tensor", row.tensor},
                               {"micro_batches", row.micro_batches},
                               {"micro_batch_size", row.samples},
                               {"schedule", row.schedule},
                               {"split_backward", row.split_backward},
                               {"chunks", row.chunks},
                               {"partition", row.partition},
                               {"stages", row.stages},
                               {"recompute", row.recompute},
                               {"step_seconds", row.step_seconds},
                               {"bubble", row.bubble},
                               {"communication_seconds", row.communication},
                               {"optimizer_seconds", row.optimizer},
                               {"peak_memory", row.memory}});
  }
  json["not_simulated"] = report.bounded;
  json["rejected"] = Json::array();
  for (const PlanReport::Rejected& rejected : report.rejected) {
    json["rejected"].push_back(
        {{"reason", rejected.reason}, {"layouts", rejected.count}, {"example", rejected.example}});
  }
  return json.dump(2) + "\n";
}

}  // namespace trainer::observe
