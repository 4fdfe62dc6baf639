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

constexpr int kFewestRounds = 2;
constexpr int kMostRounds = 60;
constexpr double kShareOfPieces = 0.8;  // of the time

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
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
    return {median(forward), median(backward_input), median(backward_weight), median(backward), 0};
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

  /// Measures all sizes in about `seconds`; those that the time does not reach are left out, the extremes last.
  void run(std::vector<PieceSize> sizes, double seconds) {
    sizes = by_importance(std::move(sizes));
    const auto begin = Clock::now();
    double weight = 0;
    for (const PieceSize& size : sizes) weight += weight_of(size);
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      const double left = agreed(seconds - std::chrono::duration<double>(Clock::now() - begin).count());
      const bool needed = !measured_.contains(sizes[i].tensor) || measured_[sizes[i].tensor] < 2;
      if (left <= 0 && !needed) break;
      measure(sizes[i], left * weight_of(sizes[i]) / weight);
      weight -= weight_of(sizes[i]);
      ++measured_[sizes[i].tensor];
    }
  }

  std::vector<plan::MeasuredPiece> pieces() {
    std::vector<plan::MeasuredPiece> all;
    for (const auto& [key, seen] : seen_) {
      const plan::PassSeconds mine = seen.typical();
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

  /// Whether ranks of the world make groups of that many tensor ranks, so that sums were measured too.
  bool in_groups(std::int64_t tensor) const { return world_.size() % tensor == 0; }

 private:
  static double weight_of(const PieceSize& size) {
    return 1 + static_cast<double>(size.samples) / static_cast<double>(size.tensor);
  }
  double agreed(double value) {
    double shared[1] = {-value};
    world_.max(shared);
    return -shared[0];
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
    for (std::size_t i = begin; i < end; ++i) fresh = fresh || !seen_.contains(key_of(i, size));
    if (!fresh) return;
    const bool groups = in_groups(size.tensor);
    const int rank = world_.rank();
    const auto width = static_cast<int>(groups ? size.tensor : 1);
    const auto group = world_.split(rank / width, rank % width);
    StageWalk stretch(shape, groups ? rank % width : 0, *group, data_, pool_);
    stretch.round(false);
    const auto started = Clock::now();
    for (int round = 0; round < kMostRounds; ++round) {
      const double left = agreed(seconds - std::chrono::duration<double>(Clock::now() - started).count());
      if (left <= 0 && round >= kFewestRounds) break;
      stretch.round(true);
    }
    for (std::size_t i = begin; i < end; ++i) seen_[key_of(i, size)].add(stretch.visits(), i - begin);
  }

  void measure(const PieceSize& size, double seconds) { walk(size, 0, plan_.graph.pieces.size(), seconds); }

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
  std::map<Key, Seen> seen_;
  std::map<std::int64_t, int> measured_;  // [tensor] sizes
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
  profile_step(world, plan, pool, (1 - kShareOfPieces) * options.seconds, costs);
  add_sums(costs, plan.graph, profiler);
  return costs;
}

}  // namespace trainer::runtime
