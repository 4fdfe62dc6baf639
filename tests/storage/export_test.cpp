// Exports: the right tensors under the right names, the same bytes for the same weights.
#include "trainer/storage/export.hpp"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "checkpoint_support.hpp"
#include "support/faulty_file_system.hpp"
#include "support/memory_file_system.hpp"
#include "trainer/core/error.hpp"

using namespace trainer;
using namespace trainer::storage;
using namespace trainer::test;

namespace {

using nlohmann::ordered_json;

template <class Body>
std::string failure(ExitCode code, Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    CHECK(error.code() == code);
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

struct SafetensorsFile {
  ordered_json header;
  std::string buffer;
};

SafetensorsFile parse(const std::string& text) {
  REQUIRE(text.size() >= 8);
  std::uint64_t length = 0;
  std::memcpy(&length, text.data(), 8);
  REQUIRE(length % 8 == 0);
  REQUIRE(length + 8 <= text.size());
  return {ordered_json::parse(text.substr(8, length)), text.substr(8 + length)};
}

std::vector<unsigned char> tensor_bytes(const SafetensorsFile& file, const std::string& name) {
  const auto offsets = file.header.at(name).at("data_offsets");
  const std::string part =
      file.buffer.substr(offsets[0], offsets[1].get<std::size_t>() - offsets[0].get<std::size_t>());
  return {part.begin(), part.end()};
}

constexpr std::int64_t kVocabulary = 11, kContext = 5, kHidden = 6, kLayers = 2;

std::string gpt_record(bool tied) {
  return ordered_json{{"model",
                       {{"type", "gpt"},
                        {"vocab_size", kVocabulary},
                        {"context_length", kContext},
                        {"hidden_size", kHidden},
                        {"num_layers", kLayers},
                        {"num_heads", 2},
                        {"dropout", 0.25},
                        {"tie_embeddings", tied}}}}
      .dump();
}

Tensors gpt_tensors(bool tied) {
  std::mt19937_64 random(1);
  Tensors tensors;
  const auto add = [&](const std::string& name, const Shape& shape) {
    tensors[name] = random_tensor(DType::F32, shape, random);
    tensors["optimizer.exp_avg." + name] = random_tensor(DType::F32, shape, random);
  };
  add("wte.weight", {kVocabulary, kHidden});
  add("wpe.weight", {kContext, kHidden});
  for (std::int64_t i = 0; i < kLayers; ++i) {
    const std::string layer = "h." + std::to_string(i) + ".";
    for (const char* norm : {"ln_1", "ln_2"}) {
      add(layer + norm + ".weight", {kHidden});
      add(layer + norm + ".bias", {kHidden});
    }
    const auto linear = [&](const std::string& name, std::int64_t out, std::int64_t in) {
      add(layer + name + ".weight", {out, in});
      add(layer + name + ".bias", {out});
    };
    linear("attn.c_attn", 3 * kHidden, kHidden);
    linear("attn.c_proj", kHidden, kHidden);
    linear("mlp.c_fc", 4 * kHidden, kHidden);
    linear("mlp.c_proj", kHidden, 4 * kHidden);
  }
  add("ln_f.weight", {kHidden});
  add("ln_f.bias", {kHidden});
  if (!tied) add("lm_head.weight", {kVocabulary, kHidden});
  return tensors;
}

/// Saves with this configuration; `writers` and `seed` change the layout only.
std::unique_ptr<CheckpointReader> saved(MemoryFileSystem& fs, const Tensors& tensors, const std::string& config,
                                        int writers = 1, std::uint64_t seed = 1) {
  return open_checkpoint(fs, save(fs, "runs", 1, tensors, writers, seed, config));
}

}  // namespace

TEST_CASE("safetensors holds the parameters whole, larger types first, then by name") {
  MemoryFileSystem fs;
  const Tensors tensors = some_tensors(1);
  export_safetensors(fs, *saved(fs, tensors, "{}", 2), "out/x/", false);
  CHECK(fs.list("out") == std::vector<std::string>{"x"});
  CHECK(fs.list("out/x") == std::vector<std::string>{"model.safetensors"});
  const SafetensorsFile file = parse(fs.read_text("out/x/model.safetensors", 1 << 20));
  std::vector<std::string> names;
  std::uint64_t end = 0;
  for (const auto& [name, entry] : file.header.items()) {
    names.push_back(name);
    if (name == "__metadata__") continue;
    CHECK(entry.at("data_offsets")[0] == end);
    end = entry.at("data_offsets")[1];
    CHECK(tensor_bytes(file, name) == tensors.at(name).bytes);
    CHECK(entry.at("dtype") == name_of(tensors.at(name).type));
  }
  CHECK(end == file.buffer.size());
  CHECK(file.header.at("__metadata__").dump() == R"({"format":"pt"})");
  CHECK(names == std::vector<std::string>{"__metadata__", "step", "empty", "h.0.attn.c_attn.weight", "bias", "table"});
}

TEST_CASE("an export's bytes are a function of the weights alone") {
  MemoryFileSystem one, two;
  const Tensors tensors = gpt_tensors(true);
  export_hugging_face(one, *saved(one, tensors, gpt_record(true), 1, 1), "out", false);
  export_hugging_face(two, *saved(two, tensors, gpt_record(true), 3, 8), "out", false);
  CHECK(one.list("out") == std::vector<std::string>{"config.json", "generation_config.json", "model.safetensors"});
  for (const std::string& name : one.list("out")) {
    CHECK(one.read_text("out/" + name, 1 << 20) == two.read_text("out/" + name, 1 << 20));
  }
}

TEST_CASE("a GPT becomes GPT2LMHeadModel, with Conv1D weights transposed") {
  for (const bool tied : {true, false}) {
    MemoryFileSystem fs;
    const Tensors tensors = gpt_tensors(tied);
    export_hugging_face(fs, *saved(fs, tensors, gpt_record(tied), 2), "out", false);
    const SafetensorsFile file = parse(fs.read_text("out/model.safetensors", 1 << 20));
    CHECK(file.header.size() == 1 + tensors.size() / 2);
    for (const auto& [name, entry] : file.header.items()) {
      if (name == "__metadata__") continue;
      const bool head = name == "lm_head.weight";
      CHECK((head || name.starts_with("transformer.")));
      const GlobalTensor& ours = tensors.at(head ? name : name.substr(12));
      const bool conv1d = contains(name, ".c_") && contains(name, "weight");
      if (!conv1d) {
        CHECK(tensor_bytes(file, name) == ours.bytes);
        continue;
      }
      const std::int64_t out = ours.shape[0], in = ours.shape[1];
      CHECK(entry.at("shape") == std::vector<std::int64_t>{in, out});
      std::vector<float> a(ours.bytes.size() / 4), b(a.size());
      std::memcpy(a.data(), ours.bytes.data(), ours.bytes.size());
      std::memcpy(b.data(), tensor_bytes(file, name).data(), ours.bytes.size());
      bool equal = true;
      for (std::int64_t o = 0; o < out; ++o) {
        for (std::int64_t i = 0; i < in; ++i)
          equal &=
              std::memcmp(&a[static_cast<std::size_t>(o * in + i)], &b[static_cast<std::size_t>(i * out + o)], 4) == 0;
      }
      CHECK(equal);
    }
    const auto config = ordered_json::parse(fs.read_text("out/config.json", 1 << 20));
    CHECK(config.at("architectures")[0] == "GPT2LMHeadModel");
    CHECK(config.at("n_embd") == kHidden);
    CHECK(config.at("vocab_size") == kVocabulary);
    CHECK(config.at("tie_word_embeddings") == tied);
    CHECK(config.at("attn_pdrop") == 0.25);
  }
}

TEST_CASE("what Hugging Face has no class for is refused with a way out") {
  MemoryFileSystem fs;
  const auto mlp = saved(fs, some_tensors(1), R"({"model": {"type": "mlp"}})");
  const std::string message = failure(ExitCode::Usage, [&] { export_hugging_face(fs, *mlp, "out", false); });
  CHECK(contains(message, "'mlp'"));
  CHECK(contains(message, "--format safetensors"));
  CHECK(!fs.exists("out"));
  CHECK(!fs.exists("out.partial"));
  const auto broken = saved(fs, some_tensors(1), "{\"model\": {\"type\": \"gpt\"}}");
  CHECK(contains(failure(ExitCode::Storage, [&] { export_hugging_face(fs, *broken, "out", false); }), "not readable"));
  Tensors lacking = gpt_tensors(true);
  lacking.erase("h.1.ln_2.bias");
  const auto incomplete = saved(fs, lacking, gpt_record(true));
  CHECK(contains(failure(ExitCode::Storage, [&] { export_hugging_face(fs, *incomplete, "out", false); }),
                 "h.1.ln_2.bias"));
  const auto untied = saved(fs, gpt_tensors(false), gpt_record(true));
  CHECK(
      contains(failure(ExitCode::Storage, [&] { export_hugging_face(fs, *untied, "out", false); }), "lm_head.weight"));
}

TEST_CASE("an existing folder is replaced only on request, and only when an export wrote it") {
  MemoryFileSystem fs;
  const auto checkpoint = saved(fs, some_tensors(1), "{}");
  export_safetensors(fs, *checkpoint, "out", false);
  const std::string before = fs.read_text("out/model.safetensors", 1 << 20);
  CHECK(contains(failure(ExitCode::Usage, [&] { export_safetensors(fs, *checkpoint, "out", false); }), "--overwrite"));
  MemoryFileSystem other;
  const auto changed = saved(other, some_tensors(2), "{}");
  export_safetensors(fs, *changed, "out", true);
  CHECK(fs.read_text("out/model.safetensors", 1 << 20) != before);
  fs.write_text("out/thesis.tex", "precious");
  CHECK(contains(failure(ExitCode::Usage, [&] { export_safetensors(fs, *checkpoint, "out", true); }), "thesis.tex"));
  CHECK(fs.read_text("out/thesis.tex", 100) == "precious");
}

TEST_CASE("a failing operation leaves no folder that looks like an export") {
  bool done = false;
  for (std::int64_t fail_at = 0; !done; ++fail_at) {
    MemoryFileSystem disk;
    const auto checkpoint = saved(disk, some_tensors(1), "{}");
    FaultyFileSystem fs(disk, {.fail_at = fail_at});
    std::string message = failure(ExitCode::Storage, [&] { export_safetensors(fs, *checkpoint, "out", false); });
    done = message.empty();
    if (disk.exists("out")) CHECK_NOTHROW(parse(disk.read_text("out/model.safetensors", 1 << 20)));
  }
}
