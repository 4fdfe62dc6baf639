#include "trainer/runtime/planner.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "trainer/core/error.hpp"
#include "trainer/observe/reporters.hpp"
#include "trainer/optim/optimizer.hpp"
#include "trainer/runtime/plan_costs.hpp"
#include "trainer/runtime/recompute.hpp"

namespace trainer::runtime {

namespace {

using plan::LayoutSize;

// Work that a search may take: seconds, on any machine of today.
constexpr std::int64_t kFewForwards = 60'000;   // of all tables together: then all layouts are simulated, else
constexpr int kMostPlans = 250;                 // whole plans made, of those with the lowest bounds,
constexpr std::size_t kMostFits = 4;            // searches for what to recompute at least, for the fastest,
constexpr double kShareOfSearch = 0.02;         // with this share of the usual search for a cut,
constexpr std::int64_t kMostOfTable = 1 << 16;  // and no table of more forwards than this
constexpr std::size_t kMostAutomatic = 3;  // meshes and batches, the fastest ones, that get a schedule of their own

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
constexpr Order kOrders[] = {{Name::OneFOneB, true},       {Name::OneFOneB, false},      {Name::ZeroBubbleH1, true},
                             {Name::ZeroBubbleH2, true},   {Name::Automatic, true},      {Name::GPipe, true},
                             {Name::GPipe, false},         {Name::Interleaved, true, 2}, {Name::Interleaved, true, 4},
                             {Name::ZeroBubbleV, true, 2}, {Name::DualPipeV, true, 2},   {Name::Automatic, true, 2}};
class Planner {
 public:
  explicit Planner(const PlannerRequest& request) : r_(request), graph_(model::build(request.config)) {}

  PlannedLayouts run() {
    const std::vector<LayoutSize> sizes = plan::legal_sizes(r_.config, graph_, r_.ranks, rejections_);
    std::int64_t forwards = 0;
    for (const LayoutSize& size : sizes) forwards += size.pipeline * size.micro_batches;
    all_ = forwards <= kFewForwards;
    costs_ = r_.costs;
    costs_.share_of_search = all_ ? 1 : kShareOfSearch;
    std::vector<Candidate> candidates;
    for (const LayoutSize& size : sizes) add_candidates(size, candidates);
    const auto lower = [](const Candidate& a, const Candidate& b) { return a.bound < b.bound; };
    std::stable_sort(candidates.begin(), candidates.end(), lower);
    for (const Candidate& candidate : candidates) {
      if (all_ || worth_a_plan(candidate)) {
        consider(candidate);
      } else {
        ++result_.bounded;
      }
    }
    if (all_) {
      try_automatic();
    } else if (r_.memory > 0) {
      refine();
    }
    result_.rejected = rejections_.all();
    return std::move(result_);
  }

 private:
  bool has_profile() const { return r_.costs.model->measured && !r_.config.parallel.profile.empty(); }
  config::PartitionRule best_cut() const {
    return has_profile() ? config::PartitionRule::Profile : config::PartitionRule::Flops;
  }

  void add_candidates(const LayoutSize& size, std::vector<Candidate>& to) {
    if (!fits_at_all(size)) return;
    Candidate candidate{.size = size, .bound = lower_bound(size)};
    candidate.split_backward = true;
    if (size.pipeline == 1) return add_recompute(candidate, to);
    for (const Order& order : kOrders) {
      if (size.pipeline * order.chunks > std::ssize(graph_.units)) continue;
      if (order.schedule == Name::Automatic || (!all_ && order.schedule == Name::GPipe)) continue;
      candidate.schedule = order.schedule;
      candidate.split_backward = order.split_backward;
      candidate.chunks = order.chunks;
      candidate.cut = best_cut();
      add_recompute(candidate, to);
      // Other cuts are for comparing with schedules that people know.
      if (!all_ || order.chunks > 1) continue;
      for (const auto cut :
           {config::PartitionRule::Flops, config::PartitionRule::Parameters, config::PartitionRule::Uniform}) {
        candidate.cut = cut;
        if (cut != best_cut()) to.push_back(candidate);
      }
    }
  }

  // A schedule of their own for the meshes and batches that are fastest with the published ones.
  void try_automatic() {
    std::vector<LayoutSize> fastest;
    for (const PlannedLayout& layout : result_.ranked) {
      const bool known = std::find(fastest.begin(), fastest.end(), layout.size) != fastest.end();
      if (layout.size.pipeline > 1 && !known && fastest.size() < kMostAutomatic) fastest.push_back(layout.size);
    }
    for (const LayoutSize& size : fastest) {
      for (const Order& order : kOrders) {
        if (order.schedule != Name::Automatic || size.pipeline * order.chunks > std::ssize(graph_.units)) continue;
        consider({.size = size,
                  .schedule = order.schedule,
                  .split_backward = true,
                  .chunks = order.chunks,
                  .cut = best_cut()});
      }
    }
  }

  // With nothing recomputed, and with everything; under a cap what does not fit recomputes the least that does instead.
  void add_recompute(Candidate candidate, std::vector<Candidate>& to) const {
    to.push_back(candidate);
    candidate.recompute = config::Recompute::Full;
    if (r_.memory <= 0 && all_) to.push_back(candidate);
  }

  // What the rank that has most has at least: an even share of weights, gradients and optimizer state, and of one
  // micro-batch what flows between pieces.
  bool fits_at_all(const LayoutSize& size) {
    if (r_.memory <= 0) return true;
    const auto elements = static_cast<double>(model::parameter_elements(graph_));
    const bool one_node = r_.costs.machines.node_of_rank.empty();
    const int states = optim::make_optimizer(r_.config.optimizer)->state_count();
    const double state = static_cast<double>(states) / (one_node ? static_cast<double>(size.data) : 1.0);
    double least = sizeof(float) * elements * (2 + state) / static_cast<double>(size.tensor);
    for (const model::Unit& piece : graph_.pieces) least += costs_of(size).boundary_bytes(piece.node_begin);
    least /= static_cast<double>(size.pipeline);
    if (least <= r_.memory) return true;
    reject_for_memory(size, fmt::format(": at least {}", observe::human_bytes(least)));
    return false;
  }
  void reject_for_memory(const LayoutSize& size, const std::string& more) {
    rejections_.add(fmt::format("a rank would need more than the {} it may take", observe::human_bytes(r_.memory)),
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
      largest =
          std::max(largest, piece.forward + std::min(piece.backward, piece.backward_input + piece.backward_weight));
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
    config.training.recompute = candidate.recompute;
    config.training.recompute_layers.clear();
    if (candidate.recompute == config::Recompute::Auto) {
      config.parallel.memory_per_rank = static_cast<std::int64_t>(r_.memory);
    }
    config.training.micro_batches = candidate.size.micro_batches;
    config.training.micro_batch_size = candidate.size.samples;
    return config;
  }

  // Of many: whether it may be among the fastest, and there is time for it.
  bool worth_a_plan(const Candidate& candidate) {
    const auto wanted = static_cast<std::size_t>(std::max<std::int64_t>(1, r_.wanted));
    const std::vector<PlannedLayout>& best = result_.ranked;
    if (best.size() >= wanted && candidate.bound > best[wanted - 1].prediction.step_seconds) return false;
    if (candidate.size.pipeline * candidate.size.micro_batches > kMostOfTable) return false;
    return plans_++ < kMostPlans;
  }

  void consider(Candidate candidate) {
    PlannedLayout layout;
    layout.size = candidate.size;
    layout.config = configured(candidate);
    RunPlan plan;
    try {
      plan = make_plan(layout.config, r_.ranks, costs_);
    } catch (const Error& error) {
      if (error.code() != ExitCode::Usage) throw;
      return rejections_.add(error.what(), plan::to_string(candidate.size));
    }
    std::string key = fmt::format("{} {} {} {} {} {}", plan::to_string(candidate.size), candidate.size.micro_batches,
                                  config::name_of(candidate.schedule), candidate.chunks, candidate.split_backward,
                                  static_cast<int>(candidate.recompute));
    for (const Range nodes : plan.stage_nodes) key += fmt::format(" {}", nodes.end);
    if (!seen_.insert(key).second) return;
    layout.memory = peak_memory(plan, r_.threads, r_.data_bytes);
    if (r_.memory > 0 && static_cast<double>(layout.memory) > r_.memory && !recompute(candidate, plan, layout)) {
      return reject_for_memory(candidate.size, fmt::format(", {} micro-batches, {}: {}", candidate.size.micro_batches,
                                                           config::name_of(candidate.schedule),
                                                           observe::human_bytes(static_cast<double>(layout.memory))));
    }
    keep(plan, std::move(layout));
  }

  // The least that fits, or everything, as the search for the least takes its time. False: not even that is enough.
  bool recompute(Candidate candidate, RunPlan& plan, PlannedLayout& layout) const {
    candidate.recompute = all_ ? config::Recompute::Auto : config::Recompute::Full;
    layout.config = configured(candidate);
    if (all_) {
      plan.config.training.recompute = config::Recompute::Auto;
      fit_recompute(plan, r_.threads, r_.data_bytes, {.bytes = static_cast<std::size_t>(r_.memory), .own = false});
    } else {
      plan = make_plan(layout.config, r_.ranks, costs_);
    }
    layout.memory = peak_memory(plan, r_.threads, r_.data_bytes);
    return static_cast<double>(layout.memory) <= r_.memory;
  }

  // Of many layouts the fastest ones get what recomputes least.
  void refine() {
    std::vector<PlannedLayout> fastest;
    while (fastest.size() < kMostFits && !result_.ranked.empty()) {
      fastest.push_back(std::move(result_.ranked.front()));
      result_.ranked.erase(result_.ranked.begin());
    }
    for (PlannedLayout& layout : fastest) {
      RunPlan plan = make_plan(layout.config, r_.ranks, costs_);
      if (!plan.recompute.empty()) {
        layout.config.training.recompute = plan.config.training.recompute = config::Recompute::Auto;
        layout.config.parallel.memory_per_rank = static_cast<std::int64_t>(r_.memory);
        fit_recompute(plan, r_.threads, r_.data_bytes, {.bytes = static_cast<std::size_t>(r_.memory), .own = false});
        layout.memory = peak_memory(plan, r_.threads, r_.data_bytes);
      }
      layout.stages.clear();
      keep(plan, std::move(layout));
    }
  }

  void keep(const RunPlan& plan, PlannedLayout layout) {
    for (const Range nodes : plan.stage_nodes) {
      if (plan.stages() == 1) break;
      layout.stages += (layout.stages.empty() ? "" : " | ") + plan::describe_stage(plan.graph, nodes);
    }
    layout.recompute = plan.recompute.empty()                                      ? "none"
                       : plan.config.training.recompute == config::Recompute::Full ? "full"
                                                                                   : "auto";
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
  PlanCosts costs_;
  bool all_ = false;  // everything is simulated
  int plans_ = 0;
  std::set<std::string> seen_;  // a cut that another rule has found already is the same layout
  plan::Rejections rejections_;
  std::map<plan::PieceSize, std::unique_ptr<plan::PieceCosts>> pieces_;
  PlannedLayouts result_;
};

}  // namespace

PlannedLayouts plan_all(const PlannerRequest& request) { return Planner(request).run(); }

}  // namespace trainer::runtime
