#include "trainer/runtime/compression_plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <string_view>

#include "trainer/core/error.hpp"

namespace trainer::runtime {

namespace {

using config::CompressionType;

constexpr std::size_t kMostText = 100;  // of a name in a message

// Whether `pattern`, in which * stands for any letters, is all of `text`.
bool matches_all(std::string_view pattern, std::string_view text) {
  std::size_t p = 0, t = 0, star = std::string_view::npos, star_text = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      star_text = t;
    } else if (p < pattern.size() && pattern[p] == text[t]) {
      ++p;
      ++t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++star_text;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

// Whether it is the parameter's name or that of a layer that it is in: the begin of the name up to a dot.
bool matches(std::string_view pattern, std::string_view name) {
  for (std::size_t end = name.find('.'); end != std::string_view::npos; end = name.find('.', end + 1)) {
    if (matches_all(pattern, name.substr(0, end))) return true;
  }
  return matches_all(pattern, name);
}

[[noreturn]] void refuse(const std::string& what) { throw Error(ExitCode::Usage, "parallel.compression" + what); }

void require_known_layers(const RunPlan& plan) {
  const auto& layers = plan.config.parallel.compression.layers;
  std::vector<std::string> names;
  for (const model::Parameter& parameter : plan.graph.parameters) {
    for (std::size_t end = parameter.name.find('.'); end != std::string::npos;
         end = parameter.name.find('.', end + 1)) {
      const std::string layer = parameter.name.substr(0, end);
      if (std::find(names.begin(), names.end(), layer) == names.end()) names.push_back(layer);
    }
    names.push_back(parameter.name);
  }
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const auto fits = [&](const model::Parameter& parameter) { return matches(layers[i], parameter.name); };
    if (std::any_of(plan.graph.parameters.begin(), plan.graph.parameters.end(), fits)) continue;
    const std::string& first = plan.graph.parameters.front().name;
    const std::string near = nearest_word(layers[i].substr(0, kMostText), names);
    refuse(
        fmt::format(".layers[{}] is \"{}\", which fits no parameter of this model; expected a parameter or a layer, "
                    "as \"{}\", with * for any letters{}",
                    i, layers[i].substr(0, kMostText), first.substr(0, first.rfind('.')),
                    near.empty() ? "" : fmt::format("; did you mean \"{}\"?", near)));
  }
}

std::int64_t elements_of(const RunPlan& plan, ParameterId parameter) {
  return plan.graph.parameters[parameter.index()].shape.elements();
}

// The matrix that PowerSGD sees: all but the last dimension are rows. Rank 0 where factors would be no smaller.
optim::PowerShape power_shape(const HeldParameter& held, std::int64_t rank) {
  const Box& first = held.boxes.front();
  const int dims = first.extent.dims();
  if (dims < 2 || held.elements == 0) return {};
  const std::int64_t columns = first.extent[dims - 1];
  for (const Box& box : held.boxes) {
    if (box.extent[dims - 1] != columns) return {};
  }
  const std::int64_t rows = held.elements / columns;
  rank = std::min({rank, rows, columns});
  if (rank * (rows + columns) >= rows * columns) return {};
  return {rows, columns, rank};
}

// Puts the use behind what the bucket has; false where it is better sent whole.
bool place(const config::Compression& compression, CompressedUse& use, CompressedBucketLayout& bucket) {
  const auto elements = static_cast<std::size_t>(use.elements);
  switch (compression.type) {
    case CompressionType::None:
      return false;
    case CompressionType::TopK:
      use.kept = optim::kept_elements(compression.ratio, use.elements);
      use.wire_bytes = static_cast<std::size_t>(use.kept) * (sizeof(std::uint32_t) + sizeof(float));
      break;
    case CompressionType::RandomK:
      use.kept = optim::kept_elements(compression.ratio, use.elements);
      use.summed = bucket.summed_elements;
      use.index = bucket.index_elements;
      bucket.summed_elements += static_cast<std::size_t>(use.kept);
      bucket.index_elements += static_cast<std::size_t>(use.kept);
      break;
    case CompressionType::Sign:
      use.wire_bytes = align_up(optim::sign_bytes(use.elements), sizeof(float));
      break;
    case CompressionType::Int8:
      use.wire_bytes = optim::int8_bytes(use.elements);
      break;
    case CompressionType::PowerSgd:
      use.power = power_shape(*use.held, compression.rank);
      if (use.power.rank == 0) return false;
      use.summed = bucket.summed_elements;
      use.factor = bucket.factor_elements;
      bucket.summed_elements += static_cast<std::size_t>(use.power.p_elements());
      bucket.factor_elements += static_cast<std::size_t>(use.power.q_elements());
      break;
  }
  use.wire = bucket.wire_bytes;
  bucket.wire_bytes += use.wire_bytes;
  use.error = bucket.error_elements;
  if (compression.error_feedback) bucket.error_elements += elements;
  return true;
}

}  // namespace

bool wants_compression(const RunPlan& plan, ParameterId parameter) {
  const config::Compression& compression = plan.config.parallel.compression;
  if (compression.type == CompressionType::None) return false;
  if (elements_of(plan, parameter) < std::max<std::int64_t>(1, compression.min_elements)) return false;
  if (compression.layers.empty()) return true;
  const std::string& name = plan.graph.parameters[parameter.index()].name;
  return std::any_of(compression.layers.begin(), compression.layers.end(),
                     [&](const std::string& pattern) { return matches(pattern, name); });
}

void require_compression(const RunPlan& plan) {
  if (!plan.compresses()) return;
  require_known_layers(plan);
  if (plan.mesh.data < 2) {
    refuse(
        ": there is one replica (parallel.data is 1), which sends its gradients to nobody; expected parallel.data of 2 "
        "or more, or the type \"none\"");
  }
  const bool power = plan.config.parallel.compression.type == CompressionType::PowerSgd;
  std::int64_t largest = 0;
  bool any = false;
  for (std::size_t p = 0; p < plan.graph.parameters.size(); ++p) {
    const ParameterId id(static_cast<std::int64_t>(p));
    const std::int64_t elements = elements_of(plan, id);
    if (elements > std::numeric_limits<std::uint32_t>::max()) {
      refuse(fmt::format(": {} has {} elements, and an index of one has 32 bits; leave it out of the layers",
                         plan.graph.parameters[p].name, elements));
    }
    if (power && plan.graph.parameters[p].shape.dims() < 2) continue;
    largest = std::max(largest, elements);
    any = any || wants_compression(plan, id);
  }
  if (any) return;
  refuse(
      fmt::format(": no parameter is compressed: of those that could be the largest has {} elements, and "
                  "parallel.compression.min_elements is {}; smaller min_elements or other layers would work",
                  largest, plan.config.parallel.compression.min_elements));
}

std::size_t CompressedBucketLayout::bytes(CompressionType type, int replicas) const {
  const auto others = static_cast<std::size_t>(replicas - 1);
  std::size_t total = (error_elements + summed_elements + factor_elements) * sizeof(float) +
                      index_elements * sizeof(std::uint32_t) + wire_bytes;
  if (type == CompressionType::Int8) {
    const auto chunk = static_cast<std::size_t>(int8_chunk(wire_bytes, replicas, 0).size());  // the longest
    total += others * chunk * optim::kInt8BlockBytes + wire_bytes +
             chunk * static_cast<std::size_t>(optim::kInt8Block) * sizeof(float);
  } else {
    total += others * wire_bytes;
  }
  for (const std::size_t elements : {summed_elements, factor_elements}) {
    total += comm::Communicator::all_reduce_extra_bytes(static_cast<std::int64_t>(elements), replicas);
  }
  return total;
}

CompressedBucketLayout lay_out_compression(const RunPlan& plan, const ParameterLayout& parameters,
                                           const plan::Coordinates& at, Range gradients) {
  CompressedBucketLayout bucket;
  for (const HeldParameter& held : parameters.held) {
    const bool wanted = wants_compression(plan, held.id);
    std::size_t here = 0;
    const auto& uses = plan.uses(held.id);
    for (std::size_t u = 0; u < uses.size(); ++u) {
      if (plan.rank_of(uses[u].stage) != at.pipeline) continue;
      const std::size_t gradient = held.gradients[here++];
      if (static_cast<std::int64_t>(gradient) < gradients.begin || static_cast<std::int64_t>(gradient) >= gradients.end)
        continue;
      CompressedUse use;
      use.held = &held;
      use.use = static_cast<std::int64_t>(u);
      use.name = fmt::format("compression/{}/{}", u, plan.graph.parameters[held.id.index()].name);
      use.gradient = gradient;
      use.elements = held.elements;
      if (wanted && held.elements > 0 && place(plan.config.parallel.compression, use, bucket)) {
        bucket.uses.push_back(std::move(use));
      } else {
        bucket.whole.push_back({gradient, held.elements, bucket.summed_elements});
        bucket.summed_elements += static_cast<std::size_t>(held.elements);
      }
    }
  }
  return bucket;
}

}  // namespace trainer::runtime
