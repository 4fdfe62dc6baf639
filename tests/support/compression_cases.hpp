// Configurations of small models with parallel.compression.
#pragma once

#include <string>
#include <vector>

#include "equivalence.hpp"

namespace trainer::test {

inline const std::vector<std::string> kCompressions = {"top_k", "random_k", "sign", "power_sgd", "int8"};

inline std::string keys_of(const std::string& type, const std::string& more = "") {
  return "parallel.compression.type=" + type + ";parallel.compression.min_elements=100" +
         (type == "top_k" || type == "random_k" ? ";parallel.compression.ratio=0.1" : "") +
         (type == "power_sgd" ? ";parallel.compression.rank=2" : "") +
         (type == "sign" ? R"(;optimizer={"type":"sgd","learning_rate":0.01,"momentum":0.9})" : "") + more;
}

inline Case case_of(const std::string& model, std::int64_t data, std::int64_t pipeline, std::int64_t tensor,
                    const std::string& extra) {
  Case c;
  c.model = model;
  c.data = data;
  c.pipeline = pipeline;
  c.tensor = tensor;
  c.micro_batches = 2;
  c.extra = extra;
  return c;
}

inline runtime::RunPlan plan_of(const Case& c) {
  return runtime::make_plan(config::parse(model_json(c.model), "test", overrides(c, "")), c.ranks());
}

}  // namespace trainer::test
