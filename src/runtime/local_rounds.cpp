#include "trainer/runtime/local_rounds.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "trainer/optim/outer_step.hpp"

namespace trainer::runtime {

namespace {

constexpr std::string_view kPrefix = "optimizer.local.";

std::string replica_name(std::int64_t replica, std::string_view what, const std::string& parameter) {
  return fmt::format("{}{}.{}.{}", kPrefix, replica, what, parameter);
}
std::string momentum_name(const std::string& parameter) {
  return fmt::format("{}outer_momentum.{}", kPrefix, parameter);
}

bool is_finite(const RoundStep& step) { return std::isfinite(step.loss) && std::isfinite(step.grad_norm); }

// What a checkpoint has of single replicas.
struct Found {
  std::int64_t replicas = 0;  // 0: nothing of any
  bool apart = false;         // their weights too: it was saved within a round
};

Found find_replicas(const storage::CheckpointReader& checkpoint) {
  Found found;
  for (const storage::TensorEntry& tensor : checkpoint.tensors()) {
    if (!tensor.name.starts_with(kPrefix)) continue;
    const char* const begin = tensor.name.data() + kPrefix.size();
    const char* const end = tensor.name.data() + tensor.name.size();
    std::int64_t replica = 0;
    const auto [rest, error] = std::from_chars(begin, end, replica);
    if (error != std::errc()) continue;
    found.replicas = std::max(found.replicas, replica + 1);
    found.apart = found.apart || std::string_view(rest, end).starts_with(".weight.");
  }
  return found;
}

}  // namespace

LocalRounds::LocalRounds(const RunPlan& plan, const plan::Coordinates& at, Parameters& parameters,
                         const optim::Optimizer& optimizer, ThreadPool& pool, comm::Communicator& world,
                         comm::Communicator& data, std::int64_t total_steps, ActionLog* log)
    : plan_(plan),
      at_(at),
      parameters_(parameters),
      optimizer_(optimizer),
      pool_(pool),
      world_(world),
      log_(log),
      round_(plan.config.parallel.local.steps),
      total_steps_(total_steps),
      replicas_(data.size()),
      speaks_(at.pipeline == 0 && at.tensor == 0) {
  const std::size_t elements = parameters.layout().weight_elements;
  const auto count = static_cast<std::int64_t>(elements);
  theta_ = Buffer(elements * sizeof(float));
  if (plan.config.parallel.local.outer_momentum > 0) momentum_ = Buffer(elements * sizeof(float));
  sum_ = data.make_all_reduce(parameters.weights(), count);
  sum_bytes_ = comm::Communicator::all_reduce_sent_bytes(count, replicas_, data.rank());
  const std::size_t most =
      static_cast<std::size_t>(std::min({round_, total_steps, static_cast<std::int64_t>(kMostSteps)}));
  mine_.reserve(most);
  agreed_.reserve(most);
  numbers_.reserve(2 * most + 2);
}

void LocalRounds::begin() {
  std::copy_n(parameters_.weights(), parameters_.layout().weight_elements, theta());
  apart_ = false;
}

void LocalRounds::add(const LocalStep& step, bool stop) {
  apart_ = true;
  stop_ = stop_ || stop;
  failed_ = failed_ || !std::isfinite(step.loss) || !std::isfinite(step.grad_norm);
  mine_.push_back(step);
}

LocalRounds::Meeting LocalRounds::meet(std::int64_t step) {
  const bool ends = ends_round(step);
  const std::size_t count = mine_.size();
  numbers_.assign(2 * count + 2, 0.0);
  for (std::size_t i = 0; i < count && speaks_; ++i) {
    numbers_[2 * i] = mine_[i].loss;
    numbers_[2 * i + 1] = mine_[i].grad_norm / replicas_;
  }
  numbers_[2 * count] = stop_ ? 1.0 : 0.0;
  numbers_[2 * count + 1] = ends ? static_cast<double>(sum_bytes_) : 0.0;
  {
    const ActivitySpan agreement(log_, Activity::Agreement);
    world_.sum(numbers_);
  }
  Meeting meeting;
  agreed_.clear();
  for (std::size_t i = 0; i < count; ++i) {
    agreed_.push_back({mine_[i].step, numbers_[2 * i], numbers_[2 * i + 1]});
    if (!meeting.diverged && !is_finite(agreed_[i])) meeting.diverged = i;
  }
  meeting.steps = agreed_;
  meeting.stop = numbers_[2 * count] > 0;
  meeting.sent_bytes = numbers_[2 * count + 1];
  if (meeting.diverged) {
    meeting.replica = first_replica_with(*meeting.diverged);
    return meeting;
  }
  mine_.clear();
  stop_ = false;
  if (ends) end_round(step);
  return meeting;
}

// Of a step whose numbers are not finite on some replica.
std::int64_t LocalRounds::first_replica_with(std::size_t step) {
  const LocalStep& mine = mine_[step];
  const bool had = !std::isfinite(mine.loss) || !std::isfinite(mine.grad_norm);
  double first[1] = {had ? -static_cast<double>(at_.data) : -std::numeric_limits<double>::max()};
  world_.max(first);
  // Each replica's part may be finite where the sum is not.
  return first[0] == -std::numeric_limits<double>::max() ? 0 : static_cast<std::int64_t>(-first[0]);
}

void LocalRounds::end_round(std::int64_t step) {
  {
    const ActivitySpan span(log_, Activity::Replicas);
    sum_->start();
    comm::wait(*sum_, {"the sum of the replicas' weights after step", -1, step});
  }
  const ActivitySpan span(log_, Activity::Optimizer);
  const config::LocalSteps& local = plan_.config.parallel.local;
  const std::size_t elements = parameters_.layout().weight_elements;
  optim::outer_step(pool_, {local.outer_learning_rate, local.outer_momentum, local.nesterov}, replicas_,
                    {parameters_.weights(), elements}, {theta(), elements},
                    {momentum_.f32(), has_momentum() ? elements : 0});
  apart_ = false;
}

void LocalRounds::exchange_weights() {
  std::swap_ranges(theta(), theta() + parameters_.layout().weight_elements, parameters_.weights());
}

// Calls visit(parameter, box, element offset in the weights) for all that this rank holds.
template <class Visit>
void LocalRounds::for_each_box(const Visit& visit) const {
  for (const HeldParameter& held : parameters_.layout().held) {
    std::size_t at = held.weight;
    for (const Box& box : held.boxes) {
      visit(held, plan_.graph.parameters[held.id.index()], box, at);
      at += static_cast<std::size_t>(box.elements());
    }
  }
}

std::vector<storage::Piece> LocalRounds::pieces() const {
  std::vector<storage::Piece> pieces;
  for_each_box([&](const HeldParameter& held, const model::Parameter& parameter, const Box& box, std::size_t at) {
    if (!held.counted) return;
    const auto add = [&](const std::string& name, const float* data) {
      pieces.push_back({name, DType::F32, parameter.shape, box, data});
    };
    const bool first = at_.data == 0;
    for (int s = 0; s < optimizer_.state_count(); ++s) {
      const auto state = optimizer_.state_name(s);
      add(first ? fmt::format("optimizer.{}.{}", state, parameter.name) : replica_name(at_.data, state, parameter.name),
          parameters_.state(s) + at);
    }
    if (apart_) add(replica_name(at_.data, "weight", parameter.name), parameters_.weights() + at);
    if (!first) return;
    add(parameter.name, theta_.f32() + at);
    if (has_momentum()) add(momentum_name(parameter.name), momentum_.f32() + at);
  });
  return pieces;
}

void LocalRounds::load(const storage::CheckpointReader& checkpoint) {
  begin();
  const Found found = find_replicas(checkpoint);
  const bool same = found.replicas == 0 || found.replicas == replicas_;
  apart_ = same && found.apart;
  for_each_box([&](const HeldParameter&, const model::Parameter& parameter, const Box& box, std::size_t at) {
    const auto read = [&](const std::string& name, float* to) {
      if (checkpoint.has(name)) checkpoint.read(name, box, to);
    };
    if (has_momentum()) read(momentum_name(parameter.name), momentum_.f32() + at);
    if (!same) return;
    for (int s = 0; s < optimizer_.state_count() && at_.data > 0; ++s) {
      read(replica_name(at_.data, optimizer_.state_name(s), parameter.name), parameters_.state(s) + at);
    }
    if (apart_) read(replica_name(at_.data, "weight", parameter.name), parameters_.weights() + at);
  });
}

RoundsMemory rounds_memory(const RunPlan& plan, const ParameterLayout& parameters) {
  if (plan.config.parallel.exchange != config::Exchange::Local) return {};
  const std::size_t models = plan.config.parallel.local.outer_momentum > 0 ? 2 : 1;
  return {models * parameters.weight_elements * sizeof(float),
          comm::Communicator::all_reduce_extra_bytes(static_cast<std::int64_t>(parameters.weight_elements),
                                                     static_cast<int>(plan.mesh.data))};
}

std::string lost_of_rounds(const storage::CheckpointReader& checkpoint, const config::Config& saved,
                           const config::Config& now) {
  if (saved.parallel.exchange != config::Exchange::Local) return {};
  const bool local = now.parallel.exchange == config::Exchange::Local;
  const Found found = find_replicas(checkpoint);
  if (found.replicas == 0 || (local && found.replicas == now.parallel.data)) return {};
  const std::string here =
      local ? fmt::format("this run has {}", now.parallel.data) : "this run has no local steps (parallel.exchange)";
  std::string lost = "each begins with the optimizer state of replica 0";
  if (found.apart) {
    const std::int64_t within = checkpoint.record().step % saved.parallel.local.steps;
    lost = fmt::format(
        "the run goes on from the model that all had {} step{} earlier, at the end of the last round, and "
        "with the optimizer state of replica 0",
        within, within == 1 ? "" : "s");
  }
  return fmt::format("{} holds {} replica{} with local steps of their own, {}: {}", checkpoint.path(), found.replicas,
                     found.replicas == 1 ? "" : "s", here, lost);
}

}  // namespace trainer::runtime
