// Files and flags to a Config: values, defaults, precedence, what follows from what, and the way back to JSON.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>

#include "config_samples.hpp"
#include "trainer/config/config.hpp"
#include "trainer/core/error.hpp"
#include "trainer/core/random.hpp"

using namespace trainer;
using namespace trainer::config;

namespace {

template <class... T>
std::string refusal(T&&... arguments) {
  try {
    (void)parse(std::forward<T>(arguments)...);
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Usage);
    return error.what();
  }
  return "";
}

std::string with(const std::string& set) { return refusal(samples::kGpt, "gpt.json", std::vector<std::string>{set}); }

}  // namespace

TEST_CASE("the example of the documentation is read key by key") {
  const Config c = parse(samples::kGpt, "gpt.json");
  GptModel model;
  model.vocab_size = 256;
  model.context_length = 256;
  model.hidden_size = 384;
  model.num_layers = 6;
  model.num_heads = 6;
  CHECK(std::get<GptModel>(c.model) == model);
  CHECK(std::get<TextData>(c.data.source) == TextData{"corpus.txt", Tokenizer::Byte});
  CHECK(c.data.validation_fraction == 0.05);
  CHECK(c.training.steps == 200);
  CHECK(c.training.batch_size == 32);
  CHECK(c.training.micro_batches == 8);
  CHECK(c.training.sequence_length == 128);
  CHECK(c.training.loss == Loss::CrossEntropy);
  CHECK(c.training.gradient_clip == 1.0);
  CHECK(c.optimizer.type == OptimizerType::AdamW);
  CHECK(c.optimizer.learning_rate == 3e-4);
  CHECK(c.optimizer.beta1 == 0.9);
  CHECK(c.optimizer.beta2 == 0.95);
  CHECK(c.optimizer.weight_decay == 0.1);
  CHECK(c.optimizer.curve == RateCurve::Cosine);
  CHECK(c.optimizer.warmup_steps == 20);
  CHECK(c.optimizer.final_ratio == 0.1);
  CHECK(c.parallel.data == 1);
  CHECK(c.parallel.pipeline == 2);
  CHECK(c.parallel.tensor == 2);
  CHECK(c.parallel.schedule == ScheduleName::OneFOneB);
  CHECK(c.parallel.partition == PartitionRule::Flops);
  CHECK(c.checkpoint.directory == "runs/gpt");
  CHECK(c.checkpoint.every_steps == 50);
  CHECK(c.logging.every_steps == 10);
}

TEST_CASE("what a file leaves out is the default") {
  const Config c = parse(samples::kSmallest, "small.json");
  CHECK(c.optimizer == Optimizer{});
  CHECK(c.parallel == Parallel{});
  CHECK(c.checkpoint == Checkpoint{});
  CHECK(c.logging == Logging{});
  Training expected;
  expected.steps = 5;
  expected.batch_size = 4;
  CHECK(c.training == expected);
}

TEST_CASE("flags win over the file, and the last flag over the first") {
  const Config c = parse(samples::kGpt, "gpt.json",
                         {"training.steps=7", "training.steps=9", "optimizer.betas=[0.5,0.75]",
                          "optimizer.betas[1]=0.8", "checkpoint.directory=runs/other", "data.path=123",
                          "logging.directory=", "parallel.partition=[3,5]", "model.tie_embeddings=false"});
  CHECK(c.training.steps == 9);
  CHECK(c.optimizer.beta1 == 0.5);
  CHECK(c.optimizer.beta2 == 0.8);
  CHECK(c.checkpoint.directory == "runs/other");
  CHECK(std::get<TextData>(c.data.source).path == "123");
  CHECK(c.logging.directory == "");
  CHECK(c.parallel.partition == PartitionRule::Written);
  CHECK(c.parallel.partition_units == std::vector<std::int64_t>{3, 5});
  CHECK(!std::get<GptModel>(c.model).tie_embeddings);
}

TEST_CASE("a flag reaches inside layers and makes objects that the file does not have") {
  const Config c = parse(samples::kSequential, "s.json",
                         {"model.layers[2].layers[0].output_size=16", "optimizer.schedule.type=linear",
                          R"(model.layers[1]={"type":"tanh"})"});
  const auto& layers = std::get<SequentialModel>(c.model).layers;
  CHECK(layers[2].layers[0].output_size == 16);
  CHECK(layers[1].type == LayerConfig::Type::Tanh);
  CHECK(c.optimizer.curve == RateCurve::Linear);
}

TEST_CASE("null takes a key away") {
  const Config c = parse(samples::kGpt, "gpt.json", {"training.gradient_clip=null", "training.nonsense.deeper=null"});
  CHECK(c.training.gradient_clip == 0.0);
  CHECK(with("model.vocab_size=null").find("model.vocab_size is missing") != std::string::npos);
}

TEST_CASE("layers carry their path, and sizes that follow stay 0") {
  const Config c = parse(samples::kSequential, "s.json");
  const auto& model = std::get<SequentialModel>(c.model);
  CHECK(model.input_size == 12);
  REQUIRE(model.layers.size() == 4);
  CHECK(model.layers[0].path == "model.layers[0]");
  CHECK(model.layers[2].type == LayerConfig::Type::Residual);
  CHECK(model.layers[2].layers[1].path == "model.layers[2].layers[1]");
  CHECK(model.layers[3].input_size == 0);
  CHECK(!model.layers[3].bias);
}

TEST_CASE("a first linear layer says how wide the input is") {
  const std::string text = R"({"model": {"type": "sequential", "layers": [{"type": "linear", "input_size": 5,
      "output_size": 2}]}, "data": {"type": "synthetic"}, "training": {"steps": 1, "batch_size": 1}})";
  CHECK(std::get<SequentialModel>(parse(text, "s.json").model).input_size == 5);
  CHECK(refusal(text, "s.json", std::vector<std::string>{"model.input_size=6"}) != "");
}

TEST_CASE("the sequence length is the model's when left out") {
  CHECK(parse(samples::kGpt, "g", {"training.sequence_length=0"}).training.sequence_length == 256);
  CHECK(parse(samples::kTokens, "t").training.sequence_length == 32);
  CHECK(parse(samples::kTokens, "t", {"training.sequence_length=8"}).training.sequence_length == 8);
  CHECK(refusal(samples::kTokens, "t", std::vector<std::string>{"training.sequence_length=33"}) != "");
}

TEST_CASE("regression implies the mean squared error") {
  const Config c = parse(samples::kCsv, "c.json");
  CHECK(c.training.loss == Loss::MeanSquaredError);
  CHECK(std::get<CsvData>(c.data.source).delimiter == ';');
}

TEST_CASE("numbers are what they say: integers are no fractions, and a seed has 64 bits") {
  CHECK(parse(samples::kGpt, "g", {"training.seed=18446744073709551615"}).training.seed == 18446744073709551615u);
  CHECK(parse(samples::kGpt, "g", {"training.gradient_clip=2"}).training.gradient_clip == 2.0);
  for (const char* set :
       {"training.steps=3.0", "training.steps=1e3", "training.steps=1.5", "training.steps=-1",
        "training.steps=99999999999999999999999", "training.seed=18446744073709551616", "training.seed=-1",
        "training.steps=true", "training.steps=1e999", "training.steps=NaN", "optimizer.learning_rate=1e999",
        "optimizer.learning_rate=Infinity", "optimizer.learning_rate=-1e-9", "model.dropout=1",
        "optimizer.betas=[0.9,1.0]", "optimizer.betas=[0.9]", "checkpoint.keep=0", "logging.every_steps=0"}) {
    CAPTURE(set);
    const std::string message = with(set);
    CHECK(message.find(std::string("--set ") + set) == 0);
  }
}

TEST_CASE("a directory of checkpoints is needed only where they are asked for") {
  CHECK(with("checkpoint.directory=") != "");
  CHECK(parse(samples::kGpt, "g", {"checkpoint.directory=", "checkpoint.every_steps=0"}).checkpoint.directory == "");
}

TEST_CASE("JSON from outside is bounded") {
  const std::string deep = std::string(65, '[') + std::string(65, ']');
  CHECK(refusal(deep, "d.json").find("nested deeper than 64 levels") != std::string::npos);
  CHECK(refusal(samples::kGpt, "d.json", std::vector<std::string>{"model.layers=" + deep}) != "");
  std::string nested = R"({"type": "relu"})";
  for (int i = 0; i < 40; ++i) nested = R"({"type": "residual", "layers": [)" + nested + "]}";
  CHECK(refusal(samples::kSequential, "d.json", std::vector<std::string>{"model.layers[1]=" + nested})
            .find("deeper than 64") != std::string::npos);
  const std::string large = std::string(samples::kGpt) + std::string(std::size_t{1} << 20, ' ');
  CHECK(refusal(large, "l.json").find("bytes long; at most 1048576") != std::string::npos);
  CHECK(refusal(std::string(samples::kGpt) + '\0' + "}", "n.json").find("NUL") != std::string::npos);
  CHECK(refusal("", "empty.json").find("empty.json:1:1: not valid JSON") != std::string::npos);
}

TEST_CASE("text that is not UTF-8 is refused") {
  CHECK(with("data.path=\xff\xfe").find("not UTF-8") != std::string::npos);
  CHECK(refusal("{\"\xff\": 1}", "u.json").find("not valid JSON") != std::string::npos);
  CHECK(parse(samples::kGpt, "g", {"data.path=tïtre/日本.txt"}).data.source ==
        decltype(Data::source)(TextData{"tïtre/日本.txt", Tokenizer::Byte}));
}

TEST_CASE("every key of a configuration is written out, and reads back as the same value") {
  for (const char* text : samples::kAll) {
    const Config c = parse(text, "a.json");
    const std::string json = to_json(c);
    CAPTURE(json);
    CHECK(parse(json, "b.json") == c);
    CHECK(to_json(parse(json, "b.json")) == json);
    for (const char* key : {"validation_fraction", "steps", "epochs", "micro_batch_size", "hang_timeout", "time_limit",
                            "warmup_steps", "final_ratio", "split_backward", "partition", "keep", "eval_every"}) {
      CHECK(json.find(fmt::format("\"{}\": ", key)) != std::string::npos);
    }
  }
}

TEST_CASE("an amount of memory is a number with a unit, or bytes") {
  CHECK(bytes_of("0") == 0);
  CHECK(bytes_of("4096") == 4096);
  CHECK(bytes_of("8GiB") == std::int64_t{8} << 30);
  CHECK(bytes_of("1.5 GiB") == std::int64_t{3} << 29);
  CHECK(bytes_of("300MB") == 300'000'000);
  CHECK(bytes_of("1.1kB") == 1100);
  CHECK(bytes_of("7 B") == 7);
  for (const char* wrong :
       {"", "GiB", "-1", "8 Gib", "8GiBs", "8  GiB", " 8", "1e3", "nan", "inf", "9999999TiB", "0x10"}) {
    CAPTURE(wrong);
    CHECK_FALSE(bytes_of(wrong).has_value());
  }
  const auto memory = [](const std::string& text) {
    return parse(samples::kSmallest, "a.json", {"parallel.memory_per_rank=" + text}).parallel.memory_per_rank;
  };
  CHECK(memory("8GiB") == std::int64_t{8} << 30);
  CHECK(memory("1000") == 1000);
}

TEST_CASE("random configurations survive the way to JSON and back") {
  const RandomStream random(7, "config property");
  std::uint64_t counter = 0;
  const auto below = [&](std::uint64_t n) { return static_cast<std::int64_t>(random.bits(counter++) % n); };
  const auto fraction = [&] { return static_cast<double>(random.uniform(counter++)); };
  const auto word = [&](std::vector<std::string> words) {
    return words[static_cast<std::size_t>(below(words.size()))];
  };
  for (int round = 0; round < 500; ++round) {
    const std::int64_t heads = 1 + below(16);
    const std::int64_t micro = 1 + below(8);
    std::vector<std::string> sets = {
        fmt::format("model.num_heads={}", heads),
        fmt::format("model.hidden_size={}", heads * (1 + below(64))),
        fmt::format("model.dropout={}", fraction()),
        fmt::format("data.validation_fraction={}", fraction()),
        fmt::format("training.micro_batches={}", micro),
        fmt::format("training.batch_size={}", micro * (1 + below(20))),
        fmt::format("training.seed={}", random.bits(counter++)),
        fmt::format("training.time_limit={}", fraction() * 1e6),
        fmt::format("training.sequence_length={}", below(257)),
        fmt::format("optimizer.learning_rate={}", fraction() * 1e-3),
        fmt::format("optimizer.schedule.type={}", word({"constant", "linear", "cosine"})),
        fmt::format("optimizer.weight_decay={}", fraction()),
        fmt::format("parallel.schedule={}", word({"gpipe", "1f1b"})),
        fmt::format("parallel.partition={}", word({"uniform", "parameters", "flops", "[2,6]", "[4,4]"})),
        fmt::format("parallel.split_backward={}", word({"true", "false"})),
        fmt::format("training.recompute={}", word({"none", "full", "auto", "[\"h.0\",\"h.1.attn\"]"})),
        fmt::format("parallel.compression={}",
                    word({R"({"type":"top_k","ratio":0.5,"error_feedback":false})", R"({"type":"int8"})",
                          R"({"type":"int8","min_elements":7})", R"({"type":"none"})",
                          R"({"type":"power_sgd","rank":2,"layers":["h.*"]})"})),
        fmt::format("parallel.memory_per_rank={}", word({"0", "8GiB", "1.5 GB", "123456789", "3072"})),
        fmt::format("parallel.data={}", below(5)),
        fmt::format("checkpoint.directory={}", word({"runs/a", "x\\\"y", "/tmp/ü"})),
        fmt::format("logging.every_steps={}", 1 + below(1000)),
    };
    if (below(2) == 0) {
      sets.insert(sets.end(), {"training.steps=0", fmt::format("training.epochs={}", fraction() * 10 + 0.1)});
    }
    if (below(2) == 0) {
      sets.push_back(fmt::format(R"(optimizer={{"type":"sgd","momentum":{},"nesterov":false}})", fraction()));
    }
    const Config c = parse(samples::kGpt, "a.json", sets);
    const std::string json = to_json(c);
    CAPTURE(json);
    REQUIRE(parse(json, "b.json") == c);
    REQUIRE(parse(to_json(parse(json, "b.json")), "c.json") == c);
  }
}

TEST_CASE("configurations whose batch is still open, and those resolved, survive as well") {
  for (const char* sizes : {"[0,4,2]", "[32,0,2]", "[32,4,0]"}) {
    int b = 0, m = 0, s = 0;
    REQUIRE(std::sscanf(sizes, "[%d,%d,%d]", &b, &m, &s) == 3);
    Config c = parse(samples::kGpt, "a.json",
                     {fmt::format("training.batch_size={}", b), fmt::format("training.micro_batches={}", m),
                      fmt::format("training.micro_batch_size={}", s)});
    CHECK(parse(to_json(c), "b.json") == c);
    resolve_parallel(c, 4);
    CHECK(parse(to_json(c), "b.json") == c);
  }
}

TEST_CASE("compression: what is left out follows from the type") {
  const auto of = [](const std::string& compression) {
    return parse(samples::kGpt, "a.json", {"parallel.compression=" + compression}).parallel.compression;
  };
  const Compression top = of(R"({"type": "top_k"})");
  CHECK(top.type == CompressionType::TopK);
  CHECK(top.ratio == 0.01);
  CHECK(top.error_feedback);
  CHECK(top.min_elements == 4096);
  CHECK(top.layers.empty());
  CHECK_FALSE(of(R"({"type": "int8"})").error_feedback);
  const std::string sign = R"(parallel.compression={"type": "sign", "error_feedback": false})";
  CHECK_FALSE(parse(samples::kMlp, "a.json", {sign}).parallel.compression.error_feedback);
  CHECK_FALSE(of(R"({"type": "random_k", "error_feedback": false})").error_feedback);
  const Compression power = of(R"({"type": "power_sgd", "rank": 7, "layers": ["h.*.mlp", "wte.weight"]})");
  CHECK(power.rank == 7);
  CHECK(power.layers == std::vector<std::string>{"h.*.mlp", "wte.weight"});
  CHECK(parse(samples::kGpt, "a.json").parallel.compression == Compression{});
  CHECK(of(R"({"type": "none", "ratio": 0.01})") == Compression{});
  CHECK(of("{}") == Compression{});
}

TEST_CASE("the model's part is canonical") {
  const std::string a = model_json(parse(samples::kGpt, "a.json"));
  const std::string b = model_json(parse(samples::kGpt, "a.json", {"training.steps=3", "model.dropout=0"}));
  CHECK(a == b);
  CHECK(a != model_json(parse(samples::kGpt, "a.json", {"model.num_layers=7"})));
  CHECK(model_json(parse(samples::kMlp, "m.json")) ==
        R"({"type": "mlp", "input_size": 784, "hidden_sizes": [32, 16], "output_size": 10, "activation": "tanh"})");
}

TEST_CASE("damaged files are refused as usage errors and in no other way") {
  const RandomStream random(11, "config damage");
  std::uint64_t counter = 0;
  int accepted = 0;
  for (int round = 0; round < 4000; ++round) {
    std::string text = samples::kAll[random.bits(counter++) % std::size(samples::kAll)];
    if (round % 4 == 0) text.resize(random.bits(counter++) % text.size());
    for (std::uint64_t edits = random.bits(counter++) % 4; edits > 0 && !text.empty(); --edits) {
      const std::size_t at = random.bits(counter++) % text.size();
      constexpr char kBytes[] = "{}[]\":,0123456789-+.eE \n\\untrfals\x80\xff";
      const std::uint64_t kind = random.bits(counter++) % 3;
      const std::uint64_t bits = random.bits(counter++);
      const char byte = kind == 0 ? static_cast<char>(bits) : kBytes[bits % (sizeof(kBytes) - 1)];
      if (random.bits(counter++) % 3 == 0) {
        text.insert(at, 1, byte);
      } else {
        text[at] = byte;
      }
    }
    std::optional<Config> c;
    try {
      c = parse(text, "damaged.json");
    } catch (const Error& error) {
      if (error.code() != ExitCode::Usage) FAIL(error.what(), " for ", text);
    }
    if (!c) continue;
    ++accepted;
    CHECK(parse(to_json(*c), "again.json") == *c);
  }
  CHECK(accepted > 0);
  CHECK(accepted < 4000);
}

TEST_CASE("damaged flags are refused as usage errors and in no other way") {
  const RandomStream random(13, "flag damage");
  std::uint64_t counter = 0;
  const std::vector<std::string> flags = {"training.steps=100", "parallel.partition=[1,3,4]", "optimizer.betas[0]=0.5",
                                          "model.layers[2].layers[0].output_size=4", "data={\"type\":\"synthetic\"}"};
  for (int round = 0; round < 4000; ++round) {
    std::string flag = flags[random.bits(counter++) % flags.size()];
    for (std::uint64_t edits = 1 + random.bits(counter++) % 3; edits > 0; --edits) {
      constexpr char kBytes[] = "{}[]\":,.=019-+.eE \n\\null";
      const char byte = kBytes[random.bits(counter++) % (sizeof(kBytes) - 1)];
      flag[random.bits(counter++) % flag.size()] = byte;
    }
    try {
      (void)parse(round % 2 == 0 ? samples::kGpt : samples::kSequential, "a.json", {flag});
    } catch (const Error& error) {
      if (error.code() != ExitCode::Usage) FAIL(error.what(), " for ", flag);
    }
  }
}

TEST_CASE("the configurations that come with the program are valid") {
  for (const char* name : {"mlp_mnist.json", "gpt_small.json"}) {
    std::ifstream file(std::string(TRAINER_CONFIGS) + "/" + name);
    REQUIRE(file.good());
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    Config c = parse(text, name);
    resolve_parallel(c, 4);
    CHECK(c.parallel.data == 4);
  }
}

TEST_CASE("the help lists every key that is printed") {
  const std::string help = describe_keys();
  for (const char* text : samples::kAll) {
    const std::string json = to_json(parse(text, "a.json"));
    std::size_t keys = 0;
    for (std::size_t colon = json.find("\": "); colon != std::string::npos; colon = json.find("\": ", colon + 1)) {
      const std::size_t begin = json.rfind('"', colon - 1) + 1;
      const std::string key = json.substr(begin, colon - begin);
      const std::string entry = key + ": ";
      const bool container = json.compare(colon + 3, 1, "{") == 0;
      if (!container && key != "type") CHECK_MESSAGE(help.find(entry) != std::string::npos, key);
      ++keys;
    }
    CHECK(keys > 30);
  }
}

TEST_CASE("every key that the help lists for a section is printed") {
  const std::string json = to_json(parse(samples::kGpt, "a.json"));
  const std::string help = describe_keys();
  for (const char* section :
       {"\nmodel of type \"gpt\"\n", "\ndata of type \"text\"\n", "\ntraining\n",
        "\noptimizer of type \"adamw\" (the default)\n", "\nparallel\n", "\ncheckpoint\n", "\nlogging\n"}) {
    const std::size_t begin = help.find(section);
    REQUIRE(begin != std::string::npos);
    std::istringstream lines(help.substr(begin, help.find("\n\n", begin) - begin));
    int keys = 0;
    for (std::string line; std::getline(lines, line);) {
      if (line.rfind("  ", 0) != 0 || line[2] == ' ') continue;
      std::string name = line.substr(2, line.find(':') - 2);
      name.erase(0, name.rfind('.') + 1);
      CHECK_MESSAGE(json.find(fmt::format("\"{}\": ", name)) != std::string::npos, name);
      ++keys;
    }
    CHECK(keys >= 2);
  }
}
