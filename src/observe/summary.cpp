#include "trainer/observe/summary.hpp"

#include <nlohmann/json.hpp>

namespace trainer::observe {

using Json = nlohmann::ordered_json;

std::string to_json(const RunSummary& summary) {
  Json json{{"first_step", summary.first_step}, {"last_step", summary.last_step}, {"loss", summary.loss}};
  if (summary.validation_loss) json["validation_loss"] = *summary.validation_loss;
  if (summary.accuracy) json["accuracy"] = *summary.accuracy;
  json["seconds"] = summary.seconds;
  if (summary.exchange_bytes > 0) json["exchange_bytes"] = summary.exchange_bytes;
  if (!summary.micro_batches.empty()) json["micro_batches"] = summary.micro_batches;
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
  json["time"] = Json::array();
  for (std::size_t r = 0; r < summary.splits.size(); ++r) {
    Json rank{{"rank", r}, {"step", summary.splits[r].step()}};
    for (const TimePart& part : kTimeParts) rank[std::string(part.name)] = summary.splits[r].*part.seconds;
    json["time"].push_back(std::move(rank));
  }
  json["predictions"] = Json::array();
  for (const RunSummary::Promise& p : summary.promises) {
    json["predictions"].push_back(
        {{"what", p.what}, {"source", p.source}, {"predicted", p.predicted}, {"measured", p.measured}});
  }
  return json.dump(2) + "\n";
}

std::string to_json(const RunFacts& facts) {
  Json json{{"build", facts.build},
            {"started", facts.started},
            {"total_steps", facts.total_steps},
            {"resumed_step", facts.resumed_step},
            {"data", facts.data},
            {"pipeline", facts.pipeline},
            {"tensor", facts.tensor},
            {"micro_batches", facts.micro_batches},
            {"threads", facts.threads},
            {"schedule", facts.schedule},
            {"stages", facts.stages}};
  json["memory"] = Json::array();
  for (std::size_t r = 0; r < facts.ranks.size(); ++r) {
    const RunFacts::Rank& rank = facts.ranks[r];
    json["memory"].push_back({{"rank", r},
                              {"place", rank.place},
                              {"weights", rank.weights},
                              {"gradients", rank.gradients},
                              {"optimizer", rank.optimizer},
                              {"activations", rank.activations},
                              {"communication", rank.communication},
                              {"data", rank.data},
                              {"process", rank.process}});
  }
  if (facts.step_seconds > 0) json["prediction"] = {{"step_seconds", facts.step_seconds}, {"bubble", facts.bubble}};
  json["config"] = Json::parse(facts.config);
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
