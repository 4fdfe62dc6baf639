#include "profile_step.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>

#include "trainer/comm/shared_memory.hpp"
#include "trainer/ops/sum.hpp"
#include "trainer/optim/optimizer.hpp"
#include "trainer/runtime/stage_messages.hpp"
#include "trainer/runtime/tensor_group.hpp"

namespace trainer::runtime {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kFewest = 5;
constexpr int kMost = 200;

class StepProfiler {
 public:
  StepProfiler(comm::Communicator& world, const RunPlan& plan, ThreadPool& pool, double seconds)
      : world_(world), plan_(plan), pool_(pool), seconds_each_(seconds / 10) {}

  void run(plan::CostModel& costs) {
    measure_memory(costs);
    measure_optimizer(costs);
    measure_sums(costs);
    measure_messages(costs);
    measure_agreement(costs);
  }

 private:
  // The median of several calls, all ranks at the same time, and the mean over ranks. `prepare` is not timed.
  double typical(const std::function<void()>& work, const std::function<void()>& prepare = {}) {
    std::vector<double> seen;
    const auto begin = Clock::now();
    for (int i = 0; i <= kMost; ++i) {
      double left[1] = {seconds_each_ - std::chrono::duration<double>(Clock::now() - begin).count()};
      world_.max(left);
      if (left[0] <= 0 && i > kFewest) break;
      if (prepare) prepare();
      world_.barrier();
      const auto start = Clock::now();
      work();
      if (i > 0) seen.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    }
    std::sort(seen.begin(), seen.end());
    double sum[1] = {seen[seen.size() / 2]};
    world_.sum(sum);
    return sum[0] / world_.size();
  }

  static std::vector<std::int64_t> sizes_to(std::int64_t most, std::int64_t least, std::int64_t factor) {
    std::vector<std::int64_t> sizes;
    for (std::int64_t n = most; n >= least; n /= factor) sizes.insert(sizes.begin(), n);
    if (sizes.empty()) sizes.push_back(most);
    return sizes;
  }

  void measure_memory(plan::CostModel& costs) {
    constexpr std::size_t kBytes = std::size_t{32} << 20;
    Buffer from(kBytes);
    Buffer to(kBytes);
    const double seconds = typical([&] { std::memcpy(to.data(), from.data(), kBytes); });
    costs.memory_bandwidth = 2 * kBytes / seconds / pool_.threads();
  }

  // Sizes of a stage's or a replica's part of the model: all of it, half, a quarter.
  void measure_optimizer(plan::CostModel& costs) {
    constexpr std::int64_t kMostElements = std::int64_t{32} << 20;
    const std::int64_t all = std::max<std::int64_t>(1024, model::parameter_elements(plan_.graph));
    const std::int64_t elements = std::min(all, kMostElements);
    const auto optimizer = optim::make_optimizer(plan_.config.optimizer);
    const std::size_t bytes = static_cast<std::size_t>(elements) * sizeof(float);
    std::vector<Buffer> memory;
    for (int i = 0; i < 2 + optimizer->state_count(); ++i) memory.emplace_back(bytes);
    std::vector<double> scratch(static_cast<std::size_t>(optim::norm_scratch(elements)));
    std::int64_t step = 0;
    for (const std::int64_t n : sizes_to(elements, std::max<std::int64_t>(1, elements / 8), 2)) {
      std::vector<optim::Segment> segments(1);
      segments[0].weight = memory[0].f32();
      segments[0].gradient = memory[1].f32();
      for (int s = 0; s < optimizer->state_count(); ++s) {
        segments[0].state[s] = memory[static_cast<std::size_t>(2 + s)].f32();
      }
      segments[0].count = n;
      const auto norm = [&] {
        optim::sum_of_squares(pool_, {memory[1].f32(), static_cast<std::size_t>(n)}, scratch.data());
      };
      const auto update = [&] { optimizer->update(pool_, segments, ++step, 1e-3, 1.0f); };
      costs.norm.points.emplace_back(static_cast<double>(n), typical(norm, update));
      costs.optimizer.points.emplace_back(static_cast<double>(n), typical(update, norm));
    }
  }

  // By all ranks of the node, or what adding two terms costs where there is one.
  void measure_sums(plan::CostModel& costs) {
    const auto ranks = world_.split_node();
    constexpr std::int64_t kMostElements = std::int64_t{4} << 20;
    TensorGroup group(*ranks, kMostElements);
    const auto sizes = sizes_to(kMostElements, 1024, 8);
    for (const std::int64_t n : sizes) group.book(n);
    Buffer other(static_cast<std::size_t>(kMostElements) * sizeof(float));
    Buffer to(other.size());
    for (const std::int64_t n : sizes) {
      const auto bytes = static_cast<std::size_t>(n) * sizeof(float);
      double seconds = 0;
      if (ranks->size() == 1) {
        const std::vector<const float*> terms = {other.f32(), to.f32()};
        seconds = typical([&] { ops::sum_terms(pool_, terms, to.f32(), n, false); });
      } else {
        const auto sum = [&] {
          group.start(n);
          group.finish(pool_, to.f32(), false);
        };
        seconds = typical(sum, [&] { std::memset(group.partial(), 1, bytes); });
      }
      const int terms = std::max(2, ranks->size());
      costs.sum.points.emplace_back(static_cast<double>(n * (terms + 1)), seconds);
    }
  }

  void measure_messages(plan::CostModel& costs) {
    const auto neighbours = world_.split_node();
    if (const auto link = measure_link(*neighbours)) costs.within = *link;
    // The first rank of each node speaks for it.
    const bool first = neighbours->rank() == 0;
    const auto firsts = world_.split(first ? 0 : 1, world_.rank());
    std::optional<plan::Link> between;
    if (first && firsts->size() > 1) between = measure_link(*firsts);
    double facts[3] = {0, 0, 0};
    if (between) {
      facts[0] = 1;
      facts[1] = between->latency;
      facts[2] = between->bandwidth;
    }
    world_.sum(facts);
    if (facts[0] > 0) costs.between = {facts[1] / facts[0], facts[2] / facts[0]};
  }

  // Pairs of ranks hand a message to and fro.
  std::optional<plan::Link> measure_link(comm::Communicator& ranks) {
    constexpr std::size_t kSmall = 64;
    constexpr std::size_t kLarge = std::size_t{1} << 20;
    StageMessages messages(ranks, kLarge, 1);
    if (ranks.size() < 2) return std::nullopt;
    const int peer = ranks.rank() ^ 1;
    double facts[3] = {0, 0, 0};
    if (peer < ranks.size()) {
      const double small = hop(ranks, messages, kSmall, peer, 0);
      const double large = hop(ranks, messages, kLarge, peer, 1);
      facts[0] = 1;
      facts[1] = small;
      // A pause in the small one must not make the large one free.
      constexpr double kFastest = 200e9;
      facts[2] = static_cast<double>(kLarge - kSmall) / std::max(kLarge / kFastest, large - small);
    }
    ranks.sum(facts);
    return plan::Link{facts[1] / facts[0], facts[2] / facts[0]};
  }

  static double hop(comm::Communicator& ranks, StageMessages& messages, std::size_t bytes, int peer, int tag) {
    Buffer to(bytes);
    const auto send = messages.make_send(messages.memory(), bytes, peer, tag);
    const auto receive = messages.make_receive(to.data(), bytes, peer, tag);
    const bool begins = ranks.rank() < peer;
    std::vector<double> seen;
    for (int i = 0; i < 2 * kMost; ++i) {
      const auto start = Clock::now();
      receive->start();
      const comm::WaitTag tag_of_wait{"a message to measure", peer, i};
      if (begins) send->start();
      comm::wait(*receive, tag_of_wait);
      if (!begins) send->start();
      comm::wait(*send, tag_of_wait);
      if (begins) seen.push_back(std::chrono::duration<double>(Clock::now() - start).count() / 2);
    }
    // Of a hop only the machine's pauses can take long.
    std::sort(seen.begin(), seen.end());
    double mine[1] = {seen.empty() ? 0 : seen[seen.size() / 4]};
    // The other one waits while this one's message travels: both take its time.
    const auto exchange_send = messages.make_send(messages.memory(), sizeof(double), peer, tag + 2);
    const auto exchange_receive = messages.make_receive(to.data(), sizeof(double), peer, tag + 2);
    std::memcpy(messages.memory(), mine, sizeof(double));
    exchange_receive->start();
    exchange_send->start();
    comm::wait(*exchange_receive, {"a measured time", peer, -1});
    comm::wait(*exchange_send, {"a measured time", peer, -1});
    double theirs = 0;
    std::memcpy(&theirs, to.data(), sizeof(double));
    return begins ? mine[0] : theirs;
  }

  void measure_agreement(plan::CostModel& costs) {
    std::vector<double> values(plan_.graph.parameters.size() + 2);
    const double seconds = typical([&] { world_.sum(values); });
    costs.agreement.points.emplace_back(static_cast<double>(values.size()), seconds);
  }

  comm::Communicator& world_;
  const RunPlan& plan_;
  ThreadPool& pool_;
  const double seconds_each_;
};

}  // namespace

void profile_step(comm::Communicator& world, const RunPlan& plan, ThreadPool& pool, double seconds,
                  plan::CostModel& costs) {
  StepProfiler(world, plan, pool, seconds).run(costs);
}

}  // namespace trainer::runtime
