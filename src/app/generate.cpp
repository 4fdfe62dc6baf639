// `trainer generate`: text from a checkpoint, one token at a time.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <vector>

#include "app.hpp"
#include "trainer/comm/topology.hpp"
#include "trainer/core/random.hpp"
#include "trainer/runtime/inference.hpp"
#include "trainer/storage/dataset.hpp"

namespace trainer::app {

namespace {

// Draws from softmax(logits / temperature) among the top_k largest; temperature 0 is the largest, ties to the lower
// token.
std::int32_t sample(const float* logits, std::int64_t vocabulary, double temperature, std::int64_t top_k,
                    double uniform) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(vocabulary));
  std::iota(order.begin(), order.end(), 0);
  const auto larger = [logits](std::int32_t a, std::int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  if (temperature == 0) return *std::min_element(order.begin(), order.end(), larger);
  const auto kept = static_cast<std::size_t>(top_k > 0 ? std::min(top_k, vocabulary) : vocabulary);
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(kept), order.end(), larger);
  order.resize(kept);
  std::vector<double> cumulative(kept);
  double total = 0;
  for (std::size_t i = 0; i < kept; ++i) {
    total += std::exp((static_cast<double>(logits[order[i]]) - static_cast<double>(logits[order[0]])) / temperature);
    cumulative[i] = total;
  }
  const auto found = std::upper_bound(cumulative.begin(), cumulative.end(), uniform * total);
  return order[std::min(kept - 1, static_cast<std::size_t>(found - cumulative.begin()))];
}

std::int64_t known_tokens(const storage::Dataset& tokenizer, std::int64_t vocabulary) {
  const std::int64_t known = tokenizer.kind().classes;
  return known > 0 ? std::min(known, vocabulary) : vocabulary;
}

}  // namespace

ExitCode generate(const config::GenerateCommand& command) {
  const auto checkpoint = open_checkpoint(command.checkpoint);
  const storage::CheckpointRecord& record = checkpoint->record();
  const config::Config config = config::parse(record.config, checkpoint->path());
  const auto* text = std::get_if<config::TextData>(&config.data.source);
  if (text == nullptr) {
    throw Error(ExitCode::Usage,
                fmt::format("{}: was not trained on text, so it has no tokenizer to write with", checkpoint->path()));
  }
  const auto tokenizer = storage::tokenizer_only(text->tokenizer, record.vocabulary);
  comm::run_in_process(1, [&](comm::Communicator& alone) {
    ThreadPool pool(command.threads > 0 ? command.threads : comm::usable_cores());
    runtime::InferenceModel model(alone, config, *checkpoint, pool);
    std::vector<std::int32_t> tokens = tokenizer->encode(command.prompt);
    if (tokens.empty()) tokens = tokenizer->encode("\n");
    if (tokens.empty()) tokens.push_back(0);
    print(command.prompt);
    const RandomStream random(command.seed, "generate");
    const std::int64_t usable = known_tokens(*tokenizer, model.vocabulary());
    for (std::int64_t n = 0; n < command.tokens; ++n) {
      const std::size_t seen = std::min(tokens.size(), static_cast<std::size_t>(model.positions()));
      const ConstMatrix logits = model.logits(std::span(tokens).last(seen));
      const std::int32_t next =
          sample(logits.row(static_cast<std::int64_t>(seen) - 1), usable, command.temperature, command.top_k,
                 static_cast<double>(random.uniform(static_cast<std::uint64_t>(n))));
      tokens.push_back(next);
      print(tokenizer->decode(next));
    }
    print("\n");
  });
  return ExitCode::Done;
}

}  // namespace trainer::app
