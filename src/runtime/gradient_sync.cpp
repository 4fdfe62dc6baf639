#include "trainer/runtime/gradient_sync.hpp"

#include <algorithm>
#include <set>

#include "trainer/core/error.hpp"

namespace trainer::runtime {

namespace {

struct BucketRange {
  NodeId first_node;
  std::size_t begin = 0, end = 0;  // elements of the gradient memory
};

// Whole nodes from the last to the first, closed at kBucketElements.
std::vector<BucketRange> bucket_ranges(const ParameterLayout& parameters, std::int64_t first_node) {
  std::vector<BucketRange> buckets;
  std::size_t end = parameters.gradient_elements;
  for (std::size_t i = parameters.of_node.size(); i-- > 0;) {
    if (parameters.of_node[i].empty()) continue;
    const std::size_t begin = parameters.of_node[i].front().gradient;
    const bool last = begin == 0;
    if (static_cast<std::int64_t>(end - begin) >= kBucketElements || last) {
      buckets.push_back({NodeId(first_node + static_cast<std::int64_t>(i)), begin, end});
      end = begin;
    }
  }
  return buckets;
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

GradientSync::GradientSync(const RunPlan& plan, const plan::Coordinates& at, Parameters& parameters,
                           comm::Communicator& data, comm::Communicator& pipeline) {
  const StageId stage(at.pipeline);
  if (data.size() > 1) make_buckets(parameters, data, plan.nodes(stage));
  make_tied(plan, at, parameters, pipeline);
}

void GradientSync::make_buckets(Parameters& parameters, comm::Communicator& data, Range nodes) {
  for (const BucketRange& range : bucket_ranges(parameters.layout(), nodes.begin)) {
    Bucket bucket;
    bucket.first_node = range.first_node;
    bucket.reduce =
        data.make_all_reduce(parameters.gradients() + range.begin, static_cast<std::int64_t>(range.end - range.begin));
    buckets_.push_back(std::move(bucket));
  }
}

void GradientSync::make_tied(const RunPlan& plan, const plan::Coordinates& at, Parameters& parameters,
                             comm::Communicator& pipeline) {
  const StageId stage(at.pipeline);
  for (const HeldParameter& held : parameters.layout().held) {
    const auto& uses = plan.uses(held.id);
    if (uses.size() < 2) continue;
    const int first_tag = kTiedTagBase + tied_uses_before(plan, held.id);
    std::set<StageId> holders;
    for (const ParameterUse& use : uses) holders.insert(use.stage);
    Tied tied;
    tied.elements = held.elements;
    tied.sum = parameters.gradients() + held.gradients.front();
    const std::size_t bytes = static_cast<std::size_t>(held.elements) * sizeof(float);
    std::size_t local_use = 0;
    for (std::size_t u = 0; u < uses.size(); ++u) {
      const int tag = first_tag + static_cast<int>(u);
      TiedUse use;
      use.world_peer = static_cast<int>(plan.mesh.rank({at.data, uses[u].stage.value, at.tensor}));
      if (uses[u].stage == stage) {
        use.gradient = parameters.gradients() + held.gradients[local_use++];
        for (const StageId holder : holders) {
          if (holder != stage) use.sends.push_back(pipeline.make_send(use.gradient, bytes, holder.value, tag));
        }
      } else {
        use.received = Buffer(bytes);
        use.gradient = use.received.f32();
        use.receive = pipeline.make_receive(use.gradient, bytes, uses[u].stage.value, tag);
      }
      tied.uses.push_back(std::move(use));
    }
    tied_.push_back(std::move(tied));
  }
}

void GradientSync::weight_done(NodeId node) {
  for (Bucket& bucket : buckets_) {
    if (bucket.started || bucket.first_node != node) continue;
    bucket.reduce->start();
    bucket.started = true;
  }
  progress();
}

void GradientSync::progress() {
  for (std::size_t b = oldest_; b < buckets_.size() && buckets_[b].started; ++b) {
    if (!buckets_[b].done) buckets_[b].done = buckets_[b].reduce->test();
    if (b == oldest_ && buckets_[b].done) ++oldest_;
  }
}

void GradientSync::finish_replicas() {
  for (std::size_t b = 0; b < buckets_.size(); ++b) {
    if (!buckets_[b].started) internal_error("a gradient bucket that the backward did not complete");
    if (!buckets_[b].done) {
      const auto poll = [this, b] {
        progress();
        return buckets_[b].done;
      };
      waited_ += comm::wait_until(std::ref(poll),
                                  {"the sum of a gradient bucket over replicas", -1, static_cast<std::int64_t>(b)});
    }
  }
  for (Bucket& bucket : buckets_) bucket.started = bucket.done = false;
  oldest_ = 0;
}

void GradientSync::finish_tied() {
  for (Tied& tied : tied_) {
    for (TiedUse& use : tied.uses) {
      if (use.receive) use.receive->start();
      for (auto& send : use.sends) send->start();
    }
  }
  for (Tied& tied : tied_) {
    for (TiedUse& use : tied.uses) {
      if (use.receive)
        waited_ += comm::wait(*use.receive, {"a tied parameter's gradient", use.world_peer, tied.elements});
      for (auto& send : use.sends)
        waited_ += comm::wait(*send, {"sending a tied parameter's gradient", -1, tied.elements});
    }
    // sum = ((use 0 + use 1) + use 2) …: `sum` is one of the uses' own buffers, read before it is written.
    for (std::int64_t i = 0; i < tied.elements; ++i) {
      float total = tied.uses.front().gradient[i];
      for (std::size_t u = 1; u < tied.uses.size(); ++u) total += tied.uses[u].gradient[i];
      tied.sum[i] = total;
    }
  }
}

std::size_t GradientSync::extra_bytes(const RunPlan& plan, const ParameterLayout& parameters,
                                      const plan::Coordinates& at) {
  const StageId stage(at.pipeline);
  std::size_t bytes = 0;
  if (plan.mesh.data > 1) {
    for (const BucketRange& range : bucket_ranges(parameters, plan.nodes(stage).begin)) {
      bytes += comm::Communicator::all_reduce_extra_bytes(static_cast<std::int64_t>(range.end - range.begin),
                                                          static_cast<int>(plan.mesh.data));
    }
  }
  for (const HeldParameter& held : parameters.held) {
    const auto& uses = plan.uses(held.id);
    if (uses.size() < 2) continue;
    const auto remote =
        std::count_if(uses.begin(), uses.end(), [stage](const ParameterUse& use) { return use.stage != stage; });
    bytes += static_cast<std::size_t>(remote) * static_cast<std::size_t>(held.elements) * sizeof(float);
  }
  return bytes;
}

}  // namespace trainer::runtime
