#include "trainer/observe/summary.hpp"

#include <nlohmann/json.hpp>

namespace trainer::observe {

using Json = nlohmann::ordered_json;

std::string to_json(const RunSummary& summary) {
  Json json{{"first_step", summary.first_step}, {"last_step", summary.last_step}, {"loss", summary.loss}};
  if (summary.validation_loss) json["validation_loss"] = *summary.validation_loss;
  if (summary.accuracy) json["accuracy"] = *summary.accuracy;
  json["seconds"] = summary.seconds;
  json["exit_code"] = summary.exit_code;
  json["peak_memory"] = Json::array();
  for (const RunSummary::Memory& m : summary.memory) {
    json["peak_memory"].push_back({{"rank", m.rank},
                                   {"predicted", m.predicted},
                                   {"measured", m.measured},
                                   {"live_set", m.live_set},
                                   {"process", m.process}});
  }
  json["passes"] = Json::array();
  for (const RunSummary::Pass& p : summary.passes) {
    json["passes"].push_back({{"rank", p.rank},
                              {"stage", p.stage},
                              {"forward", p.forward},
                              {"backward_input", p.backward_input},
                              {"backward_weight", p.backward_weight},
                              {"whole", p.whole}});
  }
  if (summary.simulated_pass) json["simulated_pass"] = *summary.simulated_pass;
  return json.dump(2) + "\n";
}

std::string to_json(const EvaluationReport& report) {
  Json json{{"step", report.step}, {"validation_loss", report.loss}};
  if (report.accuracy) json["accuracy"] = *report.accuracy;
  json["validation_targets"] = report.targets;
  return json.dump();
}

std::string checkpoint_json(const std::string& path, std::int64_t step, const std::string& build,
                            const std::string& config, std::int64_t parameters) {
  const Json json{
      {"path", path}, {"step", step}, {"build", build}, {"parameters", parameters}, {"config", Json::parse(config)}};
  return json.dump(2);
}

}  // namespace trainer::observe
