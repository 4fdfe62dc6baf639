#include "trainer/runtime/worker.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "trainer/core/error.hpp"
#include "trainer/runtime/agreement.hpp"
#include "trainer/runtime/pass_table.hpp"

namespace trainer::runtime {

struct Worker::Program {
  RankLayouts layouts;
  std::vector<std::unique_ptr<StageRunner>> runners;  // [stage of this rank]
  std::unique_ptr<PassTable> table;                   // of a share; null: the plan's own
  std::unique_ptr<Executor> executor;

  void set_progress(const std::function<void()>& progress) {
    for (auto& runner : runners) runner->progress = progress;
  }
};

namespace {

int group_color(std::int64_t a, std::int64_t b, std::int64_t extent) { return static_cast<int>(a * extent + b); }

}  // namespace

std::int64_t total_steps(const config::Training& training, std::int64_t training_samples) {
  if (training.steps > 0) return training.steps;
  const std::int64_t samples = sample_limit(training, training_samples);  // so that no step is without any
  return samples / training.batch_size + (samples % training.batch_size != 0 ? 1 : 0);
}

std::int64_t sample_limit(const config::Training& training, std::int64_t training_samples) {
  if (training.steps > 0) return std::numeric_limits<std::int64_t>::max();
  constexpr double kMost = 0x1p62;
  const double samples = training.epochs * static_cast<double>(training_samples);
  return std::max<std::int64_t>(1, std::llround(std::min(samples, kMost)));
}

std::int64_t training_samples(const RunPlan& plan, const storage::Dataset& data) {
  return storage::split(data.size(), plan.config.data.validation_fraction).training;
}

void check_samples(const RunPlan& plan, const storage::Dataset& data) {
  const double fraction = plan.config.data.validation_fraction;
  const storage::Split split = storage::split(data.size(), fraction);
  if (split.training > 0) return;
  throw Error(ExitCode::Data,
              fmt::format("data: has {} samples, of which data.validation_fraction {} holds out {}; nothing is "
                          "left to train on: give more data or a smaller fraction",
                          data.size(), fraction, split.held_out));
}

storage::ModelInput model_input(const model::Graph& graph) {
  const model::Value& input = graph.values[graph.input.index()];
  storage::ModelInput wanted;
  wanted.tokens = input.kind == model::ValueKind::Tokens;
  wanted.positions = graph.positions;
  wanted.features = wanted.tokens ? 0 : input.features;
  for (const model::Node& node : graph.nodes) {
    if (const auto* embedding = std::get_if<model::Embedding>(&node.op)) wanted.vocabulary = embedding->vocab;
  }
  wanted.outputs = graph.values[graph.output.index()].features;
  wanted.classes = graph.values[graph.target.index()].kind == model::ValueKind::Tokens;
  return wanted;
}

Worker::Worker(comm::Communicator& world, const RunPlan& plan, const storage::Dataset& data, ThreadPool& pool,
               bool training, ActionLog* log)
    : plan_(plan),
      data_(data),
      pool_(pool),
      world_(world),
      log_(log),
      at_(plan.mesh.coordinates(world.rank())),
      local_(plan::shard(plan.graph, plan.mesh.tensor, at_.tensor)) {
  const config::Config& config = plan.config;
  if (training && plan.balances()) {
    if (log_ == nullptr) own_log_ = std::make_unique<ActionLog>(1, plan.training.rank_of_stage.size());
    if (log_ == nullptr) log = log_ = own_log_.get();
    shares_ = std::make_unique<ReplicaShares>(plan, at_, *log_);
  }
  split_ = storage::split(data.size(), config.data.validation_fraction);
  total_steps_ = runtime::total_steps(config.training, split_.training);
  sample_limit_ = runtime::sample_limit(config.training, split_.training);

  tensor_ranks_ = world.split(group_color(at_.pipeline, at_.data, plan.mesh.data), static_cast<int>(at_.tensor));
  const bool apart = plan.servers() > 0;
  data_ranks_ = world.split(apart ? world.rank() : group_color(at_.pipeline, at_.tensor, plan.mesh.tensor),
                            static_cast<int>(at_.data));
  pipeline_ranks_ = world.split(group_color(at_.data, at_.tensor, plan.mesh.tensor), static_cast<int>(at_.pipeline));
  std::int64_t most = 0;
  for (const std::int64_t size : reduction_sizes(plan, local_, at_.pipeline)) most = std::max(most, size);
  tensor_ = std::make_unique<TensorGroup>(*tensor_ranks_, most, log);

  optimizer_ = optim::make_optimizer(config.optimizer);
  parameters_ = std::make_unique<Parameters>(lay_out_parameters(plan, local_, at_), training,
                                             apart ? 0 : optimizer_->state_count(),
                                             plan.shares_weights() ? data_ranks_.get() : nullptr);

  const auto prepare = [&](bool trains) {
    auto program = std::make_unique<Program>();
    program->layouts = rank_layouts(plan, local_, at_.pipeline, pool.threads(), trains);
    make_runners(*program);
    return program;
  };
  if (training) training_ = prepare(true);
  forward_only_ = prepare(false);
  // Evaluation happens between steps: both programs lie over the same memory.
  const RankArena& evaluating = forward_only_->layouts.arena;
  const RankArena& larger = training ? training_->layouts.arena : evaluating;
  arena_ = Buffer(std::max(larger.bytes, evaluating.bytes));
  messages_ =
      std::make_unique<StageMessages>(*pipeline_ranks_, std::max(larger.message_bytes, evaluating.message_bytes),
                                      boundary_numbers(plan.training.rank_of_stage));
  if (training) wire(*training_, plan.training, plan.training_slots, 0);
  wire(*forward_only_, plan.forward_only, plan.forward_only_slots, 1);
  if (training) {
    if (config.parallel.delayed_gradients) {
      delayed_ = std::make_unique<DelayedGradients>(plan, at_, *parameters_, pool, *data_ranks_, *pipeline_ranks_, log);
      wait_progress_.emplace([this] { delayed_->progress(); });
    } else {
      sync_ = std::make_unique<GradientSync>(plan, at_, *parameters_, pool, *data_ranks_, *pipeline_ranks_, log);
    }
    training_->set_progress([this] {
      if (sync_) sync_->progress();
      if (delayed_) delayed_->progress();
      messages_->progress();
      if (optimistic_) optimistic_->progress();
    });
  }
  batches_ = std::make_unique<BatchSource>(data, split_, config.training.seed, at_.data, plan.mesh.data,
                                           config.training.micro_batches);
  if (apart) own_batches_.emplace(data, split_, config.training.seed, 0, 1, config.training.micro_batches);
  const std::vector<double>& delays = config.parallel.injected_delay;
  if (!delays.empty()) sample_delay_ = delays[static_cast<std::size_t>(at_.data)];
  agreement_.resize(plan.graph.parameters.size() + 3);
  if (training && config.parallel.exchange == config::Exchange::Local) {
    replica_ranks_ = world.split(static_cast<int>(at_.data), world.rank());
    rounds_ = std::make_unique<LocalRounds>(plan, at_, *parameters_, *optimizer_, pool, world, *data_ranks_,
                                            total_steps_, log);
    round_outcomes_.reserve(LocalRounds::kMostSteps);
  }
  if (training && config.training.optimistic_step) {
    optimistic_ = std::make_unique<OptimisticStep>(world, agreement_.size());
    wait_progress_.emplace([this] { optimistic_->progress(); });
  }
  std::int64_t largest = 0;
  for (const HeldParameter& held : parameters_->layout().held) largest = std::max(largest, held.elements);
  norm_scratch_.resize(static_cast<std::size_t>(optim::norm_scratch(largest)));
}

Worker::~Worker() = default;

void Worker::make_runners(Program& program) {
  for (const StageLayout& layout : program.layouts.stages) {
    program.runners.push_back(
        std::make_unique<StageRunner>(plan_.graph, local_, layout, *parameters_, pool_, *tensor_));
  }
  program.set_progress([this] { messages_->progress(); });
}

void Worker::take_share() {
  auto table = std::make_unique<PassTable>(pass_table(plan_, shares_->mine()));
  wire(*training_, table->schedule, table->slots, 0);
  training_->table = std::move(table);
}

void Worker::take_shares(std::vector<std::int64_t> shares) {
  shares_->take(std::move(shares));
  take_share();
}

bool Worker::rebalance(std::int64_t step) {
  const std::int64_t before = shares_->mine();
  if (!shares_->look(world_, step)) return false;
  if (shares_->mine() != before) take_share();
  return true;
}

// Transfers of an executor before this one are idle: all sends of a pass have left at its end.
void Worker::wire(Program& program, const schedule::Schedule& schedule, const std::vector<schedule::StageSlots>& slots,
                  int channel) {
  program.executor.reset();
  std::vector<StageProgram> stages;
  for (std::size_t s = 0; s < program.layouts.stages.size(); ++s) {
    const StageLayout& layout = program.layouts.stages[s];
    const StageId stage = plan_.stages_of(at_.pipeline)[s];
    stages.push_back(
        {stage, &slots[stage.index()], &layout, program.layouts.arena.stages[s], program.runners[s].get()});
  }
  program.executor = std::make_unique<Executor>(plan_.graph, schedule, std::move(stages), arena_.data(), *messages_,
                                                channel, stage_ranks(), log_);
}

std::vector<int> Worker::stage_ranks() const {
  std::vector<int> ranks;
  for (std::int64_t s = 0; s < plan_.stages(); ++s) {
    const std::int64_t pipeline = plan_.rank_of(StageId(s));
    ranks.push_back(static_cast<int>(plan_.mesh.rank({.data = at_.data, .pipeline = pipeline, .tensor = at_.tensor})));
  }
  return ranks;
}

void Worker::initialise() {
  parameters_->initialise(plan_.graph, plan_.config.training.seed, pool_);
  data_ranks_->barrier();
  if (rounds_) rounds_->begin();
}

GlobalBatch Worker::training_batch(std::int64_t step) const {
  const std::int64_t size = plan_.config.training.batch_size;
  return {.first = (step - 1) * size, .size = size, .limit = sample_limit_, .held_out = false};
}

GlobalBatch Worker::batch_of_means(std::int64_t step) const {
  GlobalBatch batch = training_batch(step);
  if (!rounds_) return batch;
  batch.size /= plan_.mesh.data;
  batch.first += at_.data * batch.size;
  return batch;
}

// The one place that knows what a loss is divided by: targets of the global batch that count (for real targets, their
// values).
double Worker::targets_of(const GlobalBatch& batch) const {
  const storage::SampleKind& kind = data_.kind();
  const std::int64_t each = kind.tokens ? kind.positions : std::max<std::int64_t>(1, kind.target_features);
  return static_cast<double>(batch.valid() * each);
}

// Squared norms in the global order of parameters, each from the ranks that speak for it: every replica for its share,
// added in their order.
void Worker::measure_norms() {
  for (const HeldParameter& held : parameters_->layout().held) {
    if (!held.counted) continue;
    double squares = 0;
    for (const Piece& piece : held.share) {
      const float* gradient = parameters_->applied_gradients() + held.gradients.front() + piece.begin;
      squares += optim::sum_of_squares(pool_, {gradient, static_cast<std::size_t>(piece.box.elements())},
                                       norm_scratch_.data());
    }
    agreement_[held.id.index()] = squares;
  }
}

PassResult Worker::pass(std::int64_t step, const std::function<bool()>& go_on) {
  const GlobalBatch batch = training_batch(step);
  {
    const ActivitySpan data(log_, Activity::Data);
    if (shares_) {
      batches_->set(batch, shares_->first());
    } else {
      batches_->set(batch);
    }
  }
  const config::Parallel& parallel = plan_.config.parallel;
  const double gradients = parallel.all_reduce.sum ? static_cast<double>(plan_.mesh.data) : 1.0;
  const PassRequest request{.seed = plan_.config.training.seed,
                            .training = true,
                            .loss_scale = gradients / targets_of(batch_of_means(step)),
                            .count_hits = false,
                            .sample_delay = sample_delay_,
                            .go_on = go_on};
  GradientSync& sync = delayed_ ? delayed_->begin_pass(step) : *sync_;
  if (!delayed_) sync.begin_step(step);
  return training_->executor->run(*batches_, request, &sync);
}

double Worker::compute_gradients(const GlobalBatch& batch, double scale, bool add_uses) {
  {
    const ActivitySpan data(log_, Activity::Data);
    own_batches_->set(batch);
  }
  const PassRequest request{.seed = plan_.config.training.seed, .loss_scale = scale, .sample_delay = sample_delay_};
  const PassResult pass = training_->executor->run(*own_batches_, request, nullptr);
  if (add_uses) sync_->finish_tied();
  return at_.tensor == 0 ? pass.loss : 0.0;
}

double Worker::gradient_squares() {
  const ActivitySpan norms(log_, Activity::Optimizer);
  double squares = 0;
  for (const HeldParameter& held : parameters_->layout().held) {
    if (!held.counted) continue;
    const float* gradient = parameters_->gradients() + held.gradients.front();
    squares += optim::sum_of_squares(pool_, {gradient, static_cast<std::size_t>(held.elements)}, norm_scratch_.data());
  }
  return squares;
}

StepOutcome Worker::outcome_of(std::int64_t step) const {
  const std::size_t parameters = plan_.graph.parameters.size();
  StepOutcome outcome;
  outcome.step = step;
  outcome.loss = agreement_[parameters] / targets_of(training_batch(step));
  outcome.stop = agreement_[parameters + 1] > 0;
  outcome.sent_bytes = agreement_[parameters + 2];
  double squares = 0;
  for (std::size_t p = 0; p < parameters; ++p) squares += agreement_[p];
  outcome.grad_norm = std::sqrt(squares);
  outcome.learning_rate = optim::learning_rate(plan_.config.optimizer, step, total_steps_);
  return outcome;
}

float Worker::clip_scale_of(const StepOutcome& outcome) const {
  return optim::clip_scale(outcome.grad_norm, plan_.config.training.gradient_clip);
}

void Worker::update(const StepOutcome& outcome, float scale, bool keep_before) {
  const ActivitySpan span(log_, Activity::Optimizer);
  optimizer_->update(pool_, parameters_->segments(), outcome.step, outcome.learning_rate, scale, keep_before);
}

namespace {

bool is_finite(const StepOutcome& outcome) { return std::isfinite(outcome.loss) && std::isfinite(outcome.grad_norm); }

}  // namespace

bool Worker::confirm() {
  const ActivitySpan agreement(log_, Activity::Agreement);
  const std::int64_t step = *optimistic_->step();
  const std::span<const double> sums = optimistic_->close();
  std::copy(sums.begin(), sums.end(), agreement_.begin());
  confirmed_ = outcome_of(step);
  return is_finite(confirmed_) && clip_scale_of(confirmed_) == 1.0f && !confirmed_.stop;
}

void Worker::repair(const StepOutcome& outcome) {
  const float scale = clip_scale_of(outcome);
  if (is_finite(outcome) && scale == 1.0f) return;
  sync_->leave_pass();
  optimizer_->take_back(pool_, parameters_->segments());
  ++optimism_.taken_back;
  if (is_finite(outcome)) update(outcome, scale);
  sync_->finish_update();
  if (!is_finite(outcome)) diverge(outcome.step, outcome.loss, outcome.grad_norm);
}

void Worker::agree_on(const PassResult& pass, bool stop, double sent_bytes) {
  const std::size_t parameters = plan_.graph.parameters.size();
  agreement_[parameters] = at_.tensor == 0 ? pass.loss : 0.0;
  agreement_[parameters + 1] = stop ? 1.0 : 0.0;
  agreement_[parameters + 2] = sent_bytes;
}

StepResult Worker::step(std::int64_t step, bool stop, bool settle) {
  const ActivitySpan whole(log_, Activity::Step, -1, step);
  if (shares_) shares_->count_step();
  if (delayed_) return delayed_step(step, stop);
  if (rounds_) return local_step(step, stop, settle);
  StepResult result;
  const std::int64_t sent_before = sync_->sent_bytes();
  const bool open = optimistic_ && optimistic_->step();
  PassResult pass = open ? this->pass(step, [this] { return confirm(); }) : this->pass(step);
  if (open) {
    result.before = confirmed_;
    optimistic_->remember(clip_scale_of(confirmed_) != 1.0f);
    if (pass.given_up) {
      repair(confirmed_);
      if (confirmed_.stop) return result;
      pass = this->pass(step);
    }
  }
  sync_->finish_tied();

  std::fill(agreement_.begin(), agreement_.end(), 0.0);
  {
    const ActivitySpan norms(log_, Activity::Optimizer);
    measure_norms();
  }
  agree_on(pass, stop, static_cast<double>(sync_->sent_bytes() - sent_before));
  StepOutcome outcome;
  if (optimistic_ && !settle && optimistic_->promising()) {
    std::copy(agreement_.begin(), agreement_.end(), optimistic_->terms().begin());
    optimistic_->open(step);
    outcome.step = step;
    outcome.learning_rate = optim::learning_rate(plan_.config.optimizer, step, total_steps_);
    update(outcome, 1.0f, /*keep_before=*/true);
    ++optimism_.updates;
  } else {
    {
      const ActivitySpan agreement(log_, Activity::Agreement);
      world_.sum(agreement_);
    }
    outcome = outcome_of(step);
    if (!is_finite(outcome)) diverge(step, outcome.loss, outcome.grad_norm);
    update(outcome, clip_scale_of(outcome));
    if (optimistic_) optimistic_->remember(clip_scale_of(outcome) != 1.0f);
    result.now = outcome;
  }
  sync_->finish_update();
  return result;
}

namespace {

// A NaN's sign says nothing.
double readable(double value) { return std::isnan(value) ? std::numeric_limits<double>::quiet_NaN() : value; }

}  // namespace

// Runs the step's samples forward again, slowly, and finds the first node that gives a value that is not finite.
void Worker::diverge(std::int64_t step, double loss, double grad_norm, const std::string& who,
                     const std::string& since) {
  const auto nodes = static_cast<double>(plan_.graph.nodes.size());
  batches_->set(training_batch(step));
  // A replica by itself looks at what it has computed last.
  const bool own = own_batches_ && own_batches_->batch().size > 0;
  for (auto& runner : forward_only_->runners) runner->look_for_non_finite(true);
  forward_only_->executor->run(own ? *own_batches_ : *batches_, {.seed = plan_.config.training.seed, .training = true},
                               nullptr);
  const std::size_t parameters = plan_.graph.parameters.size();
  double first[2] = {-nodes, -static_cast<double>(parameters)};
  for (const auto& runner : forward_only_->runners) {
    const NodeId found = runner->first_non_finite();
    if (found.valid()) first[0] = std::max(first[0], -static_cast<double>(found.value));
  }
  std::size_t overflown = 0;
  while (overflown < parameters && std::isfinite(agreement_[overflown])) ++overflown;
  first[1] = -static_cast<double>(overflown);
  world_.max(first);
  std::string where;
  const auto node = static_cast<std::size_t>(-first[0]);
  if (node < plan_.graph.nodes.size()) {
    std::int64_t stage = 0;
    while (static_cast<std::int64_t>(node) >= plan_.nodes(StageId(stage)).end) ++stage;
    where = fmt::format("the first layer with a value that is not finite is {} (stage {})",
                        plan_.graph.nodes[node].name, stage);
  } else if (!std::isfinite(loss)) {
    where = "every layer's output is finite, but the loss is not: logits too far apart";
  } else {
    where = "the forward is finite; the gradients overflowed";
    const auto p = static_cast<std::size_t>(-first[1]);
    if (p < parameters) where += fmt::format(", in {} first", plan_.graph.parameters[p].name);
  }
  throw AgreedError(ExitCode::Diverged,
                    fmt::format("step {}: diverged{}: the loss is {} and the gradient norm {}; {}. {}. A lower "
                                "optimizer.learning_rate, more warm-up or training.gradient_clip usually helps",
                                step, who, readable(loss), readable(grad_norm), where, since));
}

std::optional<EvaluationReport> Worker::evaluate(std::int64_t step, const std::function<bool()>& stop) {
  if (!rounds_ || !rounds_->apart()) return evaluate_weights(step, stop);
  const LocalRounds::Shown shown(*rounds_);
  return evaluate_weights(step, stop);
}

std::optional<EvaluationReport> Worker::evaluate_weights(std::int64_t step, const std::function<bool()>& stop) {
  const std::int64_t size = plan_.config.training.batch_size;
  const bool count_hits = !data_.kind().tokens && data_.kind().classes > 0;
  double sums[2] = {0, 0};
  double targets = 0;
  for (std::int64_t first = 0; first < split_.held_out; first += size) {
    if (stop && first > 0) {
      double wanted[1] = {stop() ? 1.0 : 0.0};
      world_.max(wanted);
      if (wanted[0] > 0) return std::nullopt;
    }
    const GlobalBatch batch{.first = first, .size = size, .limit = split_.held_out, .held_out = true};
    batches_->set(batch);
    const PassResult pass = forward_only_->executor->run(
        *batches_, {.seed = 0, .training = false, .loss_scale = 0, .count_hits = count_hits}, nullptr);
    sums[0] += pass.loss;
    sums[1] += static_cast<double>(pass.hits);
    targets += targets_of(batch);
  }
  if (at_.tensor != 0) sums[0] = sums[1] = 0;
  world_.sum(sums);
  EvaluationReport report;
  report.step = step;
  report.loss = sums[0] / targets;
  if (count_hits) report.accuracy = sums[1] / targets;
  report.targets = static_cast<std::int64_t>(targets);
  return report;
}

}  // namespace trainer::runtime
