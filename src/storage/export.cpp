// Writes weights as safetensors and as Hugging Face folders, one tensor in memory at a time.
#include "trainer/storage/export.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <span>

#include "safetensors.hpp"
#include "trainer/core/error.hpp"

namespace trainer::storage {

namespace {

using nlohmann::json;

constexpr std::string_view kOptimizerPrefix = "optimizer.";
constexpr const char* kWeightsName = "model.safetensors";
constexpr const char* kConfigName = "config.json";
constexpr const char* kGenerationName = "generation_config.json";

/// A tensor of the checkpoint under the name and in the layout that the file wants.
struct Exported {
  std::string name;    // in the checkpoint
  std::string target;  // in the file
  DType type = DType::F32;
  Shape shape;             // in the checkpoint
  bool transpose = false;  // a matrix [out, in] that is stored [in, out]
};

/// A folder that appears under its name whole or not at all.
class OutputFolder {
 public:
  OutputFolder(FileSystem& fs, std::string out, bool overwrite) : fs_(fs), out_(std::move(out)) {
    while (out_.size() > 1 && out_.back() == '/') out_.pop_back();
    if (out_.empty()) throw Error(ExitCode::Usage, "--out is empty, a directory was expected");
    if (fs_.exists(out_)) check_replaceable(overwrite);
    const std::string parent = std::filesystem::path(out_).parent_path().string();
    parent_ = parent.empty() ? "." : parent;
    fs_.remove_all(partial());
    fs_.make_directories(partial());
  }

  std::string partial() const { return out_ + ".partial"; }

  void finish() {
    fs_.sync_directory(partial());
    const std::string old = out_ + ".old";
    if (fs_.exists(out_)) {
      fs_.remove_all(old);
      fs_.rename(out_, old);
    }
    fs_.rename(partial(), out_);
    fs_.sync_directory(parent_);
    fs_.remove_all(old);
  }

 private:
  // Only what an export wrote is ever removed, whatever --overwrite says.
  void check_replaceable(bool overwrite) const {
    if (!overwrite) {
      throw Error(ExitCode::Usage,
                  fmt::format("'{}' exists already; give --overwrite to replace it, or another --out", out_));
    }
    const std::set<std::string> ours{kWeightsName, kConfigName, kGenerationName};
    for (const std::string& name : fs_.list(out_)) {
      if (ours.contains(name)) continue;
      throw Error(ExitCode::Usage,
                  fmt::format("'{}' contains '{}', which no export wrote, so it is not overwritten; give "
                              "another --out",
                              out_, name));
    }
  }

  FileSystem& fs_;
  std::string out_;
  std::string parent_;
};

/// Rows become columns.
void transpose(const Buffer& from, std::int64_t rows, std::int64_t columns, std::size_t element, Buffer& to) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < columns; ++c) {
      std::copy_n(from.data() + static_cast<std::size_t>(r * columns + c) * element, element,
                  to.data() + static_cast<std::size_t>(c * rows + r) * element);
    }
  }
}

void write_weights(FileSystem& fs, const CheckpointReader& checkpoint, const std::vector<Exported>& tensors,
                   const std::string& path) {
  std::vector<SafetensorsEntry> entries;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const Exported& tensor = tensors[i];
    const Shape shape = tensor.transpose ? Shape{tensor.shape[1], tensor.shape[0]} : tensor.shape;
    entries.push_back({tensor.target, tensor.type, shape, i});
  }
  layout_safetensors(entries);
  const std::string header = safetensors_header(entries, {{"format", "pt"}});
  const std::unique_ptr<OutputFile> file = fs.create(path);
  file->write(std::as_bytes(std::span<const char>(header)));
  for (const SafetensorsEntry& entry : entries) {
    const Exported& tensor = tensors[entry.source];
    Buffer bytes(entry.end - entry.begin);
    checkpoint.read(tensor.name, whole(tensor.shape), bytes.data());
    if (tensor.transpose) {
      Buffer turned(bytes.size());
      transpose(bytes, tensor.shape[0], tensor.shape[1], size_of(tensor.type), turned);
      bytes = std::move(turned);
    }
    file->write({bytes.data(), bytes.size()});
  }
  file->sync();
  file->close();
}

std::vector<Exported> parameters_of(const CheckpointReader& checkpoint) {
  std::vector<Exported> parameters;
  for (const TensorEntry& entry : checkpoint.tensors()) {
    if (entry.name.compare(0, kOptimizerPrefix.size(), kOptimizerPrefix) == 0) continue;
    parameters.push_back({entry.name, entry.name, entry.type, entry.shape});
  }
  return parameters;
}

/// The sizes that name and shape a GPT's tensors.
struct GptSizes {
  std::int64_t vocabulary = 0, context = 0, hidden = 0, layers = 0, heads = 0;
  double dropout = 0;
  bool tied = true;
};

GptSizes gpt_sizes(const CheckpointReader& checkpoint) {
  try {
    const json model = json::parse(checkpoint.record().config).at("model");
    const std::string type = model.at("type").get<std::string>();
    if (type != "gpt") {
      throw Error(ExitCode::Usage,
                  fmt::format("the model of '{}' has type '{}', and Hugging Face has no class for it; models of "
                              "type 'gpt' can be exported so, all others with --format safetensors",
                              checkpoint.path(), type));
    }
    GptSizes sizes;
    sizes.vocabulary = model.at("vocab_size").get<std::int64_t>();
    sizes.context = model.at("context_length").get<std::int64_t>();
    sizes.hidden = model.at("hidden_size").get<std::int64_t>();
    sizes.layers = model.at("num_layers").get<std::int64_t>();
    sizes.heads = model.at("num_heads").get<std::int64_t>();
    sizes.dropout = model.value("dropout", 0.0);
    sizes.tied = model.value("tie_embeddings", true);
    return sizes;
  } catch (const json::exception& e) {
    throw Error(ExitCode::Storage, fmt::format("the configuration in the checkpoint '{}' is not readable: {}",
                                               checkpoint.path(), e.what()));
  }
}

/// All tensors of GPT2LMHeadModel. Its Conv1D layers store [in, out], ours [out, in].
std::vector<Exported> gpt_tensors(const GptSizes& s) {
  std::vector<Exported> tensors;
  const auto add = [&](const std::string& name, const Shape& shape, bool conv1d = false) {
    tensors.push_back({name, "transformer." + name, DType::F32, shape, conv1d});
  };
  const auto norm = [&](const std::string& name) {
    add(name + ".weight", {s.hidden});
    add(name + ".bias", {s.hidden});
  };
  const auto linear = [&](const std::string& name, std::int64_t out, std::int64_t in) {
    add(name + ".weight", {out, in}, true);
    add(name + ".bias", {out});
  };
  add("wte.weight", {s.vocabulary, s.hidden});
  add("wpe.weight", {s.context, s.hidden});
  for (std::int64_t i = 0; i < s.layers; ++i) {
    const std::string layer = fmt::format("h.{}.", i);
    norm(layer + "ln_1");
    linear(layer + "attn.c_attn", 3 * s.hidden, s.hidden);
    linear(layer + "attn.c_proj", s.hidden, s.hidden);
    norm(layer + "ln_2");
    linear(layer + "mlp.c_fc", 4 * s.hidden, s.hidden);
    linear(layer + "mlp.c_proj", s.hidden, 4 * s.hidden);
  }
  norm("ln_f");
  if (!s.tied) tensors.push_back({"lm_head.weight", "lm_head.weight", DType::F32, {s.vocabulary, s.hidden}});
  return tensors;
}

/// The checkpoint must have exactly the tensors that the class expects.
void check_gpt(const CheckpointReader& checkpoint, const std::vector<Exported>& expected) {
  std::set<std::string> names;
  for (const Exported& tensor : expected) names.insert(tensor.name);
  std::set<std::string> found;
  for (const Exported& have : parameters_of(checkpoint)) {
    found.insert(have.name);
    if (!names.contains(have.name)) {
      throw Error(ExitCode::Storage,
                  fmt::format("the checkpoint '{}' has the tensor '{}', which a GPT of its configuration "
                              "does not have",
                              checkpoint.path(), have.name));
    }
    const auto want =
        std::find_if(expected.begin(), expected.end(), [&](const Exported& e) { return e.name == have.name; });
    if (have.type != want->type || have.shape != want->shape) {
      throw Error(ExitCode::Storage,
                  fmt::format("the checkpoint '{}' has the tensor '{}' as {} {}, a GPT of its configuration has {} {}",
                              checkpoint.path(), have.name, name_of(have.type), to_string(have.shape),
                              name_of(want->type), to_string(want->shape)));
    }
  }
  for (const Exported& tensor : expected) {
    if (found.contains(tensor.name)) continue;
    throw Error(ExitCode::Storage,
                fmt::format("the checkpoint '{}' lacks the tensor '{}' of a GPT", checkpoint.path(), tensor.name));
  }
}

/// Our tokenizers have no token that begins or ends a text, so both are null: GPT-2's default, 50256, would be out of
/// the vocabulary or a word of it.
std::string gpt_config(const GptSizes& s) {
  const json config = {{"model_type", "gpt2"},
                       {"architectures", {"GPT2LMHeadModel"}},
                       {"vocab_size", s.vocabulary},
                       {"n_positions", s.context},
                       {"n_embd", s.hidden},
                       {"n_layer", s.layers},
                       {"n_head", s.heads},
                       {"n_inner", 4 * s.hidden},
                       {"activation_function", "gelu_new"},
                       {"layer_norm_epsilon", 1e-5},
                       {"initializer_range", 0.02},
                       {"resid_pdrop", s.dropout},
                       {"embd_pdrop", s.dropout},
                       {"attn_pdrop", s.dropout},
                       {"scale_attn_weights", true},
                       {"tie_word_embeddings", s.tied},
                       {"bos_token_id", nullptr},
                       {"eos_token_id", nullptr},
                       {"torch_dtype", "float32"}};
  return config.dump(2) + "\n";
}

std::string generation_config() {
  const json config = {{"_from_model_config", true}, {"bos_token_id", nullptr}, {"eos_token_id", nullptr}};
  return config.dump(2) + "\n";
}

}  // namespace

void write_safetensors(FileSystem& fs, const std::string& path, const std::vector<Piece>& tensors) {
  std::vector<SafetensorsEntry> entries;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    entries.push_back({tensors[i].name, tensors[i].type, tensors[i].global, i});
  }
  layout_safetensors(entries);
  const std::string header = safetensors_header(entries, {{"format", "pt"}});
  const std::unique_ptr<OutputFile> file = fs.create(path);
  file->write(std::as_bytes(std::span<const char>(header)));
  for (const SafetensorsEntry& entry : entries) {
    file->write({static_cast<const std::byte*>(tensors[entry.source].data), entry.end - entry.begin});
  }
  file->sync();
  file->close();
}

void export_safetensors(FileSystem& fs, const CheckpointReader& checkpoint, const std::string& out, bool overwrite) {
  OutputFolder folder(fs, out, overwrite);
  write_weights(fs, checkpoint, parameters_of(checkpoint), folder.partial() + "/" + kWeightsName);
  folder.finish();
}

void export_hugging_face(FileSystem& fs, const CheckpointReader& checkpoint, const std::string& out, bool overwrite) {
  const GptSizes sizes = gpt_sizes(checkpoint);
  const std::vector<Exported> tensors = gpt_tensors(sizes);
  check_gpt(checkpoint, tensors);
  OutputFolder folder(fs, out, overwrite);
  write_weights(fs, checkpoint, tensors, folder.partial() + "/" + kWeightsName);
  fs.write_text(folder.partial() + "/" + kConfigName, gpt_config(sizes));
  fs.write_text(folder.partial() + "/" + kGenerationName, generation_config());
  folder.finish();
}

}  // namespace trainer::storage
