#include "trainer/runtime/exchange_replay.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "server_store.hpp"
#include "trainer/core/error.hpp"
#include "trainer/ops/sum.hpp"
#include "trainer/runtime/agreement.hpp"
#include "trainer/runtime/gradient_sync.hpp"
#include "trainer/runtime/worker.hpp"

namespace trainer::runtime {

namespace {

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

std::size_t float_bytes(std::size_t elements) { return elements * sizeof(float); }

// The plan of one replica: the run's stages and schedules, for ranks that are all its own.
RunPlan replica_plan(const RunPlan& run) {
  RunPlan plan = run;
  plan.mesh.data = 1;
  plan.node_of_rank.clear();
  config::Config& config = plan.config;
  config.parallel.data = 1;
  config.parallel.injected_delay.clear();
  config.parallel.server.backup = 0;
  config.parallel.tasks = false;
  config.training.batch_size = run.config.training.batch_size / run.mesh.data;
  return plan;
}

Range overlap(Range a, Range b) {
  const std::int64_t begin = std::max(a.begin, b.begin);
  return {begin, std::max(begin, std::min(a.end, b.end))};
}

}  // namespace

class ExchangeReplay::State {
 public:
  State(comm::Communicator& world, const RunPlan& run, const storage::Dataset& data, ThreadPool& pool);

  void initialise();
  bool load(const storage::CheckpointReader& checkpoint);
  std::vector<storage::Piece> pieces() const;
  void run(std::span<const ReplayAction> actions, std::int64_t updates_less, const std::function<void()>& computed);

 private:
  // Elements of a held parameter that one server holds.
  struct Stretch {
    std::size_t weight = 0;    // element offset in a rank's weights
    std::size_t gradient = 0;  // of the first use
    std::int64_t count = 0;
    bool decay = true;
  };
  struct Replica {
    Buffer weights, gradients;
    double scale = 1;     // ssp, async: of its clipping
    double targets = 0;   // that count, of its batch
    bool pushed = false;  // bsp: since the last update
  };
  Replica& replica_of(const ReplayAction& action) { return replicas_[at(action.replica)]; }
  const ServedPart& part_of(const HeldParameter& held) const;
  void pull(const ReplayAction& action);
  void compute(const ReplayAction& action);
  void push(const ReplayAction& action);
  void apply(const ReplayAction& action);
  void sum_step(const ReplayAction& action);
  double norm_of_step();
  void update(int server, const float* gradients, const UpdateStep& step);
  [[noreturn]] void diverge(const ReplayAction& action) const;
  GlobalBatch batch_of(const ReplayAction& action) const;

  comm::Communicator& world_;
  const RunPlan& run_;
  const RunPlan plan_;  // of one replica
  const ServerPlan servers_;
  ThreadPool& pool_;
  Worker worker_;
  const ParameterLayout& layout_;
  std::unique_ptr<comm::Communicator> alone_, pipeline_ranks_;
  std::unique_ptr<GradientSync> uses_;  // adds those of tied parameters
  std::unique_ptr<optim::Optimizer> optimizer_;
  const bool together_;  // bsp
  const std::int64_t total_steps_;
  std::int64_t updates_less_ = 0;
  Buffer weights_;  // the servers', as far as this rank holds them
  std::vector<Buffer> states_;
  std::vector<Replica> replicas_;
  std::vector<std::vector<Stretch>> stretches_;  // [server]
  std::vector<optim::Segment> segments_;
  std::vector<const float*> terms_;
  std::int64_t summed_ = -1;  // bsp: the version that the sum in the worker's gradients is an update of
  UpdateStep step_;           // and how
  std::vector<double> blocks_, scratch_;
};

ExchangeReplay::State::State(comm::Communicator& world, const RunPlan& run, const storage::Dataset& data,
                             ThreadPool& pool)
    : world_(world),
      run_(run),
      plan_(replica_plan(run)),
      servers_(make_server_plan(run)),
      pool_(pool),
      worker_(world, plan_, data, pool, true),
      layout_(worker_.parameters().layout()),
      alone_(world.split(world.rank(), 0)),
      optimizer_(optim::make_optimizer(run.config.optimizer)),
      together_(run.config.parallel.server.consistency == config::Consistency::Bsp),
      total_steps_(total_steps(run.config.training, training_samples(run, data))),
      replicas_(at(run.mesh.data)),
      stretches_(at(run.servers())) {
  const plan::Coordinates here = worker_.coordinates();
  pipeline_ranks_ = world.split(static_cast<int>(here.tensor), static_cast<int>(here.pipeline));
  uses_ = std::make_unique<GradientSync>(plan_, here, worker_.parameters(), pool, *alone_, *pipeline_ranks_);
  weights_ = Buffer(float_bytes(layout_.weight_elements));
  for (int s = 0; s < optimizer_->state_count(); ++s) states_.emplace_back(float_bytes(layout_.weight_elements));
  for (Replica& replica : replicas_) {
    replica.weights = Buffer(float_bytes(layout_.weight_elements));
    replica.gradients = Buffer(float_bytes(layout_.gradient_elements));
  }
  for (const HeldParameter& held : layout_.held) {
    const ServedPart& part = part_of(held);
    for (int s = 0; s < servers_.count(); ++s) {
      const Range range = overlap(part.flat, servers_.range(s));
      if (range.size() == 0) continue;
      const std::size_t into = at(range.begin - part.flat.begin);
      stretches_[at(s)].push_back({held.weight + into, held.gradients.front() + into, range.size(), held.decay});
    }
  }
  blocks_.resize(at(servers_.block.back()));
  scratch_.resize(norm_scratch_elements(run));
}

const ServedPart& ExchangeReplay::State::part_of(const HeldParameter& held) const {
  const std::int64_t tensor = worker_.coordinates().tensor;
  for (const ServedPart& part : servers_.parts) {
    if (part.id == held.id && (!part.divided || part.tensor == tensor)) return part;
  }
  internal_error("a parameter that no server holds");
}

void ExchangeReplay::State::initialise() {
  worker_.initialise();
  const std::size_t elements = layout_.weight_elements;
  std::copy_n(worker_.parameters().weights(), elements, weights_.f32());
}

bool ExchangeReplay::State::load(const storage::CheckpointReader& checkpoint) {
  bool complete = true;
  for (const HeldParameter& held : layout_.held) {
    const std::string& name = plan_.graph.parameters[held.id.index()].name;
    std::size_t to = held.weight;
    for (const Box& box : held.boxes) {
      checkpoint.read(name, box, weights_.f32() + to);
      for (std::size_t s = 0; s < states_.size(); ++s) {
        const std::string state = fmt::format("optimizer.{}.{}", optimizer_->state_name(static_cast<int>(s)), name);
        if (checkpoint.has(state)) {
          checkpoint.read(state, box, states_[s].f32() + to);
        } else {
          std::fill_n(states_[s].f32() + to, box.elements(), 0.0f);
          complete = false;
        }
      }
      to += at(box.elements());
    }
  }
  return complete;
}

std::vector<storage::Piece> ExchangeReplay::State::pieces() const {
  std::vector<storage::Piece> pieces;
  for (const HeldParameter& held : layout_.held) {
    if (!held.counted) continue;
    const model::Parameter& parameter = plan_.graph.parameters[held.id.index()];
    std::size_t from = held.weight;
    for (const Box& box : held.boxes) {
      pieces.push_back({parameter.name, DType::F32, parameter.shape, box, weights_.f32() + from});
      for (std::size_t s = 0; s < states_.size(); ++s) {
        const std::string state =
            fmt::format("optimizer.{}.{}", optimizer_->state_name(static_cast<int>(s)), parameter.name);
        pieces.push_back({state, DType::F32, parameter.shape, box, states_[s].f32() + from});
      }
      from += at(box.elements());
    }
  }
  return pieces;
}

void ExchangeReplay::State::run(std::span<const ReplayAction> actions, std::int64_t updates_less,
                                const std::function<void()>& computed) {
  updates_less_ = updates_less;
  summed_ = -1;
  for (const ReplayAction& action : actions) {
    switch (action.kind) {
      case ReplayAction::Kind::Pull:
        pull(action);
        break;
      case ReplayAction::Kind::Compute:
        compute(action);
        if (computed) computed();
        break;
      case ReplayAction::Kind::Push:
        push(action);
        break;
      case ReplayAction::Kind::Apply:
        apply(action);
        break;
    }
  }
}

void ExchangeReplay::State::pull(const ReplayAction& action) {
  float* const to = replica_of(action).weights.f32();
  for (const Stretch& stretch : stretches_[at(action.server)]) {
    std::copy_n(weights_.f32() + stretch.weight, stretch.count, to + stretch.weight);
  }
}

// Rows behind the batch's own are padding: a batch may be shorter than a pass is long.
GlobalBatch ExchangeReplay::State::batch_of(const ReplayAction& action) const {
  return {.first = action.first,
          .size = plan_.config.training.batch_size,
          .limit = std::min(worker_.sample_limit(), action.first + action.count),
          .held_out = false};
}

void ExchangeReplay::State::compute(const ReplayAction& action) {
  Replica& replica = replica_of(action);
  Parameters& parameters = worker_.parameters();
  std::copy_n(replica.weights.f32(), layout_.weight_elements, parameters.weights());
  const GlobalBatch batch = batch_of(action);
  replica.targets = worker_.targets_of(batch);
  double all = replica.targets;
  if (together_) {
    const std::int64_t size = run_.config.training.batch_size;
    all = worker_.targets_of({.first = action.first / size * size, .size = size, .limit = worker_.sample_limit()});
  }
  worker_.compute_gradients(batch, all > 0 ? 1.0 / all : 1.0, /*add_uses=*/!together_);
  if (!together_) {
    double squares[1] = {worker_.gradient_squares()};
    world_.sum(squares);
    replica.scale = optim::clip_scale(std::sqrt(squares[0]), run_.config.training.gradient_clip);
  }
  std::copy_n(parameters.gradients(), layout_.gradient_elements, replica.gradients.f32());
}

void ExchangeReplay::State::push(const ReplayAction& action) {
  Replica& replica = replica_of(action);
  if (together_) {
    // Servers behind the first to apply a step tell of its pushes again.
    if (summed_ != action.version) replica.pushed = true;
    return;
  }
  const std::int64_t step = 1 + action.version / run_.mesh.data;
  const UpdateStep update_step{.number = action.version - updates_less_ + 1,
                               .learning_rate = optim::learning_rate(run_.config.optimizer, step, total_steps_) /
                                                static_cast<double>(run_.mesh.data),
                               .scale = static_cast<float>(replica.scale)};
  if (!std::isfinite(update_step.scale)) diverge(action);
  update(action.server, replica.gradients.f32(), update_step);
}

void ExchangeReplay::State::apply(const ReplayAction& action) {
  if (summed_ != action.version) sum_step(action);
  update(action.server, worker_.parameters().gradients(), step_);
}

// What all servers together make of the pushes of a step.
void ExchangeReplay::State::sum_step(const ReplayAction& action) {
  Parameters& parameters = worker_.parameters();
  terms_.clear();
  double targets = 0;
  for (Replica& replica : replicas_) {
    if (!replica.pushed) continue;
    terms_.push_back(replica.gradients.f32());
    targets += replica.targets;
    replica.pushed = false;
  }
  ops::sum_terms(pool_, terms_, parameters.gradients(), static_cast<std::int64_t>(layout_.gradient_elements),
                 /*accumulate=*/false);
  uses_->finish_tied();
  const std::int64_t size = run_.config.training.batch_size;
  const double whole =
      worker_.targets_of({.first = action.version * size, .size = size, .limit = worker_.sample_limit()}) / targets;
  const double norm = norm_of_step() * whole;
  if (!std::isfinite(norm)) diverge(action);
  const float clip = optim::clip_scale(norm, run_.config.training.gradient_clip);
  step_ = {.number = action.version - updates_less_ + 1,
           .learning_rate = optim::learning_rate(run_.config.optimizer, action.version + 1, total_steps_),
           .scale = static_cast<float>(clip * whole)};
  summed_ = action.version;
}

// In the blocks that the servers measure, each by the rank that speaks for it.
double ExchangeReplay::State::norm_of_step() {
  std::fill(blocks_.begin(), blocks_.end(), 0.0);
  for (const HeldParameter& held : layout_.held) {
    if (!held.counted) continue;
    const ServedPart& part = part_of(held);
    const std::int64_t index = &part - servers_.parts.data();
    for (std::size_t i = 0; i < servers_.pieces.size(); ++i) {
      const NormPiece& piece = servers_.pieces[i];
      if (piece.part != index) continue;
      const float* from =
          worker_.parameters().gradients() + held.gradients.front() + at(piece.flat.begin - part.flat.begin);
      optim::sum_of_squares(pool_, {from, at(piece.flat.size())}, blocks_.data() + servers_.block[i]);
    }
  }
  world_.sum(blocks_);
  return std::sqrt(squared_norm(run_, servers_, blocks_, scratch_));
}

void ExchangeReplay::State::update(int server, const float* gradients, const UpdateStep& step) {
  segments_.clear();
  for (const Stretch& stretch : stretches_[at(server)]) {
    optim::Segment segment;
    segment.weight = weights_.f32() + stretch.weight;
    segment.gradient = gradients + stretch.gradient;
    for (std::size_t s = 0; s < states_.size(); ++s) segment.state[s] = states_[s].f32() + stretch.weight;
    segment.count = stretch.count;
    segment.decay = stretch.decay;
    segments_.push_back(segment);
  }
  optimizer_->update(pool_, segments_, step.number, step.learning_rate, step.scale);
}

void ExchangeReplay::State::diverge(const ReplayAction& action) const {
  throw AgreedError(
      ExitCode::Diverged,
      fmt::format("update {} of server {} is made of a gradient that is not finite, which the run has not "
                  "made: it ran on another CPU, or with another binary, data set or --kernels",
                  action.version + 1, action.server));
}

ExchangeReplay::ExchangeReplay(comm::Communicator& world, const RunPlan& run, const storage::Dataset& data,
                               ThreadPool& pool)
    : state_(std::make_unique<State>(world, run, data, pool)) {}

ExchangeReplay::~ExchangeReplay() = default;

void ExchangeReplay::initialise() { state_->initialise(); }
bool ExchangeReplay::load(const storage::CheckpointReader& checkpoint) { return state_->load(checkpoint); }
std::vector<storage::Piece> ExchangeReplay::pieces() const { return state_->pieces(); }
void ExchangeReplay::run(std::span<const ReplayAction> actions, std::int64_t updates_less,
                         const std::function<void()>& computed) {
  state_->run(actions, updates_less, computed);
}

}  // namespace trainer::runtime
