// What must hold of a table before its actions can be run at all.
#include "structure.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "channels.hpp"

namespace trainer::schedule {
namespace {

constexpr std::int32_t kMissing = -1;
using Fault = std::optional<Violation>;

std::string where(std::int64_t position, std::int64_t rank) {
  return fmt::format("action {} of rank {}", position, rank);
}

Violation whole(std::string sentence) { return {std::move(sentence), -1, -1}; }

Fault shape_fault(const Schedule& s) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  if (s.stages < 1 || s.micro_batches < 1 || s.stages > kMost / 2 || s.micro_batches > kMost) {
    return whole(fmt::format("the table is for {} stages and {} micro-batches; both must be at least 1", s.stages,
                             s.micro_batches));
  }
  if (static_cast<std::int64_t>(s.rank_of_stage.size()) != s.stages) {
    return whole(fmt::format("rank_of_stage has {} entries for {} stages", s.rank_of_stage.size(), s.stages));
  }
  for (std::size_t stage = 0; stage < s.rank_of_stage.size(); ++stage) {
    const std::int32_t rank = s.rank_of_stage[stage];
    if (rank < 0 || static_cast<std::size_t>(rank) >= s.ranks.size()) {
      return whole(fmt::format("stage {} is on rank {}, but the table has {} rows", stage, rank, s.ranks.size()));
    }
  }
  for (std::size_t r = 0; r < s.ranks.size(); ++r) {
    if (s.ranks[r].size() > static_cast<std::size_t>(kMost))
      return whole(fmt::format("the row of rank {} is too long", r));
  }
  return std::nullopt;
}

/// Positions of all actions by what they are, and the checks that need them.
class Table {
 public:
  explicit Table(const Schedule& schedule)
      : schedule_(schedule),
        channels_(schedule),
        forward_(channels_.cells(), kMissing),
        input_gradient_(channels_.cells(), kMissing),
        weight_gradient_(channels_.cells(), kMissing),
        reduction_(static_cast<std::size_t>(schedule.stages), kMissing),
        send_(channels_.messages(), kMissing),
        receive_(channels_.messages(), kMissing) {}

  Fault fault() {
    if (Fault f = place_actions()) return f;
    if (Fault f = missing_compute()) return f;
    if (Fault f = backward_before_forward()) return f;
    if (Fault f = weight_order()) return f;
    if (Fault f = reductions()) return f;
    if (Fault f = place_messages()) return f;
    if (Fault f = unmatched_messages()) return f;
    return overtaking();
  }

 private:
  std::int32_t rank_of(StageId stage) const { return schedule_.rank_of_stage[stage.index()]; }
  const Action& action_at(std::int32_t rank, std::int32_t position) const {
    return schedule_.ranks[static_cast<std::size_t>(rank)][static_cast<std::size_t>(position)];
  }
  /// The sentence with the line of the grid that it is about.
  Violation at(std::string sentence, std::int32_t rank, std::int32_t position) const {
    sentence += "\n" + excerpt(schedule_, static_cast<std::size_t>(rank), static_cast<std::size_t>(position));
    return {std::move(sentence), rank, position};
  }

  /// The same for an action that is missing: the line around the micro-batch before, or the row's first actions.
  Violation near(std::string sentence, const std::vector<std::int32_t>& places, StageId stage, MicroBatchId i) const {
    const std::int32_t before = i.value > 0 ? places[channels_.cell(stage, i) - 1] : kMissing;
    const std::int32_t rank = rank_of(stage);
    sentence += "\n" + excerpt(schedule_, static_cast<std::size_t>(rank), static_cast<std::size_t>(std::max(before, 0)),
                               /*marked=*/false);
    return {std::move(sentence), rank, kMissing};
  }

  template <class Visit>  // Fault visit(action, rank, position)
  Fault for_each_action(Visit&& visit) const {
    for (std::size_t r = 0; r < schedule_.ranks.size(); ++r) {
      const std::vector<Action>& row = schedule_.ranks[r];
      for (std::size_t i = 0; i < row.size(); ++i) {
        if (Fault f = visit(row[i], static_cast<std::int32_t>(r), static_cast<std::int32_t>(i))) return f;
      }
    }
    return std::nullopt;
  }

  Fault misplaced(const Action& a, std::int32_t rank, std::int32_t i) const {
    if (!a.stage.valid() || a.stage.value >= schedule_.stages) {
      return at(fmt::format("{} is {}, but the stages are 0 to {}", to_string(a), where(i, rank), schedule_.stages - 1),
                rank, i);
    }
    if (a.kind != ActionKind::ReduceGradients &&
        (!a.micro_batch.valid() || a.micro_batch.value >= schedule_.micro_batches)) {
      return at(fmt::format("{} is {}, but the micro-batches are 0 to {}", to_string(a), where(i, rank),
                            schedule_.micro_batches - 1),
                rank, i);
    }
    if (rank_of(a.stage) != rank) {
      return at(fmt::format("{} is {}, but stage {} is on rank {}", to_string(a), where(i, rank), a.stage.value,
                            rank_of(a.stage)),
                rank, i);
    }
    const bool forward =
        a.kind == ActionKind::Forward || a.kind == ActionKind::SendForward || a.kind == ActionKind::RecvForward;
    if (schedule_.forward_only && !forward) {
      return at(fmt::format("{} is {}, but the table is forward only", to_string(a), where(i, rank)), rank, i);
    }
    return std::nullopt;
  }

  /// Enters `i` into an empty place.
  Fault enter(std::int32_t& place, const Action& a, std::int32_t rank, std::int32_t i) const {
    if (place == kMissing) {
      place = i;
      return std::nullopt;
    }
    const Action& first = action_at(rank, place);
    if (first == a) {
      return at(fmt::format("{} stands twice on rank {}: actions {} and {}", to_string(a), rank, place, i), rank, i);
    }
    return at(fmt::format("micro-batch {} of stage {} goes backward twice on rank {}: {} is action {}, {} is action {}",
                          a.micro_batch.value, a.stage.value, rank, to_string(first), place, to_string(a), i),
              rank, i);
  }

  Fault place_actions() {
    return for_each_action([&](const Action& a, std::int32_t rank, std::int32_t i) -> Fault {
      if (Fault f = misplaced(a, rank, i)) return f;
      if (a.kind == ActionKind::ReduceGradients) return enter(reduction_[a.stage.index()], a, rank, i);
      if (!is_compute(a.kind)) return std::nullopt;
      const std::size_t cell = channels_.cell(a.stage, a.micro_batch);
      if (a.kind == ActionKind::Forward) return enter(forward_[cell], a, rank, i);
      if (makes_input_gradient(a.kind)) {
        if (Fault f = enter(input_gradient_[cell], a, rank, i)) return f;
      }
      return makes_weight_gradient(a.kind) ? enter(weight_gradient_[cell], a, rank, i) : std::nullopt;
    });
  }

  template <class Visit>  // Fault visit(stage, micro_batch, cell)
  Fault for_each_cell(Visit&& visit) const {
    for (std::int64_t s = 0; s < schedule_.stages; ++s) {
      for (std::int64_t i = 0; i < schedule_.micro_batches; ++i) {
        const StageId stage(s);
        const MicroBatchId micro_batch(i);
        if (Fault f = visit(stage, micro_batch, channels_.cell(stage, micro_batch))) return f;
      }
    }
    return std::nullopt;
  }

  Fault missing_compute() const {
    return for_each_cell([&](StageId stage, MicroBatchId i, std::size_t cell) -> Fault {
      const auto name = [&](ActionKind kind) { return to_string(Action{stage, kind, i}); };
      const std::int32_t rank = rank_of(stage);
      if (forward_[cell] == kMissing) {
        return near(fmt::format("{} is missing from rank {}", name(ActionKind::Forward), rank), forward_, stage, i);
      }
      if (schedule_.forward_only) return std::nullopt;
      const std::int32_t input = input_gradient_[cell];
      const std::int32_t weight = weight_gradient_[cell];
      if (input == kMissing && weight == kMissing) {
        return near(fmt::format("{} (or {} and {}) is missing from rank {}", name(ActionKind::Backward),
                                name(ActionKind::BackwardInput), name(ActionKind::BackwardWeight), rank),
                    input_gradient_, stage, i);
      }
      if (input == kMissing) {
        return at(fmt::format("{} on rank {} lacks its {}", name(ActionKind::BackwardWeight), rank,
                              name(ActionKind::BackwardInput)),
                  rank, weight);
      }
      if (weight == kMissing) {
        return at(fmt::format("{} on rank {} lacks its {}", name(ActionKind::BackwardInput), rank,
                              name(ActionKind::BackwardWeight)),
                  rank, input);
      }
      if (weight < input) {
        return at(fmt::format("{} is {}, before {} (action {})", name(ActionKind::BackwardWeight), where(weight, rank),
                              name(ActionKind::BackwardInput), input),
                  rank, weight);
      }
      return std::nullopt;
    });
  }

  Fault backward_before_forward() const {
    if (schedule_.forward_only) return std::nullopt;
    return for_each_cell([&](StageId stage, MicroBatchId, std::size_t cell) -> Fault {
      const std::int32_t rank = rank_of(stage);
      const std::int32_t forward = forward_[cell];
      const std::int32_t backward = input_gradient_[cell];
      if (forward < backward) return std::nullopt;
      return at(fmt::format("{} is {}, before {} (action {})", to_string(action_at(rank, backward)),
                            where(backward, rank), to_string(action_at(rank, forward)), forward),
                rank, backward);
    });
  }

  Fault weight_order() const {
    if (schedule_.forward_only) return std::nullopt;
    return for_each_cell([&](StageId stage, MicroBatchId i, std::size_t cell) -> Fault {
      if (i.value == 0 || weight_gradient_[cell - 1] < weight_gradient_[cell]) return std::nullopt;
      const std::int32_t rank = rank_of(stage);
      const std::int32_t later = weight_gradient_[cell - 1];
      const std::int32_t earlier = weight_gradient_[cell];
      return at(fmt::format("{} is {}, before {} (action {}): weight gradients must be summed in ascending micro-batch",
                            to_string(action_at(rank, earlier)), where(earlier, rank),
                            to_string(action_at(rank, later)), later),
                rank, earlier);
    });
  }

  Fault reductions() const {
    if (std::all_of(reduction_.begin(), reduction_.end(), [](std::int32_t i) { return i == kMissing; })) {
      return std::nullopt;
    }
    for (std::size_t s = 0; s < reduction_.size(); ++s) {
      const StageId stage(static_cast<std::int64_t>(s));
      const std::int32_t rank = rank_of(stage);
      const std::string name = to_string({stage, ActionKind::ReduceGradients, MicroBatchId()});
      if (reduction_[s] == kMissing) {
        return Violation{fmt::format("{} is missing from rank {}, while other stages have theirs", name, rank), rank,
                         kMissing};
      }
      const std::int32_t last = weight_gradient_[channels_.cell(stage, MicroBatchId(schedule_.micro_batches - 1))];
      if (reduction_[s] > last) continue;
      return at(fmt::format("{} is {}, before {} (action {})", name, where(reduction_[s], rank),
                            to_string(action_at(rank, last)), last),
                rank, reduction_[s]);
    }
    return std::nullopt;
  }

  Fault place_messages() {
    return for_each_action([&](const Action& a, std::int32_t rank, std::int32_t i) -> Fault {
      if (!is_send(a.kind) && !is_receive(a.kind)) return std::nullopt;
      const std::int64_t channel = channels_.carried(a);
      if (channel == Channels::kNone) {
        return at(
            fmt::format("{} is {}, but stage {} has no neighbour there", to_string(a), where(i, rank), a.stage.value),
            rank, i);
      }
      if (!channels_.crosses(channel)) {
        return at(fmt::format("{} is {}, but stages {} and {} are both on that rank and need no message", to_string(a),
                              where(i, rank), channel / 2, channel / 2 + 1),
                  rank, i);
      }
      const std::size_t message = channels_.message(channel, a.micro_batch);
      return enter(is_send(a.kind) ? send_[message] : receive_[message], a, rank, i);
    });
  }

  Fault unmatched_messages() const {
    for (std::int64_t channel = 0; channel < channels_.count(); ++channel) {
      if (!channels_.crosses(channel)) continue;
      if (schedule_.forward_only && Channels::carries_gradients(channel)) continue;
      for (std::int64_t i = 0; i < schedule_.micro_batches; ++i) {
        if (Fault f = unmatched(channel, MicroBatchId(i))) return f;
      }
    }
    return std::nullopt;
  }

  Fault unmatched(std::int64_t channel, MicroBatchId i) const {
    const std::int32_t from = channels_.sender_rank(channel);
    const std::int32_t to = channels_.receiver_rank(channel);
    const std::string send = to_string(Channels::send(channel, i));
    const std::string receive = to_string(Channels::receive(channel, i));
    const std::int32_t sent = send_[channels_.message(channel, i)];
    const std::int32_t received = receive_[channels_.message(channel, i)];

    const bool gradients = Channels::carries_gradients(channel);
    const std::vector<std::int32_t>& steps = gradients ? input_gradient_ : forward_;
    const std::int32_t produced = steps[channels_.cell(Channels::sender(channel), i)];
    const std::int32_t consumed = steps[channels_.cell(Channels::receiver(channel), i)];
    if (sent == kMissing && received == kMissing) {
      return at(fmt::format("{} on rank {} needs what {} on rank {} makes, but the table has neither {} nor {}",
                            to_string(action_at(to, consumed)), to, to_string(action_at(from, produced)), from, send,
                            receive),
                to, consumed);
    }
    if (received == kMissing) {
      return at(fmt::format("{} on rank {} is never received: {} is missing from rank {}", send, from, receive, to),
                from, sent);
    }
    if (sent == kMissing) {
      return at(fmt::format("{} on rank {} is never sent: {} is missing from rank {}", receive, to, send, from), to,
                received);
    }
    if (sent < produced) {
      return at(fmt::format("{} is {}, before {} (action {}) has made it", send, where(sent, from),
                            to_string(action_at(from, produced)), produced),
                from, sent);
    }
    if (received > consumed) {
      return at(fmt::format("{} is {}, behind {} (action {}), which needs it", receive, where(received, to),
                            to_string(action_at(to, consumed)), consumed),
                to, received);
    }
    return std::nullopt;
  }

  /// Messages of a channel come out as they went in, so they are received in the order in which they are sent.
  Fault overtaking() const {
    std::vector<std::int64_t> before(static_cast<std::size_t>(channels_.count()), -1);  // message received last
    return for_each_action([&](const Action& a, std::int32_t rank, std::int32_t i) -> Fault {
      if (!is_receive(a.kind)) return std::nullopt;
      const std::int64_t channel = channels_.carried(a);
      const std::size_t message = channels_.message(channel, a.micro_batch);
      std::int64_t& last = before[static_cast<std::size_t>(channel)];
      if (last >= 0 && send_[message] < send_[static_cast<std::size_t>(last)]) {
        const MicroBatchId overtaken = channels_.micro_batch_of(static_cast<std::size_t>(last));
        return at(fmt::format("{} is {}, behind {}, but rank {} sends {} first; messages over one boundary arrive in "
                              "the order in which they leave",
                              to_string(a), where(i, rank), to_string(Channels::receive(channel, overtaken)),
                              channels_.sender_rank(channel), to_string(Channels::send(channel, a.micro_batch))),
                  rank, i);
      }
      last = static_cast<std::int64_t>(message);
      return std::nullopt;
    });
  }

  const Schedule& schedule_;
  Channels channels_;
  std::vector<std::int32_t> forward_;          // [cell] position of F
  std::vector<std::int32_t> input_gradient_;   // [cell] of B or I
  std::vector<std::int32_t> weight_gradient_;  // [cell] of B or W
  std::vector<std::int32_t> reduction_;        // [stage]
  std::vector<std::int32_t> send_;             // [message]
  std::vector<std::int32_t> receive_;          // [message]
};

}  // namespace

std::optional<Violation> structural_fault(const Schedule& schedule) {
  if (Fault f = shape_fault(schedule)) return f;
  return Table(schedule).fault();
}

std::string excerpt(const Schedule& schedule, std::size_t rank, std::size_t position, bool marked) {
  constexpr std::size_t kAround = 4;
  const std::vector<Action>& row = schedule.ranks[rank];
  const std::size_t begin = position > kAround ? position - kAround : 0;
  const std::size_t end = std::min(row.size(), position + kAround + 1);
  std::string line = fmt::format("  rank {}:", rank);
  if (begin > 0) line += " ...";
  for (std::size_t i = begin; i < end; ++i) {
    const std::string name = to_string(row[i]);
    line += marked && i == position ? " [" + name + "]" : " " + name;
  }
  if (end < row.size()) line += " ...";
  return line;
}

}  // namespace trainer::schedule
