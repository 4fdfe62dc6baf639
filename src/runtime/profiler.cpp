#include "trainer/runtime/profiler.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <map>
#include <set>
#include <sstream>

#include "profile_step.hpp"
#include "stage_walk.hpp"
#include "trainer/comm/topology.hpp"
#include "trainer/core/error.hpp"
#include "trainer/plan/cut.hpp"
#include "trainer/plan/layouts.hpp"
#include "trainer/runtime/agreement.hpp"

namespace trainer::runtime {

namespace {

using Clock = std::chrono::steady_clock;
using plan::PieceSize;

constexpr int kTurns = 4;
constexpr int kFewestRounds = 2;
constexpr int kMostRounds = 60;
constexpr double kShareOfPieces = 0.8;  // of the time

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// The mean, as a step is a sum of many visits; visits that something else on the machine has hit count as a few typical
// ones at most.
double typical_of(const std::vector<double>& values) {
  constexpr double kMost = 2;
  const double most = kMost * median(values);
  double sum = 0;
  for (const double value : values) sum += std::min(value, most);
  return values.empty() ? 0 : sum / static_cast<double>(values.size());
}

// What was seen of one signature.
struct Seen {
  std::vector<double> forward, backward_input, backward_weight, backward;
  void add(const PieceVisits& visits, std::size_t piece) {
    const auto append = [piece](std::vector<double>& to, const std::vector<std::vector<double>>& from) {
      to.insert(to.end(), from[piece].begin(), from[piece].end());
    };
    append(forward, visits.forward);
    append(backward_input, visits.backward_input);
    append(backward_weight, visits.backward_weight);
    append(backward, visits.backward);
  }
  plan::PassSeconds typical() const {
    return {typical_of(forward), typical_of(backward_input), typical_of(backward_weight), typical_of(backward), 0};
  }
};

class PieceProfiler {
 public:
  PieceProfiler(comm::Communicator& world, const RunPlan& plan, const storage::Dataset& data, ThreadPool& pool)
      : world_(world), plan_(plan), data_(data), pool_(pool) {
    for (const model::Unit& piece : plan.graph.pieces) {
      const std::string text = plan::signature(plan.graph, piece);
      const auto found = std::find(signatures_.begin(), signatures_.end(), text);
      kind_of_.push_back(static_cast<std::size_t>(found - signatures_.begin()));
      if (found == signatures_.end()) signatures_.push_back(text);
      const schedule::StageTimes flops = plan::flops_of(plan.graph, {piece.node_begin, piece.node_end});
      flops_.push_back(flops.forward + flops.backward_input + flops.backward_weight);
    }
    // What every rank's node can spare for its ranks; the smallest decides for all.
    const auto neighbours = world.split_node();
    double spare[1] = {-0.5 * comm::available_memory() / neighbours->size()};
    world.max(spare);
    memory_ = -spare[0];
  }

  /// Measures all sizes in about `seconds`, several times over: a shared machine has slow moments, and no size shall
  /// have them alone. Sizes that the time does not reach are left out, the extremes last.
  void run(const std::vector<PieceSize>& sizes, double seconds) {
    const std::vector<PieceSize> ordered = by_importance(sizes);
    const auto begin = Clock::now();
    for (int turn = 0; turn < kTurns; ++turn) {
      const double passed = agreed(std::chrono::duration<double>(Clock::now() - begin).count());
      if (turn > 0 && passed >= seconds) return;
      run_once(ordered, (seconds - passed) / (kTurns - turn), turn == 0);
      for (auto& [key, seen] : turn_) {
        const plan::PassSeconds typical = seen.typical();
        const auto [at, is_new] = best_.emplace(key, typical);
        if (!is_new) at->second = smaller(at->second, typical);
      }
      turn_.clear();
    }
  }

  /// What the ranks that have a piece measured on the mean.
  std::vector<plan::MeasuredPiece> pieces() {
    std::map<Key, bool> any;
    for (const std::string& text : world_.gather_strings(keys_text())) add_keys(text, any);
    std::vector<plan::MeasuredPiece> all;
    for (const auto& [key, unused] : any) {
      const auto mine = best_.find(key);
      std::array<double, 5> sums{};
      if (mine != best_.end()) {
        const plan::PassSeconds& s = mine->second;
        sums = {s.forward, s.backward_input, s.backward_weight, s.backward, 1};
      }
      world_.sum(sums);
      const double n = sums[4];
      all.push_back({.piece = signatures_[std::get<0>(key)],
                     .tensor = std::get<1>(key),
                     .pipeline = std::get<2>(key),
                     .samples = std::get<3>(key),
                     .seconds = {sums[0] / n, sums[1] / n, sums[2] / n, sums[3] / n, 0}});
    }
    std::sort(all.begin(), all.end(), [](const plan::MeasuredPiece& a, const plan::MeasuredPiece& b) {
      return std::tie(a.piece, a.tensor, a.pipeline, a.samples) < std::tie(b.piece, b.tensor, b.pipeline, b.samples);
    });
    return all;
  }

  /// How much longer the slowest rank takes at a time than the mean of all, 1: no longer.
  /// By the longest rounds, which are nearest to a step.
  double unevenness() const {
    if (unevenness_.empty()) return 1;
    const std::vector<double>& turns = unevenness_.rbegin()->second;
    return std::max(1.0, *std::min_element(turns.begin(), turns.end()));
  }

  /// Whether ranks of the world make groups of that many tensor ranks, so that sums were measured too.
  bool in_groups(std::int64_t tensor) const { return world_.size() % tensor == 0; }

 private:
  static plan::PassSeconds smaller(const plan::PassSeconds& a, const plan::PassSeconds& b) {
    return {std::min(a.forward, b.forward), std::min(a.backward_input, b.backward_input),
            std::min(a.backward_weight, b.backward_weight), std::min(a.backward, b.backward), 0};
  }

  void run_once(const std::vector<PieceSize>& sizes, double seconds, bool first) {
    const auto begin = Clock::now();
    double weight = 0;
    for (const PieceSize& size : sizes) weight += weight_of(size);
    std::map<std::pair<std::int64_t, std::int64_t>, int> measured;  // [tensor, pipeline] sizes
    for (const PieceSize& size : sizes) {
      const double left = agreed(seconds - std::chrono::duration<double>(Clock::now() - begin).count());
      if (left <= 0 && !(first && measured[{size.tensor, size.pipeline}] < 2)) return;
      measure(size, left * weight_of(size) / weight);
      weight -= weight_of(size);
      ++measured[{size.tensor, size.pipeline}];
    }
  }

  static double weight_of(const PieceSize& size) {
    return 1 + static_cast<double>(size.samples) / static_cast<double>(size.tensor * size.pipeline);
  }
  /// The first rank's.
  double agreed(double value) {
    double shared[1] = {world_.rank() == 0 ? value : 0};
    world_.sum(shared);
    return shared[0];
  }

  // The smallest and largest micro-batch of each division first, as the others lie between them; then by halves.
  static std::vector<PieceSize> by_importance(std::vector<PieceSize> sizes) {
    std::map<std::pair<std::int64_t, std::int64_t>, std::vector<std::int64_t>> of_division;
    for (const PieceSize& size : sizes) of_division[{size.tensor, size.pipeline}].push_back(size.samples);
    std::vector<std::vector<PieceSize>> turns;
    for (auto& [division, samples] : of_division) {
      std::sort(samples.begin(), samples.end());
      std::vector<PieceSize> turn;
      std::set<std::size_t> taken;
      const std::size_t last = samples.size() - 1;
      for (std::size_t parts = 1; taken.size() < samples.size(); parts *= 2) {
        for (std::size_t i = 0; i <= parts; ++i) {
          const std::size_t at = i * last / parts;
          if (taken.insert(at).second) turn.push_back({samples[at], division.first, division.second});
        }
      }
      turns.push_back(std::move(turn));
    }
    std::vector<PieceSize> ordered;
    for (std::size_t i = 0; ordered.size() < sizes.size(); ++i) {
      for (const auto& turn : turns) {
        if (i < turn.size()) ordered.push_back(turn[i]);
      }
    }
    return ordered;
  }

  double bytes_of(const RunPlan& shape) const {
    const plan::LocalGraph local = plan::shard(shape.graph, shape.mesh.tensor, 0);
    const ParameterLayout parameters = lay_out_parameters(shape, local, {});
    const StageLayout layout = training_layout(shape, local, pool_.threads());
    double bytes = sizeof(float) * static_cast<double>(parameters.weight_elements + parameters.gradient_elements);
    for (const std::size_t region : layout.bytes) bytes += 2 * static_cast<double>(region);
    return bytes;
  }
  static StageLayout training_layout(const RunPlan& shape, const plan::LocalGraph& local, int threads) {
    return lay_out({.graph = shape.graph,
                    .local = local,
                    .nodes = shape.nodes(StageId(0)),
                    .samples = shape.micro_batch_samples,
                    .threads = threads,
                    .training = true,
                    .split_backward = true,
                    .precision = matmul_precision(shape.config),
                    .with_loss = true});
  }

  // Each group of tensor ranks walks its stage; of more stages than groups, several one after the other.
  void measure(const PieceSize& size, double seconds) {
    const auto width = static_cast<int>(in_groups(size.tensor) ? size.tensor : 1);
    const std::int64_t groups = world_.size() / width;
    const auto group = world_.split(world_.rank() / width, world_.rank() % width);
    const std::vector<Range> cut = plan::balanced_cut(flops_, std::min(size.pipeline, std::ssize(flops_)));
    const std::int64_t turns = (std::ssize(cut) + groups - 1) / groups;
    for (std::int64_t turn = 0; turn < turns; ++turn) {
      const std::int64_t at = turn * groups + world_.rank() / width;
      walk(size, cut[static_cast<std::size_t>(at % std::ssize(cut))], *group, seconds / static_cast<double>(turns));
    }
  }

  // Pieces of a stage as one stretch, or, where it does not fit the memory, its first ones that do. All ranks make as
  // many rounds.
  void walk(const PieceSize& size, Range stage, comm::Communicator& group, double seconds) {
    const auto& pieces = plan_.graph.pieces;
    const auto shape_of = [&](Range range) {
      const Range nodes{pieces[static_cast<std::size_t>(range.begin)].node_begin,
                        pieces[static_cast<std::size_t>(range.end - 1)].node_end};
      return stretch_of(plan_, nodes, size.samples, size.tensor);
    };
    RunPlan shape = shape_of(stage);
    double fits[1] = {bytes_of(shape) <= memory_ ? 0.0 : 1.0};
    for (world_.max(fits); fits[0] > 0; world_.max(fits)) {
      if (stage.size() > 1) stage.end = stage.begin + stage.size() / 2;
      shape = shape_of(stage);
      fits[0] = bytes_of(shape) <= memory_ || stage.size() == 1 ? 0.0 : 1.0;
    }
    StageWalk stretch(shape, group.size() > 1 ? group.rank() : 0, group, data_, pool_);
    stretch.round(false);
    const auto started = Clock::now();
    std::vector<double> mine;
    std::vector<double> slowest;
    for (int round = 0; round < kMostRounds; ++round) {
      const double left = agreed(seconds - std::chrono::duration<double>(Clock::now() - started).count());
      if (left <= 0 && round >= kFewestRounds) break;
      const auto begun = Clock::now();
      stretch.round(true);
      double taken[1] = {std::chrono::duration<double>(Clock::now() - begun).count()};
      mine.push_back(taken[0]);
      world_.max(taken);
      slowest.push_back(taken[0]);
    }
    if (size.tensor == 1 && size.pipeline == 1) add_rounds(size.samples, mine, slowest);
    for (std::int64_t i = stage.begin; i < stage.end; ++i) {
      turn_[key_of(i, size)].add(stretch.visits(), static_cast<std::size_t>(i - stage.begin));
    }
  }

  // Of rounds that ranks begin together and do not wait for each other in.
  void add_rounds(std::int64_t samples, const std::vector<double>& mine, const std::vector<double>& slowest) {
    double typical[1] = {median(mine)};
    world_.sum(typical);
    unevenness_[samples].push_back(median(slowest) * world_.size() / typical[0]);
  }

  using Key = std::tuple<std::size_t, std::int64_t, std::int64_t, std::int64_t>;  // kind, tensor, pipeline, samples
  Key key_of(std::int64_t piece, const PieceSize& size) const {
    return {kind_of_[static_cast<std::size_t>(piece)], size.tensor, size.pipeline, size.samples};
  }
  std::string keys_text() const {
    std::string text;
    for (const auto& [key, seconds] : best_) {
      text += fmt::format("{} {} {} {}\n", std::get<0>(key), std::get<1>(key), std::get<2>(key), std::get<3>(key));
    }
    return text;
  }
  static void add_keys(const std::string& text, std::map<Key, bool>& keys) {
    std::istringstream lines(text);
    Key key;
    while (lines >> std::get<0>(key) >> std::get<1>(key) >> std::get<2>(key) >> std::get<3>(key)) keys[key] = true;
  }

  comm::Communicator& world_;
  const RunPlan& plan_;
  const storage::Dataset& data_;
  ThreadPool& pool_;
  double memory_ = 0;
  std::vector<std::string> signatures_;                     // [kind of piece]
  std::vector<std::size_t> kind_of_;                        // [piece]
  std::vector<double> flops_;                               // [piece]
  std::map<std::int64_t, std::vector<double>> unevenness_;  // [samples of a round]
  std::map<Key, Seen> turn_;
  std::map<Key, plan::PassSeconds> best_;  // of all turns
};

// What sums over tensor ranks take of each measured piece, by the sum's own measure; where the ranks did not make such
// groups, the pieces were measured without them and they are added.
void add_sums(plan::CostModel& costs, const model::Graph& graph, const PieceProfiler& profiler) {
  std::map<std::string, const model::Unit*> piece_of;
  for (const model::Unit& piece : graph.pieces) piece_of.emplace(plan::signature(graph, piece), &piece);
  for (plan::MeasuredPiece& measured : costs.pieces) {
    if (measured.tensor == 1) continue;
    const plan::LocalGraph local = plan::shard(graph, measured.tensor, 0);
    const model::Unit& piece = *piece_of.at(measured.piece);
    const plan::PassSeconds sums = plan::tensor_sums(costs, graph, local, {piece.node_begin, piece.node_end},
                                                     measured.samples, measured.tensor, true);
    if (profiler.in_groups(measured.tensor)) {
      measured.seconds.sums = sums.sums;
    } else {
      measured.seconds += sums;
    }
  }
}

}  // namespace

plan::CostModel profile(comm::Communicator& world, const config::Config& config, const storage::Dataset& data,
                        const ProfileOptions& options) {
  RunPlan plan;
  plan.config = config;
  plan.graph = model::build(config);
  plan::Rejections rejected;
  const std::int64_t ranks = options.ranks > 0 ? options.ranks : world.size();
  const std::vector<PieceSize> sizes = plan::piece_sizes(plan::legal_sizes(config, plan.graph, ranks, rejected));
  if (sizes.empty()) {
    throw Error(ExitCode::Usage,
                "profile: this model and batch fit no layout of that many ranks; `trainer plan` says "
                "why");
  }
  plan::CostModel costs;
  costs.measured = true;
  costs.machine = options.machine;
  costs.machine.precision = config.training.precision == config::Precision::BFloat16 ? "bfloat16" : "float32";
  costs.machine.ranks = world.size();
  costs.machine.threads = options.threads;
  costs.core_flops = options.core_flops;
  ThreadPool pool(options.threads, options.spin);
  PieceProfiler profiler(world, plan, data, pool);
  profiler.run(sizes, kShareOfPieces * options.seconds);
  costs.pieces = profiler.pieces();
  costs.unevenness = profiler.unevenness();
  profile_step(world, plan, pool, (1 - kShareOfPieces) * options.seconds, costs);
  add_sums(costs, plan.graph, profiler);
  return costs;
}

}  // namespace trainer::runtime
