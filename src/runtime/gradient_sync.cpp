#include "trainer/runtime/gradient_sync.hpp"

#include <algorithm>
#include <set>

#include "trainer/core/error.hpp"
#include "trainer/ops/sum.hpp"

namespace trainer::runtime {

namespace {

struct BucketRange {
  NodeId first_node;
  std::size_t begin = 0, end = 0;  // elements of the gradient memory
};

// Whole nodes from the end of the memory to its begin, closed at `elements`.
std::vector<BucketRange> bucket_ranges(const ParameterLayout& parameters, std::int64_t elements) {
  std::vector<BucketRange> buckets;
  std::size_t end = parameters.gradient_elements;
  for (auto node = parameters.gradient_order.rbegin(); node != parameters.gradient_order.rend(); ++node) {
    const std::size_t begin = parameters.of_node[node->index()].front().gradient;
    const bool last = begin == 0;
    if (static_cast<std::int64_t>(end - begin) >= elements || last) {
      buckets.push_back({*node, begin, end});
      end = begin;
    }
  }
  return buckets;
}

std::vector<BucketRange> bucket_ranges(const RunPlan& plan, const ParameterLayout& parameters) {
  return bucket_ranges(parameters, plan.config.parallel.all_reduce.bucket_elements);
}

// Numbers the uses of tied parameters over the whole model, alike on every stage.
int tied_uses_before(const RunPlan& plan, ParameterId parameter) {
  int count = 0;
  for (ParameterId p(0); p < parameter; ++p.value) {
    const std::size_t uses = plan.uses(p).size();
    if (uses > 1) count += static_cast<int>(uses);
  }
  return count;
}

}  // namespace

comm::AllReduceOptions all_reduce_options(const RunPlan& plan, const plan::Coordinates& at) {
  using From = config::AllReduceAlgorithm;
  using To = comm::AllReduceAlgorithm;
  comm::AllReduceOptions options;
  switch (plan.config.parallel.all_reduce.algorithm) {
    case From::Automatic:
      options.algorithm = To::Automatic;
      break;
    case From::Direct:
      options.algorithm = To::Direct;
      break;
    case From::Ring:
      options.algorithm = To::Ring;
      break;
    case From::Tree:
      options.algorithm = To::Tree;
      break;
    case From::Hierarchy:
      options.algorithm = To::Hierarchy;
      break;
    case From::Mpi:
      options.algorithm = To::Mpi;
      break;
  }
  if (plan.config.parallel.all_reduce.wire == config::Precision::BFloat16) options.wire = comm::Wire::BFloat16;
  if (plan.node_of_rank.empty()) return options;
  for (plan::Coordinates other{0, at.pipeline, at.tensor}; other.data < plan.mesh.data; ++other.data) {
    options.node_of_rank.push_back(plan.node_of_rank[static_cast<std::size_t>(plan.mesh.rank(other))]);
  }
  return options;
}

GradientSync::GradientSync(const RunPlan& plan, const plan::Coordinates& at, Parameters& parameters, ThreadPool& pool,
                           comm::Communicator& data, comm::Communicator& pipeline, ActionLog* log)
    : parameters_(parameters),
      pool_(pool),
      replicas_(plan.local_steps() ? 1 : data.size()),
      delayed_(plan.config.parallel.delayed_gradients),
      terms_(static_cast<std::size_t>(data.size())),
      log_(log) {
  if (replicas_ > 1 && plan.compresses()) {
    compressed_ = std::make_unique<CompressedExchange>(plan, at, parameters, data);
  }
  if (replicas_ > 1) make_buckets(plan, at, data);
  make_tied(plan, at, pipeline);
}

void GradientSync::make_buckets(const RunPlan& plan, const plan::Coordinates& at, comm::Communicator& data) {
  const comm::AllReduceOptions options = all_reduce_options(plan, at);
  for (const BucketRange& range : bucket_ranges(plan, parameters_.layout())) {
    Bucket bucket;
    bucket.first_node = range.first_node;
    const Range gradients{static_cast<std::int64_t>(range.begin), static_cast<std::int64_t>(range.end)};
    if (compressed_) {
      bucket.reduce = &compressed_->make_bucket(gradients);
    } else if (parameters_.shared() == nullptr) {
      bucket.plain = data.make_all_reduce(parameters_.gradients() + range.begin, gradients.size(), options);
      bucket.sent_bytes = comm::all_reduce_cost(gradients.size(), replicas_, data.rank(), options).sent_bytes;
      bucket.reduce = bucket.plain.get();
    } else {
      bucket.duty = duty_of(parameters_, gradients);
    }
    buckets_.push_back(std::move(bucket));
  }
}

std::vector<Range> GradientSync::duty_of(const Parameters& parameters, Range gradients) {
  std::vector<Range> duty;
  for (const HeldParameter& held : parameters.layout().held) {
    for (const std::size_t gradient : held.gradients) {
      const auto use = static_cast<std::int64_t>(gradient);
      if (use < gradients.begin || use >= gradients.end) continue;
      for (const Piece& piece : parameters.duty(held)) {
        duty.push_back({use + piece.begin, use + piece.begin + piece.box.elements()});
      }
    }
  }
  return duty;
}

void GradientSync::begin_step(std::int64_t step) {
  if (compressed_) compressed_->begin_step(step);
}

void GradientSync::make_tied(const RunPlan& plan, const plan::Coordinates& at, comm::Communicator& pipeline) {
  for (const HeldParameter& held : parameters_.layout().held) {
    if (plan.uses(held.id).size() < 2) continue;
    for (const Piece& piece : parameters_.duty(held)) {
      tied_.push_back(make_tied_piece(plan, at, pipeline, held, piece));
    }
  }
}

// Pieces of one parameter follow each other under one tag a use, in the same order on every stage.
GradientSync::Tied GradientSync::make_tied_piece(const RunPlan& plan, const plan::Coordinates& at,
                                                 comm::Communicator& pipeline, const HeldParameter& held,
                                                 const Piece& piece) {
  const auto& uses = plan.uses(held.id);
  const int first_tag = kTiedTagBase + tied_uses_before(plan, held.id);
  std::set<std::int64_t> holders;  // pipeline ranks
  for (const ParameterUse& use : uses) holders.insert(plan.rank_of(use.stage));
  Tied tied;
  tied.elements = piece.box.elements();
  tied.sum = parameters_.gradients() + held.gradients.front() + piece.begin;
  const std::size_t bytes = static_cast<std::size_t>(tied.elements) * sizeof(float);
  std::size_t local_use = 0;
  for (std::size_t u = 0; u < uses.size(); ++u) {
    const int tag = first_tag + static_cast<int>(u);
    TiedUse use;
    const std::int64_t holder = plan.rank_of(uses[u].stage);
    use.world_peer = static_cast<int>(plan.mesh.rank({at.data, holder, at.tensor}));
    if (holder == at.pipeline) {
      use.gradient = parameters_.gradients() + held.gradients[local_use++] + piece.begin;
      for (const std::int64_t other : holders) {
        if (other == at.pipeline) continue;
        use.sends.push_back(pipeline.make_send(use.gradient, bytes, static_cast<int>(other), tag));
      }
    } else {
      use.received = Buffer(bytes);
      use.gradient = use.received.f32();
      use.receive = pipeline.make_receive(use.gradient, bytes, static_cast<int>(holder), tag);
    }
    tied.uses.push_back(std::move(use));
  }
  return tied;
}

void GradientSync::weight_done(NodeId node) {
  for (std::size_t b = 0; b < buckets_.size(); ++b) {
    Bucket& bucket = buckets_[b];
    if (bucket.started || bucket.first_node != node) continue;
    bucket.started = true;
    if (bucket.reduce) {
      const ActivitySpan encoding(compressed_ ? log_ : nullptr, Activity::Replicas);
      bucket.reduce->start();
      sent_bytes_ += bucket.sent_bytes;
    } else {
      parameters_.shared()->post(kBucketsReady, buckets_before_ + b + 1);
    }
  }
  progress();
}

bool GradientSync::all_reached(ReplicaChannel channel, std::uint64_t value) {
  for (int r = 0; r < replicas_; ++r) {
    if (!parameters_.shared()->reached(r, channel, value)) return false;
  }
  return true;
}

bool GradientSync::test(std::size_t b) {
  const Bucket& bucket = buckets_[b];
  if (bucket.reduce) return bucket.reduce->test();
  if (!all_reached(kBucketsReady, buckets_before_ + b + 1)) return false;
  for (const Range& range : bucket.duty) {
    for (int r = 0; r < replicas_; ++r) {
      terms_[static_cast<std::size_t>(r)] = parameters_.gradients_of(r) + range.begin;
    }
    ops::sum_terms(pool_, terms_, parameters_.gradients() + range.begin, range.size(), false);
  }
  return true;
}

void GradientSync::progress() {
  for (std::size_t b = oldest_; b < buckets_.size() && buckets_[b].started; ++b) {
    if (!buckets_[b].done) buckets_[b].done = test(b);
    if (b == oldest_ && buckets_[b].done) ++oldest_;
  }
}

void GradientSync::end_pass() {
  if (!delayed_) finish_replicas();
}

void GradientSync::finish_replicas() {
  if (buckets_.empty()) return;
  const ActivitySpan span(log_, Activity::Replicas);
  for (std::size_t b = 0; b < buckets_.size(); ++b) {
    if (!buckets_[b].started) internal_error("a gradient bucket that the backward did not complete");
    if (!buckets_[b].done) {
      const auto poll = [this, b] {
        progress();
        return buckets_[b].done;
      };
      comm::wait_until(std::ref(poll),
                       {"the sum of a gradient bucket over replicas", -1, static_cast<std::int64_t>(b)});
    }
  }
  for (Bucket& bucket : buckets_) bucket.started = bucket.done = false;
  oldest_ = 0;
  buckets_before_ += buckets_.size();
}

void GradientSync::finish_tied() {
  if (tied_.empty()) return;
  const ActivitySpan span(log_, Activity::Tied);
  for (Tied& tied : tied_) {
    for (TiedUse& use : tied.uses) {
      if (use.receive) use.receive->start();
      for (auto& send : use.sends) send->start();
    }
  }
  for (Tied& tied : tied_) {
    for (TiedUse& use : tied.uses) {
      if (use.receive) comm::wait(*use.receive, {"a tied parameter's gradient", use.world_peer, tied.elements});
      for (auto& send : use.sends) comm::wait(*send, {"sending a tied parameter's gradient", -1, tied.elements});
    }
    // sum = ((use 0 + use 1) + use 2) …: `sum` is one of the uses' own buffers, read before it is written.
    for (std::int64_t i = 0; i < tied.elements; ++i) {
      float total = tied.uses.front().gradient[i];
      for (std::size_t u = 1; u < tied.uses.size(); ++u) total += tied.uses[u].gradient[i];
      tied.sum[i] = total;
    }
  }
}

void GradientSync::finish_update() {
  if (parameters_.shared() == nullptr) return;
  const ActivitySpan span(log_, Activity::Weights);
  parameters_.shared()->post(kWeightsUpdated, ++updates_);
  const auto poll = [this] { return all_reached(kWeightsUpdated, updates_); };
  comm::wait_until(std::ref(poll), {"other replicas' part of the weights", -1, -1});
}

void GradientSync::leave_pass() {
  if (parameters_.shared() == nullptr) return;
  const ActivitySpan span(log_, Activity::Weights);
  parameters_.shared()->post(kPassesLeft, ++passes_left_);
  const auto poll = [this] { return all_reached(kPassesLeft, passes_left_); };
  comm::wait_until(std::ref(poll), {"other replicas to give up the pass", -1, -1});
}

GradientMemory gradient_memory(const RunPlan& plan, const ParameterLayout& parameters, const plan::Coordinates& at) {
  GradientMemory memory;
  const bool sums = plan.servers() == 0 && !plan.local_steps();
  if (sums && plan.mesh.data > 1 && !parameters.shared) {
    for (const BucketRange& range : bucket_ranges(plan, parameters)) {
      const Range gradients{static_cast<std::int64_t>(range.begin), static_cast<std::int64_t>(range.end)};
      const auto replicas = static_cast<int>(plan.mesh.data);
      memory.own += plan.compresses() ? lay_out_compression(plan, parameters, at, gradients)
                                            .bytes(plan.config.parallel.compression.type, replicas)
                                      : comm::all_reduce_cost(gradients.size(), replicas, static_cast<int>(at.data),
                                                              all_reduce_options(plan, at))
                                            .extra_bytes;
    }
  }
  for (const HeldParameter& held : parameters.held) {
    std::int64_t duty = 0;
    for (const Piece& piece : held.share) duty += piece.box.elements();
    const auto neighbours = parameters.shared ? static_cast<std::size_t>(plan.mesh.data - 1) : 0;
    memory.neighbours += neighbours * held.gradients.size() * static_cast<std::size_t>(duty) * sizeof(float);
    const auto& uses = plan.uses(held.id);
    if (uses.size() < 2) continue;
    const auto remote = std::count_if(uses.begin(), uses.end(),
                                      [&](const auto& use) { return plan.rank_of(use.stage) != at.pipeline; });
    memory.own += static_cast<std::size_t>(remote) * sizeof(float) *
                  static_cast<std::size_t>(parameters.shared ? duty : held.elements);
  }
  if (parameters.delayed) memory.own *= 2;  // two exchanges take turns
  return memory;
}

double uncompressed_bytes(const RunPlan& plan) {
  double bytes = 0;
  for (std::int64_t rank = 0; rank < plan.mesh.size(); ++rank) {
    const plan::Coordinates at = plan.mesh.coordinates(rank);
    const ParameterLayout parameters =
        lay_out_parameters(plan, plan::shard(plan.graph, plan.mesh.tensor, at.tensor), at);
    for (const BucketRange& range : bucket_ranges(plan, parameters)) {
      bytes += static_cast<double>(
          comm::Communicator::all_reduce_sent_bytes(static_cast<std::int64_t>(range.end - range.begin),
                                                    static_cast<int>(plan.mesh.data), static_cast<int>(at.data)));
    }
  }
  return bytes;
}

}  // namespace trainer::runtime
