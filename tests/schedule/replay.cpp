// The executor's rules once more, on a clock of ticks.
#include "replay.hpp"

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <tuple>

namespace trainer::schedule::test {
namespace {

/// Slots of one kind of one stage.
class Pool {
 public:
  Pool(const std::vector<std::int32_t>& slot_of, std::int32_t count) : slot_of_(&slot_of), owner_(count, kFree) {}

  std::string take(int i) {
    const std::int32_t slot = slot_of_->at(static_cast<std::size_t>(i));
    if (slot < 0 || slot >= static_cast<std::int32_t>(owner_.size())) return "no slot";
    if (owner_[static_cast<std::size_t>(slot)] != kFree) return "slot taken";
    owner_[static_cast<std::size_t>(slot)] = i;
    peak = std::max(peak, ++taken_);
    return "";
  }
  std::string release(int i) {
    const std::int32_t slot = slot_of_->at(static_cast<std::size_t>(i));
    if (slot < 0 || owner_.at(static_cast<std::size_t>(slot)) != i) return "not the owner";
    owner_[static_cast<std::size_t>(slot)] = kFree;
    --taken_;
    return "";
  }
  bool empty() const { return taken_ == 0; }

  std::int32_t peak = 0;

 private:
  static constexpr int kFree = -1;
  const std::vector<std::int32_t>* slot_of_;
  std::vector<int> owner_;
  std::int32_t taken_ = 0;
};

struct StagePools {
  explicit StagePools(const StageSlots& s)
      : activation(s.activation, s.activation_count),
        weight_input(s.weight_input, s.weight_input_count),
        weight_gradient(s.weight_gradient, s.weight_gradient_count),
        output_gradient(s.output_gradient, s.output_gradient_count) {}
  Pool activation, weight_input, weight_gradient, output_gradient;
};

struct Message {
  std::int64_t sent = -1, posted = -1;
  bool ready = false;  // received, or handed over on the rank
};

class Replay {
 public:
  Replay(const Schedule& schedule, const std::vector<StageSlots>& slots, const std::vector<Ticks>& ticks,
         const ReplayOptions& options)
      : s_(schedule), ticks_(ticks), options_(options), at_(schedule.ranks.size(), 0), free_at_(at_.size(), 0) {
    for (const StageSlots& stage : slots) pools_.emplace_back(stage);
    for (const auto& row : s_.ranks) result_.start.emplace_back(row.size(), -1);
    for (std::size_t r = 0; r < s_.ranks.size(); ++r) {
      std::map<std::pair<int, bool>, bool> posted;  // (stage, gradients)
      for (const Action& a : s_.ranks[r]) {
        if (!is_receive(a.kind)) continue;
        bool& first = posted[{a.stage.value, a.kind == ActionKind::RecvBackward}];
        if (!first) post(a);
        first = true;
      }
    }
  }

  Replayed run() {
    std::mt19937 random(options_.seed);
    std::vector<std::size_t> order(s_.ranks.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    while (result_.fault.empty()) {
      bool moved = false;
      std::shuffle(order.begin(), order.end(), random);
      for (std::size_t r : order) moved |= try_one(r);
      if (moved) continue;
      const std::int64_t next = next_event();
      if (next < 0) break;
      now_ = next;
    }
    result_.finished = result_.fault.empty();
    for (std::size_t r = 0; r < at_.size(); ++r) {
      result_.finished = result_.finished && at_[r] == s_.ranks[r].size();
      result_.step = std::max(result_.step, free_at_[r]);
    }
    if (result_.finished) check_nothing_left();
    for (const StagePools& p : pools_) {
      result_.peaks.push_back({p.activation.peak, p.weight_input.peak, p.weight_gradient.peak, p.output_gradient.peak});
    }
    return result_;
  }

 private:
  // A message is named by its receiver: (stage, gradients, micro-batch).
  using Name = std::tuple<int, bool, int>;

  static bool is_receive(ActionKind k) { return k == ActionKind::RecvForward || k == ActionKind::RecvBackward; }
  int rank_of(int stage) const { return s_.rank_of_stage.at(static_cast<std::size_t>(stage)); }
  bool exists(int stage) const { return stage >= 0 && stage < s_.stages; }
  StagePools& pools(int stage) { return pools_.at(static_cast<std::size_t>(stage)); }

  void fail_if(const std::string& fault, const Action& a) {
    if (!fault.empty() && result_.fault.empty()) result_.fault = to_string(a) + ": " + fault;
  }

  void post(const Action& a) {
    const bool gradients = a.kind == ActionKind::RecvBackward;
    StagePools& p = pools(a.stage.value);
    fail_if((gradients ? p.output_gradient : p.weight_input).take(a.micro_batch.value), a);
    messages_[{a.stage.value, gradients, a.micro_batch.value}].posted = now_;
  }

  /// When the message is over; −1: not known yet.
  std::int64_t over(const Message& m) const {
    if (m.sent < 0 || (m.posted < 0 && !options_.eager)) return -1;
    return std::max(m.sent, options_.eager ? m.sent : m.posted) + options_.transfer;
  }
  bool send_complete(const Message& m) const { return options_.eager ? m.sent >= 0 : over(m) >= 0 && over(m) <= now_; }
  bool arrived(const Message& m) const { return m.posted >= 0 && over(m) >= 0 && over(m) <= now_; }

  bool try_one(std::size_t r) {
    if (at_[r] == s_.ranks[r].size() || free_at_[r] > now_ || !result_.fault.empty()) return false;
    const Action& a = s_.ranks[r][at_[r]];
    const int s = a.stage.value;
    const int i = a.micro_batch.value;
    const Ticks& t = ticks_.at(static_cast<std::size_t>(s));
    int duration = 0;
    switch (a.kind) {
      case ActionKind::SendForward:
        messages_[{s + 1, false, i}].sent = now_;
        break;
      case ActionKind::SendBackward:
        messages_[{s - 1, true, i}].sent = now_;
        break;
      case ActionKind::RecvForward:
      case ActionKind::RecvBackward:
        if (!receive(r, a)) return false;
        break;
      case ActionKind::ReduceGradients:
        break;
      case ActionKind::Forward:
        if (!take_ring_entry(a, s + 1, false)) return false;
        forward(a);
        duration = t.forward;
        break;
      case ActionKind::Backward:
      case ActionKind::BackwardInput:
        if (!take_ring_entry(a, s - 1, true)) return false;
        backward_input(a);
        duration = t.backward_input;
        if (a.kind == ActionKind::BackwardInput) break;
        backward_weight(a);
        duration += t.backward_weight;
        break;
      case ActionKind::BackwardWeight:
        backward_weight(a);
        duration = t.backward_weight;
        break;
    }
    if (a.kind <= ActionKind::BackwardWeight) result_.start[r][at_[r]] = now_;
    free_at_[r] = now_ + duration;
    ++at_[r];
    return true;
  }

  bool receive(std::size_t r, const Action& a) {
    Message& m = messages_[{a.stage.value, a.kind == ActionKind::RecvBackward, a.micro_batch.value}];
    if (m.posted < 0) fail_if("received before it was posted", a);
    if (!arrived(m)) return false;
    m.ready = true;
    for (std::size_t j = at_[r] + 1; j < s_.ranks[r].size(); ++j) {
      const Action& next = s_.ranks[r][j];
      if (next.kind != a.kind || next.stage != a.stage) continue;
      post(next);
      break;
    }
    return true;
  }

  /// Waits for the send that used the ring entry; a neighbour on the same rank takes the value into its own slot.
  bool take_ring_entry(const Action& a, int to, bool gradients) {
    if (!exists(to)) return true;
    const Name name{to, gradients, a.micro_batch.value};
    if (rank_of(to) == rank_of(a.stage.value)) {
      StagePools& p = pools(to);
      fail_if((gradients ? p.output_gradient : p.weight_input).take(a.micro_batch.value), a);
      messages_[name].ready = true;
      return true;
    }
    std::vector<Name>& ring = produced_[{a.stage.value, gradients}];
    if (ring.size() >= kSendSlots && !send_complete(messages_[ring[ring.size() - kSendSlots]])) return false;
    ring.push_back(name);
    return true;
  }

  void forward(const Action& a) {
    const int i = a.micro_batch.value;
    StagePools& p = pools(a.stage.value);
    if (a.stage.value == 0) {
      fail_if(p.weight_input.take(i), a);
    } else if (!messages_[{a.stage.value, false, i}].ready) {
      fail_if("input not received", a);
    }
    fail_if(p.activation.take(i), a);
    if (!s_.forward_only) return;
    fail_if(p.activation.release(i), a);
    fail_if(p.weight_input.release(i), a);
  }

  void backward_input(const Action& a) {
    const int i = a.micro_batch.value;
    StagePools& p = pools(a.stage.value);
    if (exists(a.stage.value + 1) && !messages_[{a.stage.value, true, i}].ready) fail_if("gradient not received", a);
    fail_if(p.activation.release(i), a);
    fail_if(p.weight_gradient.take(i), a);
  }

  void backward_weight(const Action& a) {
    const int i = a.micro_batch.value;
    StagePools& p = pools(a.stage.value);
    fail_if(p.weight_input.release(i), a);
    fail_if(p.weight_gradient.release(i), a);
    if (exists(a.stage.value + 1)) fail_if(p.output_gradient.release(i), a);
  }

  /// The next time at which something ends; −1: nothing will.
  std::int64_t next_event() const {
    std::int64_t next = -1;
    const auto consider = [&](std::int64_t time) {
      if (time > now_ && (next < 0 || time < next)) next = time;
    };
    for (std::int64_t time : free_at_) consider(time);
    for (const auto& [name, m] : messages_) consider(over(m));
    return next;
  }

  void check_nothing_left() {
    for (const StagePools& p : pools_) {
      if (!p.activation.empty() || !p.weight_input.empty() || !p.weight_gradient.empty() ||
          !p.output_gradient.empty()) {
        result_.fault = "a slot is still taken at the end of the step";
      }
    }
  }

  const Schedule& s_;
  const std::vector<Ticks>& ticks_;
  ReplayOptions options_;
  std::vector<StagePools> pools_;
  std::vector<std::size_t> at_;
  std::vector<std::int64_t> free_at_;
  std::map<Name, Message> messages_;
  std::map<std::pair<int, bool>, std::vector<Name>> produced_;  // (stage, gradients) → in order
  std::int64_t now_ = 0;
  Replayed result_;
};

}  // namespace

Replayed replay(const Schedule& schedule, const std::vector<StageSlots>& slots, const std::vector<Ticks>& ticks,
                const ReplayOptions& options) {
  return Replay(schedule, slots, ticks, options).run();
}

}  // namespace trainer::schedule::test
