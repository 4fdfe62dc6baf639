// What people are told about a wrong configuration, against tests/golden/config_errors.txt.
// TRAINER_UPDATE_GOLDEN=1 writes the file anew.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cstdlib>
#include <fstream>
#include <iterator>

#include "config_samples.hpp"
#include "trainer/config/config.hpp"
#include "trainer/core/error.hpp"

using namespace trainer;
using namespace trainer::config;

namespace {

struct Case {
  const char* base;          // the text, or the sample that `find` is replaced in
  const char* find = "";     //
  const char* replace = "";  //
  std::vector<std::string> sets = {};
};

const std::vector<Case>& cases() {
  using namespace samples;
  static const std::vector<Case> all = {
      // names
      {kGpt, "\"steps\"", "\"stepz\""},
      {kGpt, "\"gradient_clip\"", "\"flux\""},
      {kGpt, "\"warmup_steps\"", "\"warmup\""},
      {kGpt, "\"optimizer\"", "\"optimiser\""},
      {kGpt, "\"gradient_clip\"", "\"learning_rate\""},
      {kGpt, "\"logging\": ", "\"batch_size\": 3, \"logging\": "},
      {kMlp, "\"activation\": \"tanh\"", "\"num_heads\": 4"},
      {kMlp, "\"nesterov\": true", "\"betas\": [0.9, 0.99]"},
      {kSequential, "\"type\": \"gelu\"", "\"type\": \"gelu\", \"output_size\": 3"},
      {kGpt, "\"gradient_clip\": 1.0", "\"a.b \\\" c\": 1"},
      // missing
      {kGpt, "\"vocab_size\": 256,", ""},
      {kMlp, "\"type\": \"mlp\", ", ""},
      {R"({"data": {"type": "synthetic"}, "training": {}})"},
      {R"([1, 2])"},
      {kSmallest, "\"steps\": 5, ", ""},
      {kSmallest, ", \"batch_size\": 4", ""},
      {kSequential, "\"output_size\": 3, ", ""},
      {kSequential, "\"input_size\": 12, ", ""},
      // types and ranges
      {kGpt, "\"batch_size\": 32", "\"batch_size\": \"32\""},
      {kGpt, "\"steps\": 200", "\"steps\": 1e3"},
      {kGpt, "\"steps\": 200", "\"steps\": 2.5"},
      {kGpt, "\"steps\": 200", "\"steps\": null"},
      {kGpt, "\"vocab_size\": 256", "\"vocab_size\": 99999999999"},
      {kGpt, "\"dropout\": 0.0", "\"dropout\": 1.0"},
      {kGpt, "[0.9, 0.95]", "[0.9, 1.5]"},
      {kGpt, "[0.9, 0.95]", "0.9"},
      {kGpt, "\"keep\": 2", "\"keep\": 0"},
      {kGpt, "true}", "\"yes\"}"},
      {kGpt, "\"type\": \"gpt\"", "\"type\": \"gtp\""},
      {kGpt, "\"path\": \"corpus.txt\"", "\"path\": \"\""},
      {kGpt, "{\"every_steps\": 10}", "10"},
      {kGpt, "{\"type\": \"cosine\", \"warmup_steps\": 20, \"final_ratio\": 0.1}", "\"cosine\""},
      {kMlp, "[32, 16]", "[32, 0]"},
      {kSequential, "{\"type\": \"gelu\"}", "\"gelu\""},
      {kSequential, "\"type\": \"gelu\"", "\"type\": \"geluu\""},
      {kCsv, "\";\"", "\"tab\""},
      {kGpt, "\"gradient_clip\": 1.0", "\"recompute\": true"},
      {kGpt, "\"gradient_clip\": 1.0", "\"recompute\": \"ful\""},
      {kGpt, "\"gradient_clip\": 1.0", "\"recompute\": []"},
      {kGpt, "\"gradient_clip\": 1.0", "\"recompute\": [\"h.0\", 3]"},
      {kGpt, "\"tensor\": 2", "\"memory_per_rank\": \"8 Gibs\""},
      {kGpt, "\"tensor\": 2", "\"memory_per_rank\": -1"},
      {kGpt, "\"tensor\": 2", "\"memory_per_rank\": 1.5"},
      {kSequential, "{\"type\": \"gelu\"}", "{\"type\": \"delay\", \"forward_ms\": -1}"},
      {kSequential, "{\"type\": \"gelu\"}", "{\"type\": \"delay\", \"backward_input\": 1}"},
      // later versions
      {kGpt, "float32", "float16"},
      {kGpt, "\"flops\"", "\"profile\""},
      {kGpt, "\"1f1b\"", "\"zb_v\""},
      // keys against each other
      {kGpt, "\"num_heads\": 6", "\"num_heads\": 7"},
      {kGpt, "\"sequence_length\": 128", "\"sequence_length\": 512"},
      {kGpt, "\"vocab_size\": 256", "\"vocab_size\": 200"},
      {kGpt, "\"batch_size\": 32", "\"batch_size\": 30"},
      {kGpt, "\"steps\": 200", "\"steps\": 200, \"epochs\": 2"},
      {kGpt, "cross_entropy", "mse"},
      {kGpt, "\"1f1b\"", "\"zb-h1\", \"split_backward\": false"},
      {kGpt, "\"1f1b\"", "\"zb-v\", \"chunks\": 4"},
      {kGpt, "\"1f1b\"", "\"1f1b\", \"chunks\": 2"},
      {kGpt, "\"1f1b\"", "\"1f1b\", \"micro_batch_group\": 4"},
      {kGpt, "\"1f1b\"", "\"1f1b\", \"schedule_file\": \"a.csv\""},
      {kGpt, "\"1f1b\"", "\"file\""},
      {kGpt, "\"1f1b\"", "\"interleaved\"", {"parallel.partition=[3,3,2]"}},
      {kGpt, "\"1f1b\"", "\"v-half\""},
      {kCsv, "\"epochs\": 3", "\"epochs\": 3, \"loss\": \"cross_entropy\""},
      {kMlp, "\"epochs\": 2.5", "\"epochs\": 3, \"loss\": \"mse\""},
      {kGpt, "{\"type\": \"text\", \"path\": \"corpus.txt\", \"tokenizer\": \"byte\"",
       "{\"type\": \"csv\", \"path\": \"t.csv\", \"target\": \"a\""},
      {kMlp, "\"type\": \"idx\", \"images\": \"images.gz\", \"labels\": \"labels.gz\"",
       "\"type\": \"text\", \"path\": \"a.txt\""},
      {kTokens, "\"output_size\": 300", "\"output_size\": 100"},
      {kTokens, "\"type\": \"sequential\"", "\"type\": \"sequential\", \"input_size\": 3"},
      {kMlp, "\"momentum\": 0.9, ", ""},
      {kMlp, "\"eval_every\": 10", "\"sequence_length\": 10"},
      {kGpt, "\"directory\": \"runs/gpt\", ", ""},
      {kGpt, "\"flops\"", "[3, 3, 2]"},
      // JSON
      {kGpt, "\"seed\": 1}", "\"seed\": 1,}"},
      {kGpt, "\"seed\": 1}", "\"seed\": 1"},
      {kGpt, "\"seed\": 1", "\"seed\": 1e999"},
      {kGpt, "\"seed\": 1", "\"seed\": 1, \"steps\": 3"},
      {kSequential, "\"probability\": 0.25", "\"probability\": 0.25, \"probability\": 0.5"},
      {kGpt, "200", "tru"},
      // flags
      {kGpt, "", "", {"training.stepz=5"}},
      {kGpt, "", "", {"trainig.steps=5"}},
      {kGpt, "", "", {"training.steps"}},
      {kGpt, "", "", {"training..steps=5"}},
      {kGpt, "", "", {"training.steps=ten"}},
      {kGpt, "", "", {"training.epochs=2"}},
      {kGpt, "", "", {"model.num_heads=5"}},
      {kGpt, "", "", {"training.steps.more=5"}},
      {kGpt, "", "", {"parallel.partition=[1,3"}},
      {kGpt, "", "", {"optimizer={\"type\":\"sgd\",\"type\":\"sgd\"}"}},
      {kSequential, "", "", {"model.layers[7].output_size=4"}},
      {kSequential, "", "", {"model.layers[0.output_size=4"}},
      {kSequential, "", "", {"model.layers[0].output_size=0"}},
      {kSequential, "", "", {"model[0]=4"}},
      // compression
      {kGpt, "\"tensor\": 2", "\"compression\": {\"type\": \"topk\"}"},
      {kGpt, "\"tensor\": 2", "\"compression\": {\"type\": \"top_k\", \"ration\": 0.1}"},
      {kGpt, "\"tensor\": 2", "\"compression\": {\"type\": \"top_k\", \"ratio\": 0}"},
      {kGpt, "\"tensor\": 2", "\"compression\": {\"ratio\": 0.1}"},
      {kGpt, "\"tensor\": 2", "\"compression\": \"int8\""},
      {kGpt, "\"tensor\": 2", "\"compression\": {\"type\": \"top_k\", \"layers\": \"h.0\"}"},
      {kGpt, "", "", {"parallel.compression={\"type\":\"int8\",\"ratio\":0.1}"}},
      {kGpt, "", "", {"parallel.compression={\"type\":\"top_k\",\"rank\":2}"}},
      {kMlp, "", "", {"parallel.compression={\"type\":\"sign\",\"error_feedback\":true}"}},
      {kGpt, "", "", {"parallel.compression={\"type\":\"int8\",\"error_feedback\":true}"}},
      {kGpt, "", "", {"parallel.compression={\"type\":\"none\",\"layers\":[\"h.0\"]}"}},
      {kGpt, "", "", {"parallel.compression={\"type\":\"sign\",\"layers\":[\"h.*.mlp\"]}"}},
      {kSmallest, "\"batch_size\": 4}", "\"batch_size\": 4}, \"parallel\": {\"compression\": {\"type\": \"sign\"}}"},
      // exchange
      {kGpt, "", "", {"parallel.exchange=servers"}},
      {kGpt, "", "", {"parallel.servers=2"}},
      {kGpt, "", "", {"parallel.exchange=server", "parallel.consistency=ssp", "parallel.staleness=-1"}},
      {kGpt, "", "", {"parallel.exchange=server", "parallel.staleness=2"}},
      {kGpt, "", "", {"parallel.exchange=server", "parallel.consistency=async", "parallel.backup=1"}},
      {kGpt, "", "", {"parallel.exchange=server", "parallel.tasks=true"}},
      {kGpt, "", "", {"parallel.exchange=server", "parallel.timeout=0"}},
      {kGpt, "", "", {"parallel.exchange=server", "parallel.compression={\"type\":\"int8\"}"}},
      {kGpt, "", "", {"parallel.exchange=server", "training.optimistic_step=true"}},
      {kGpt, "", "", {"parallel.exchange=local", "parallel.all_reduce.wire=bfloat16"}},
      {kGpt, "", "", {"parallel.exchange=local", "parallel.local.steps=0"}},
      {kGpt, "", "", {"parallel.local.outer_momentum=0.5"}},
      {kGpt, "", "", {"parallel.exchange=local", "parallel.balance=auto"}},
      {kGpt, "", "", {"parallel.delayed_gradients=true", "training.optimistic_step=true"}},
      {kGpt, "", "", {"parallel.all_reduce.algorithm=ring", "parallel.compression={\"type\":\"int8\"}"}},
      {kGpt, "", "", {"parallel.delayed_gradients=true", "parallel.compression={\"type\":\"int8\"}"}},
      {kGpt, "", "", {"parallel.all_reduce.algorithm=mpi", "parallel.all_reduce.wire=bfloat16"}},
      {kGpt, "", "", {"parallel.balance=auto", "parallel.schedule=file", "parallel.schedule_file=a.csv"}},
      {kGpt, "", "", {"parallel.injected_delay=[0,-1]"}},
  };
  return all;
}

std::string text_of(const Case& c) {
  std::string text = c.base;
  if (*c.find == '\0') return text;
  const std::size_t at = text.find(c.find);
  REQUIRE_MESSAGE(at != std::string::npos, c.find);
  return text.replace(at, std::string(c.find).size(), c.replace);
}

std::string message_of(const Case& c) {
  try {
    (void)parse(text_of(c), "a.json", c.sets);
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Usage);
    return error.what();
  }
  return fmt::format("accepted: {} -> {}", c.find, c.replace);
}

}  // namespace

TEST_CASE("errors are worded as agreed") {
  const std::string path = std::string(TRAINER_GOLDEN) + "/config_errors.txt";
  std::string found;
  for (const Case& c : cases()) found += message_of(c) + "\n";
  if (std::getenv("TRAINER_UPDATE_GOLDEN")) {
    std::ofstream(path, std::ios::binary) << found;
    return;
  }
  std::ifstream file(path, std::ios::binary);
  REQUIRE_MESSAGE(file.good(), path);
  const std::string expected{std::istreambuf_iterator<char>(file), {}};
  CHECK(found == expected);
  CHECK(found.find("accepted: ") == std::string::npos);
}
