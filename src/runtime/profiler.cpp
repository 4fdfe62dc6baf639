#include "trainer/runtime/profiler.hpp"

#include <algorithm>
#include <chrono>
#include <map>
#include <set>

#include "profile_step.hpp"
#include "stage_walk.hpp"
#include "trainer/comm/topology.hpp"
#include "trainer/core/error.hpp"
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
  constexpr double kMost = 3;
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
    for (const model::Unit& piece : plan.graph.pieces) signatures_.push_back(plan::signature(plan.graph, piece));
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

  std::vector<plan::MeasuredPiece> pieces() {
    std::vector<plan::MeasuredPiece> all;
    for (const auto& [key, mine] : best_) {
      double sums[4] = {mine.forward, mine.backward_input, mine.backward_weight, mine.backward};
      world_.sum(sums);
      const double n = world_.size();
      all.push_back({.piece = std::get<0>(key),
                     .samples = std::get<2>(key),
                     .tensor = std::get<1>(key),
                     .seconds = {sums[0] / n, sums[1] / n, sums[2] / n, sums[3] / n, 0}});
    }
    return all;  // the map's order is the model's
  }

  /// How much longer the slowest rank takes at a time than the mean of all, 1: no longer.
  double unevenness() const { return std::max(1.0, median(unevenness_)); }

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
    std::map<std::int64_t, int> measured;  // [tensor] sizes
    for (const PieceSize& size : sizes) {
      const double left = agreed(seconds - std::chrono::duration<double>(Clock::now() - begin).count());
      if (left <= 0 && !(first && measured[size.tensor] < 2)) return;
      walk(size, 0, plan_.graph.pieces.size(), left * weight_of(size) / weight);
      weight -= weight_of(size);
      ++measured[size.tensor];
    }
  }

  static double weight_of(const PieceSize& size) {
    return 1 + static_cast<double>(size.samples) / static_cast<double>(size.tensor);
  }
  /// The first rank's.
  double agreed(double value) {
    double shared[1] = {world_.rank() == 0 ? value : 0};
    world_.sum(shared);
    return shared[0];
  }

  // The smallest and largest micro-batch of each division first, as the others lie between them; then by halves.
  static std::vector<PieceSize> by_importance(std::vector<PieceSize> sizes) {
    std::map<std::int64_t, std::vector<std::int64_t>> of_tensor;
    for (const PieceSize& size : sizes) of_tensor[size.tensor].push_back(size.samples);
    std::vector<std::vector<PieceSize>> turns;
    for (auto& [tensor, samples] : of_tensor) {
      std::sort(samples.begin(), samples.end());
      std::vector<PieceSize> turn;
      std::set<std::size_t> taken;
      const std::size_t last = samples.size() - 1;
      for (std::size_t parts = 1; taken.size() < samples.size(); parts *= 2) {
        for (std::size_t i = 0; i <= parts; ++i) {
          const std::size_t at = i * last / parts;
          if (taken.insert(at).second) turn.push_back({samples[at], tensor});
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

  // Pieces [begin, end) as one stretch, or as two halves where they do not fit the memory.
  void walk(const PieceSize& size, std::size_t begin, std::size_t end, double seconds) {
    const auto& pieces = plan_.graph.pieces;
    const Range nodes{pieces[begin].node_begin, pieces[end - 1].node_end};
    const RunPlan shape = stretch_of(plan_, nodes, size.samples, size.tensor);
    if (bytes_of(shape) > memory_) {
      if (end - begin == 1) return;  // fits no rank alone, so no layout has it
      const std::size_t middle = begin + (end - begin) / 2;
      walk(size, begin, middle, seconds / 2);
      return walk(size, middle, end, seconds / 2);
    }
    bool fresh = false;
    for (std::size_t i = begin; i < end; ++i) fresh = fresh || !turn_.contains(key_of(i, size));
    if (!fresh) return;
    const bool groups = in_groups(size.tensor);
    const int rank = world_.rank();
    const auto width = static_cast<int>(groups ? size.tensor : 1);
    const auto group = world_.split(rank / width, rank % width);
    StageWalk stretch(shape, groups ? rank % width : 0, *group, data_, pool_);
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
    if (size.tensor == 1) add_rounds(mine, slowest);
    for (std::size_t i = begin; i < end; ++i) turn_[key_of(i, size)].add(stretch.visits(), i - begin);
  }

  // Of rounds that ranks begin together and do not wait for each other in.
  void add_rounds(const std::vector<double>& mine, const std::vector<double>& slowest) {
    double typical[1] = {median(mine)};
    world_.sum(typical);
    unevenness_.push_back(median(slowest) * world_.size() / typical[0]);
  }

  using Key = std::tuple<std::string, std::int64_t, std::int64_t>;  // signature, tensor, samples: the profile's order
  Key key_of(std::size_t piece, const PieceSize& size) const {
    return {signatures_[piece], size.tensor, size.samples};
  }

  comm::Communicator& world_;
  const RunPlan& plan_;
  const storage::Dataset& data_;
  ThreadPool& pool_;
  double memory_ = 0;
  std::vector<std::string> signatures_;  // [piece]
  std::vector<double> unevenness_;       // [stretch]
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
    throw Error(ExitCode::Usage, "profile: this model and batch fit no layout of that many ranks; `trainer plan` says "
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
