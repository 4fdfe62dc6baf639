#include "trainer/runtime/planner.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "trainer/core/error.hpp"
#include "trainer/runtime/plan_costs.hpp"
#include "trainer/runtime/recompute.hpp"

namespace trainer::runtime {

namespace {

using plan::LayoutSize;

// Work that a search may take, in forwards of simulated tables: seconds, on any machine of today.
constexpr std::int64_t kFewForwards = 200'000;    // all layouts are simulated
constexpr std::int64_t kMostForwards = 1'500'000;  // of a search that prunes
constexpr std::int64_t kMostMicroBatchesATable = 4096;

// A layout size with a rule for the order of work and one for the cut.
struct Candidate {
  LayoutSize size;
  config::ScheduleName schedule = config::ScheduleName::OneFOneB;
  bool split_backward = false;
  std::int64_t chunks = 1;
  config::PartitionRule cut = config::PartitionRule::Flops;
  config::Recompute recompute = config::Recompute::None;
  double bound = 0;  // seconds that a step takes at least
};

struct Order {
  config::ScheduleName schedule;
  bool split_backward;
  std::int64_t chunks = 1;
};
// Of more than one pipeline rank. Where the table of one is another's, both stay: they are what people ask for by name.
using Name = config::ScheduleName;
constexpr Order kOrders[] = {
    {Name::OneFOneB, true},       {Name::OneFOneB, false},       {Name::ZeroBubbleH1, true},
    {Name::ZeroBubbleH2, true},   {Name::Automatic, true},       {Name::GPipe, true},
    {Name::GPipe, false},         {Name::Interleaved, true, 2},  {Name::Interleaved, true, 4},
    {Name::ZeroBubbleV, true, 2}, {Name::DualPipeV, true, 2},    {Name::Automatic, true, 2}};
// What a long table of these takes to make is more than what it may save.
constexpr std::int64_t kMostOfAutomatic = 4096;  // forwards

class Planner {
 public:
  explicit Planner(const PlannerRequest& request) : r_(request), graph_(model::build(request.config)) {}

  PlannedLayouts run() {
    std::vector<LayoutSize> sizes = plan::legal_sizes(r_.config, graph_, r_.ranks, rejections_);
    std::int64_t forwards = 0;
    for (const LayoutSize& size : sizes) forwards += size.pipeline * size.micro_batches;
    const bool all = forwards <= kFewForwards;
    std::vector<Candidate> candidates;
    for (const LayoutSize& size : sizes) add_candidates(size, all, candidates);
    std::stable_sort(candidates.begin(), candidates.end(), [](const auto& a, const auto& b) { return a.bound < b.bound; });
    evaluate(candidates, all);
    result_.rejected = rejections_.all();
    return std::move(result_);
  }

 private:
  bool has_profile() const { return r_.costs.model->measured && !r_.config.parallel.profile.empty(); }

  void add_candidates(const LayoutSize& size, bool all, std::vector<Candidate>& to) {
    if (!fits_at_all(size)) return;
    const double bound = lower_bound(size);
    const config::PartitionRule best = has_profile() ? config::PartitionRule::Profile : config::PartitionRule::Flops;
    if (size.pipeline == 1) {
      add_recompute({size, config::ScheduleName::OneFOneB, true, 1, config::PartitionRule::Flops,
                     config::Recompute::None, bound},
                    to);
      return;
    }
    std::vector<config::PartitionRule> cuts = {best};
    if (all) {
      for (const auto rule :
           {config::PartitionRule::Flops, config::PartitionRule::Parameters, config::PartitionRule::Uniform}) {
        if (rule != best) cuts.push_back(rule);
      }
    }
    for (const Order& order : kOrders) {
      if (size.pipeline * order.chunks > std::ssize(graph_.units)) continue;
      const bool automatic = order.schedule == Name::Automatic;
      if (automatic && size.pipeline * order.chunks * size.micro_batches > kMostOfAutomatic) continue;
      for (const auto cut : cuts) {
        // Other cuts than the best are for comparing with schedules that people know.
        if (cut != best && (automatic || order.chunks > 1)) continue;
        const Candidate candidate{size, order.schedule, order.split_backward,           order.chunks,
                                  cut,  config::Recompute::None, bound};
        if (cut == best && all) {
          add_recompute(candidate, to);
        } else {
          to.push_back(candidate);
        }
      }
    }
  }

  // With nothing recomputed, and with everything; under a cap what does not fit recomputes the least that does instead.
  void add_recompute(Candidate candidate, std::vector<Candidate>& to) const {
    to.push_back(candidate);
    candidate.recompute = config::Recompute::Full;
    if (r_.memory <= 0) to.push_back(candidate);
  }

  // Weights and gradients alone, evenly divided.
  bool fits_at_all(const LayoutSize& size) {
    if (r_.memory <= 0) return true;
    const auto elements = static_cast<double>(model::parameter_elements(graph_));
    const double least = 2 * sizeof(float) * elements / static_cast<double>(size.pipeline * size.tensor);
    if (least <= r_.memory) return true;
    reject_for_memory(size, "");
    return false;
  }
  void reject_for_memory(const LayoutSize& size, const std::string& more) {
    rejections_.add(fmt::format("a rank would need more than the {:.4g} GiB it may take", r_.memory / 0x1p30),
                    plan::to_string(size) + more);
  }

  const plan::PieceCosts& costs_of(const LayoutSize& size) {
    const plan::PieceSize key{size.samples, size.tensor, size.pipeline};
    std::unique_ptr<plan::PieceCosts>& costs = pieces_[key];
    if (costs == nullptr) {
      costs = std::make_unique<plan::PieceCosts>(*r_.costs.model, graph_, key, tensor_on_one_node(size.tensor),
                                                 r_.config.training.precision == config::Precision::BFloat16);
    }
    return *costs;
  }
  bool tensor_on_one_node(std::int64_t tensor) const {
    const std::vector<int>& node = r_.costs.machines.node_of_rank;
    for (std::size_t rank = 0; rank < node.size(); rank += static_cast<std::size_t>(tensor)) {
      if (node[rank] != node[rank + static_cast<std::size_t>(tensor) - 1]) return false;
    }
    return true;
  }

  // No cut of the pieces and no order of work is faster: the work evenly divided, or the largest piece alone, on the
  // fastest ranks; the first micro-batch's way to the last stage, and the last one's way back.
  double lower_bound(const LayoutSize& size) {
    const plan::PieceCosts& costs = costs_of(size);
    plan::PassSeconds all;
    double largest = 0;
    for (const plan::PassSeconds& piece : costs.pieces()) {
      all += piece;
      largest = std::max(largest, piece.forward + std::min(piece.backward, piece.backward_input + piece.backward_weight));
    }
    const auto p = static_cast<double>(size.pipeline);
    const auto m = static_cast<double>(size.micro_batches);
    const double work = all.forward + std::min(all.backward, all.backward_input + all.backward_weight);
    const double fill = (p - 1) / p * (all.forward + all.backward_input) / p;
    double fastest = 1;
    for (const double speed : r_.costs.machines.speed) fastest = std::max(fastest, speed);
    const auto weights = static_cast<double>(model::parameter_elements(graph_)) / p / static_cast<double>(size.tensor);
    const double after = plan::sum_seconds(*r_.costs.model, weights / static_cast<double>(size.data), size.data, true);
    return (m * std::max(work / p, largest) + fill) / fastest + after;
  }

  config::Config configured(const Candidate& candidate) const {
    config::Config config = r_.config;
    config.parallel.data = candidate.size.data;
    config.parallel.pipeline = candidate.size.pipeline;
    config.parallel.tensor = candidate.size.tensor;
    config.parallel.schedule = candidate.schedule;
    config.parallel.split_backward = candidate.split_backward;
    config.parallel.chunks = candidate.chunks;
    config.parallel.partition = candidate.cut;
    config.parallel.partition_units.clear();
    const bool by_profile =
        candidate.cut == config::PartitionRule::Profile || candidate.schedule == config::ScheduleName::Automatic;
    if (!by_profile) config.parallel.profile.clear();
    config.training.recompute = candidate.recompute;
    config.training.recompute_layers.clear();
    if (candidate.recompute == config::Recompute::Auto) {
      config.parallel.memory_per_rank = static_cast<std::int64_t>(r_.memory);
    }
    config.training.micro_batches = candidate.size.micro_batches;
    config.training.micro_batch_size = candidate.size.samples;
    return config;
  }

  void evaluate(const std::vector<Candidate>& candidates, bool all) {
    const auto wanted = static_cast<std::size_t>(r_.wanted > 0 ? r_.wanted : std::ssize(candidates));
    std::int64_t forwards = 0;
    std::set<std::string> seen;  // a cut that another rule has found already is the same layout
    for (const Candidate& candidate : candidates) {
      const bool beaten = result_.ranked.size() >= wanted &&
                          candidate.bound > result_.ranked[wanted - 1].prediction.step_seconds;
      const std::int64_t cost = candidate.size.pipeline * candidate.size.micro_batches;
      if (!all && (beaten || forwards + cost > kMostForwards ||
                   candidate.size.micro_batches > kMostMicroBatchesATable)) {
        ++result_.bounded;
        continue;
      }
      forwards += cost;
      consider(candidate, seen);
    }
  }

  void consider(Candidate candidate, std::set<std::string>& seen) {
    PlannedLayout layout;
    layout.size = candidate.size;
    layout.config = configured(candidate);
    RunPlan plan;
    try {
      plan = make_plan(layout.config, r_.ranks, r_.costs);
    } catch (const Error& error) {
      if (error.code() != ExitCode::Usage) throw;
      return rejections_.add(error.what(), plan::to_string(candidate.size));
    }
    std::string key = fmt::format("{} {} {} {} {} {}", plan::to_string(candidate.size), candidate.size.micro_batches,
                                  config::name_of(candidate.schedule), candidate.chunks, candidate.split_backward,
                                  static_cast<int>(candidate.recompute));
    for (const Range nodes : plan.stage_nodes) key += fmt::format(" {}", nodes.end);
    if (!seen.insert(key).second) return;
    layout.memory = peak_memory(plan, r_.threads, r_.data_bytes);
    if (r_.memory > 0 && static_cast<double>(layout.memory) > r_.memory) {
      candidate.recompute = config::Recompute::Auto;
      layout.config = configured(candidate);
      plan.config.training.recompute = config::Recompute::Auto;
      fit_recompute(plan, r_.threads, r_.data_bytes, {.bytes = static_cast<std::size_t>(r_.memory), .own = false});
      layout.memory = peak_memory(plan, r_.threads, r_.data_bytes);
      if (static_cast<double>(layout.memory) > r_.memory) {
        return reject_for_memory(candidate.size,
                                 fmt::format(", {} micro-batches, {}: {:.4g} GiB", candidate.size.micro_batches,
                                             config::name_of(candidate.schedule),
                                             static_cast<double>(layout.memory) / 0x1p30));
      }
    }
    keep(plan, std::move(layout));
  }

  void keep(const RunPlan& plan, PlannedLayout layout) {
    for (const Range nodes : plan.stage_nodes) {
      if (plan.stages() == 1) break;
      layout.stages += (layout.stages.empty() ? "" : " | ") + plan::describe_stage(plan.graph, nodes);
    }
    layout.recompute = plan.recompute.empty() ? "none" : plan.config.training.recompute == config::Recompute::Full
                                                             ? "full"
                                                             : describe_recompute(plan);
    layout.prediction = predict(plan, *r_.costs.model, r_.costs.machines.speed);
    const auto better = [&](const PlannedLayout& other) {
      const double mine = layout.prediction.step_seconds;
      const double theirs = other.prediction.step_seconds;
      return mine < theirs || (mine == theirs && layout.memory < other.memory);
    };
    result_.ranked.insert(std::find_if(result_.ranked.begin(), result_.ranked.end(), better), std::move(layout));
  }

  const PlannerRequest& r_;
  const model::Graph graph_;
  plan::Rejections rejections_;
  std::map<plan::PieceSize, std::unique_ptr<plan::PieceCosts>> pieces_;
  PlannedLayouts result_;
};

}  // namespace

PlannedLayouts plan_all(const PlannerRequest& request) { return Planner(request).run(); }

}  // namespace trainer::runtime
