#include "trainer/runtime/timeline.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <span>
#include <string>

namespace trainer::runtime {

namespace {

constexpr int kSizeTag = 1, kSpansTag = 2;  // of the world
constexpr std::size_t kFewestSpans = 1024;

bool is_step(const Span& span) { return span.activity == Activity::Step; }

// Byte strings of all ranks on rank 0, one after the other, so that no rank but this one holds more than its own.
std::vector<std::string> gather_on_first(comm::Communicator& world, std::string mine) {
  if (world.rank() != 0) {
    std::uint64_t size = mine.size();
    const auto announce = world.make_send(&size, sizeof(size), 0, kSizeTag);
    const auto send = world.make_send(mine.data(), mine.size(), 0, kSpansTag);
    announce->start();
    send->start();
    comm::wait(*announce, {"announcing a timeline", 0, -1});
    comm::wait(*send, {"sending a timeline", 0, -1});
    return {};
  }
  std::vector<std::string> all{std::move(mine)};
  for (int r = 1; r < world.size(); ++r) {
    std::uint64_t size = 0;
    const auto announced = world.make_receive(&size, sizeof(size), r, kSizeTag);
    announced->start();
    comm::wait(*announced, {"a timeline's size", r, -1});
    all.emplace_back(size, '\0');
    const auto receive = world.make_receive(all.back().data(), size, r, kSpansTag);
    receive->start();
    comm::wait(*receive, {"a timeline", r, -1});
  }
  return all;
}

template <class T>
void put(std::string& bytes, const std::vector<T>& values) {
  const std::uint64_t count = values.size();
  bytes.append(reinterpret_cast<const char*>(&count), sizeof(count));
  bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

template <class T>
std::vector<T> take(const std::string& bytes, std::size_t& at) {
  std::uint64_t count = 0;
  std::memcpy(&count, bytes.data() + at, sizeof(count));
  at += sizeof(count);
  std::vector<T> values(count);
  if (count > 0) std::memcpy(values.data(), bytes.data() + at, count * sizeof(T));
  at += count * sizeof(T);
  return values;
}

// The steps kept whole on all ranks.
struct Common {
  std::int64_t first = 0, last = -1;
};

Common common_steps(comm::Communicator& world, const std::vector<Span>& kept) {
  constexpr double kNone = 9e15;     // a step beyond all
  double facts[2] = {kNone, kNone};  // the oldest, minus the newest
  for (const Span& span : kept) {
    if (!is_step(span)) continue;
    if (facts[0] == kNone) facts[0] = static_cast<double>(span.index);
    facts[1] = -static_cast<double>(span.index);
  }
  world.max(facts);
  if (facts[0] == kNone || facts[1] == kNone) return {};
  return {static_cast<std::int64_t>(facts[0]), -static_cast<std::int64_t>(facts[1])};
}

// Of rank 0's.
std::int64_t median_step(const std::vector<Span>& kept, const Common& common) {
  std::vector<Span> steps;
  std::copy_if(kept.begin(), kept.end(), std::back_inserter(steps), [&](const Span& span) {
    return is_step(span) && span.index >= common.first && span.index <= common.last;
  });
  if (steps.empty()) return 0;
  const auto middle = steps.begin() + static_cast<std::ptrdiff_t>((steps.size() - 1) / 2);
  std::nth_element(steps.begin(), middle, steps.end(),
                   [](const Span& a, const Span& b) { return a.end - a.begin < b.end - b.begin; });
  return middle->index;
}

// What lies in the steps, and behind each up to the next one.
std::vector<Span> spans_of(const std::vector<Span>& kept, std::int64_t first, std::int64_t last) {
  std::int64_t begin = std::numeric_limits<std::int64_t>::max();
  std::int64_t end = begin;
  for (const Span& span : kept) {
    if (!is_step(span)) continue;
    if (span.index == first) begin = span.begin;
    if (span.index == last + 1) end = span.begin;
  }
  std::vector<Span> spans;
  std::copy_if(kept.begin(), kept.end(), std::back_inserter(spans),
               [&](const Span& span) { return span.begin >= begin && span.begin < end; });
  return spans;
}

std::vector<observe::HeldBytes> held_bytes(const RunPlan& plan, const plan::Coordinates& at, int threads) {
  std::vector<observe::HeldBytes> held;
  const plan::LocalGraph local = plan::shard(plan.graph, plan.mesh.tensor, at.tensor);
  for (const StageId stage : plan.stages_of(at.pipeline)) {
    const StageLayout layout = training_layout(plan, local, stage, threads);
    const auto bytes = [&layout](Region region) {
      return static_cast<std::int64_t>(layout.bytes[static_cast<std::size_t>(region)]);
    };
    held.push_back({stage.value, bytes(Region::Activation), bytes(Region::WeightInput), bytes(Region::WeightGradient)});
  }
  return held;
}

std::size_t capacity(std::int64_t spans, std::size_t most) {
  return std::clamp(static_cast<std::size_t>(std::max<std::int64_t>(0, spans)), kFewestSpans, most);
}

}  // namespace

std::int64_t spans_of_step(const RunPlan& plan, std::int64_t rank) {
  const plan::Coordinates at = plan.mesh.coordinates(rank);
  constexpr std::int64_t kOnce = 24;  // step, pass, norms, agreement, …
  std::int64_t spans = kOnce;
  // Each action, and a wait or the reading of samples with it.
  spans += 3 * static_cast<std::int64_t>(plan.training.ranks[static_cast<std::size_t>(at.pipeline)].size());
  // Buckets that are encoded as they are whole.
  if (plan.compresses()) spans += static_cast<std::int64_t>(plan.graph.nodes.size());
  if (plan.mesh.tensor > 1) {
    const plan::LocalGraph local = plan::shard(plan.graph, plan.mesh.tensor, at.tensor);
    const std::size_t sums = reduction_sizes(plan, local, at.pipeline).size();
    spans += 2 * static_cast<std::int64_t>(sums) * plan.training.micro_batches;
  }
  return spans;
}

std::size_t usual_log_capacity(const RunPlan& plan, std::int64_t rank) {
  constexpr std::int64_t kSteps = 8;  // to choose a typical one from
  const std::int64_t step = spans_of_step(plan, rank);
  // Where steps are long, two suffice.
  return capacity(std::min(kSteps * step, std::max<std::int64_t>(2 * step, kMostSpans / 8)), kMostSpans);
}

std::size_t trace_log_capacity(const RunPlan& plan, std::int64_t rank, const TraceWindow& window) {
  const std::int64_t steps = window.last > 0 ? window.last - window.first + 1 : window.newest;
  const std::int64_t step = spans_of_step(plan, rank);
  const auto most = static_cast<std::int64_t>(kMostTraceSpans);
  return capacity(steps > most / step ? most : (steps + 1) * step, kMostTraceSpans);
}

observe::Timeline gather_timeline(comm::Communicator& world, const RunPlan& plan, const ActionLog& log,
                                  const comm::ClockSample& before, const comm::ClockSample& after, int threads,
                                  const TraceWindow* window) {
  const std::vector<Span> kept = log.kept();
  Common common = common_steps(world, kept);
  if (common.last < common.first) return {};
  if (window != nullptr && window->last == 0) common.first = std::max(common.first, common.last - window->newest + 1);
  std::int64_t typical = median_step(kept, common);
  world.broadcast(std::as_writable_bytes(std::span(&typical, 1)), 0);
  if (window == nullptr) common = {typical, typical};

  std::vector<Span> mine;
  for (const double most = window != nullptr ? kMostGatheredSpans : kMostTypicalSpans;; ++common.first) {
    mine = spans_of(kept, common.first, common.last);
    double total[1] = {static_cast<double>(mine.size())};
    world.sum(total);
    if (total[0] <= most) break;
    if (common.first == common.last) return {};
  }
  for (Span& span : mine) {
    span.begin = comm::common_time(span.begin, before, after);
    span.end = comm::common_time(span.end, before, after);
  }
  std::string bytes;
  put(bytes, mine);
  put(bytes, held_bytes(plan, plan.mesh.coordinates(world.rank()), threads));
  put(bytes, std::vector<std::int64_t>{std::max(before.error, after.error)});
  observe::Timeline timeline;
  const std::vector<std::string> all = gather_on_first(world, std::move(bytes));
  for (std::size_t r = 0; r < all.size(); ++r) {
    const plan::Coordinates at = plan.mesh.coordinates(static_cast<std::int64_t>(r));
    std::size_t from = 0;
    observe::RankTimeline rank;
    rank.place = describe_place(plan, static_cast<std::int64_t>(r));
    rank.column = at.data * plan.mesh.tensor + at.tensor;
    rank.spans = take<Span>(all[r], from);
    rank.bytes = take<observe::HeldBytes>(all[r], from);
    timeline.clock_error = std::max(timeline.clock_error, take<std::int64_t>(all[r], from).front());
    timeline.ranks.push_back(std::move(rank));
  }
  timeline.typical = std::max(typical, common.first);
  return timeline;
}

}  // namespace trainer::runtime
