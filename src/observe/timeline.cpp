// A trace for Perfetto, and one step for the report.
#include "trainer/observe/timeline.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <map>
#include <optional>
#include <set>

namespace trainer::observe {

namespace {

// What Perfetto colours by and lets people choose.
std::string_view category(Activity activity) {
  if (is_compute(activity)) return "compute";
  if (activity <= Activity::SendWait) return "message";
  if (activity <= Activity::Agreement) return "collective";
  return "step";
}

char letter(Activity compute) { return "FBIW"[static_cast<std::size_t>(compute)]; }

/// Appends events, each a line of its own.
class TraceWriter {
 public:
  explicit TraceWriter(std::int64_t origin) : origin_(origin) {}

  void name_process(std::size_t rank, const std::string& place) {
    event(R"({{"name":"process_name","ph":"M","pid":{0},"tid":0,"args":{{"name":"rank {0}: {1}"}}}})", rank, place);
    event(R"({{"name":"process_sort_index","ph":"M","pid":{0},"tid":0,"args":{{"sort_index":{0}}}}})", rank);
    event(R"({{"name":"thread_name","ph":"M","pid":{},"tid":0,"args":{{"name":"actions and waits"}}}})", rank);
  }
  void slice(std::size_t rank, const Span& span) {
    std::string details;
    if (span.stage >= 0) details = fmt::format(R"("stage":{})", span.stage);
    if (span.stage >= 0 && span.index >= 0) details += fmt::format(R"(,"micro-batch":{})", span.index);
    event(R"({{"name":"{}","cat":"{}","ph":"X","ts":{},"dur":{},"pid":{},"tid":0,"args":{{{}}}}})", span_name(span),
          category(span.activity), time(span.begin), microseconds(span.end - span.begin), rank, details);
  }
  void arrow(std::size_t rank, bool begins, std::int64_t nanoseconds, const char* name, const std::string& id) {
    event(R"({{"name":"{}","cat":"message","ph":"{}","ts":{},"pid":{},"tid":0,"id":"{}"{}}})", name, begins ? 's' : 'f',
          time(nanoseconds), rank, id, begins ? "" : R"(,"bp":"e")");
  }
  void counter(std::size_t rank, std::int64_t nanoseconds, std::int64_t bytes) {
    event(R"({{"name":"activations held","ph":"C","ts":{},"pid":{},"args":{{"bytes":{}}}}})", time(nanoseconds), rank,
          bytes);
  }
  void marker(std::int64_t nanoseconds, std::int64_t step) {
    event(R"({{"name":"step {}","ph":"i","s":"g","ts":{},"pid":0,"tid":0}})", step, time(nanoseconds));
  }

  std::string finish(std::int64_t clock_error) {
    return fmt::format(
        "{{\"traceEvents\":[{}\n],\"displayTimeUnit\":\"ms\",\"otherData\":{{\"clock error ns\":{}}}}}\n", text_,
        clock_error);
  }

 private:
  template <class... Values>
  void event(fmt::format_string<Values...> format, Values&&... values) {
    text_ += text_.empty() ? "\n" : ",\n";
    fmt::format_to(std::back_inserter(text_), format, std::forward<Values>(values)...);
  }
  // Microseconds with all their nanoseconds: a trace viewer must see what ends as ended.
  static std::string microseconds(std::int64_t nanoseconds) {
    return fmt::format("{}.{:03}", nanoseconds / 1000, nanoseconds % 1000);
  }
  std::string time(std::int64_t nanoseconds) const { return microseconds(nanoseconds - origin_); }

  std::int64_t origin_;
  std::string text_;
};

// A message: who sends it is told by the stage that makes it.
std::optional<std::string> message_of(const Span& span, std::int64_t column, std::int64_t step) {
  const auto id = [&](const char* kind, std::int64_t stage) {
    return fmt::format("{}.{}.{}{}.{}", step, column, kind, stage, span.index);
  };
  switch (span.activity) {
    case Activity::SendForward:
      return id("F", span.stage);
    case Activity::ReceiveForward:
      return id("F", span.stage - 1);
    case Activity::SendBackward:
      return id("B", span.stage);
    case Activity::ReceiveBackward:
      return id("B", span.stage + 1);
    default:
      return std::nullopt;
  }
}

bool is_send(Activity activity) { return activity == Activity::SendForward || activity == Activity::SendBackward; }

/// The step that each span lies in; 0: between steps. `spans` are ordered by end, a Step behind its own.
std::vector<std::int64_t> step_of_spans(const std::vector<Span>& spans) {
  std::vector<std::int64_t> steps(spans.size(), 0);
  const Span* step = nullptr;
  for (std::size_t i = spans.size(); i-- > 0;) {
    if (spans[i].activity == Activity::Step) step = &spans[i];
    if (step != nullptr && spans[i].begin >= step->begin && spans[i].end <= step->end) steps[i] = step->index;
  }
  return steps;
}

void write_memory(TraceWriter& writer, std::size_t rank, const RankTimeline& timeline) {
  std::int64_t held = 0;
  std::set<std::pair<std::int32_t, std::int64_t>> forwarded;  // (stage, micro-batch)
  for (const Span& span : timeline.spans) {
    if (!is_compute(span.activity)) continue;
    // A pass that was given up and walked again puts the same things into the same places.
    const std::pair key(span.stage, span.index);
    if (span.activity == Activity::Forward && !forwarded.insert(key).second) continue;
    if (span.activity == Activity::Backward || span.activity == Activity::BackwardWeight) forwarded.erase(key);
    const auto of = std::find_if(timeline.bytes.begin(), timeline.bytes.end(),
                                 [&](const HeldBytes& bytes) { return bytes.stage == span.stage; });
    if (of == timeline.bytes.end()) continue;
    const auto change = [&](std::int64_t nanoseconds, std::int64_t bytes) {
      held += bytes;
      writer.counter(rank, nanoseconds, held);
    };
    switch (span.activity) {
      case Activity::Forward:
        change(span.begin, of->forward_to_input + of->forward_to_weight);
        break;
      case Activity::Backward:
        change(span.end, -of->forward_to_input - of->forward_to_weight);
        break;
      case Activity::BackwardInput:
        change(span.end, of->input_to_weight - of->forward_to_input);
        break;
      default:
        change(span.end, -of->forward_to_weight - of->input_to_weight);
    }
  }
}

void write_rank(TraceWriter& writer, std::size_t rank, const RankTimeline& timeline) {
  writer.name_process(rank, timeline.place);
  const std::vector<std::int64_t> steps = step_of_spans(timeline.spans);
  std::map<std::string, int> passed;  // messages of one name: more than one where a step walks its pass again
  for (std::size_t i = 0; i < timeline.spans.size(); ++i) {
    const Span& span = timeline.spans[i];
    writer.slice(rank, span);
    if (rank == 0 && span.activity == Activity::Step) writer.marker(span.begin, span.index);
    if (const auto id = message_of(span, timeline.column, steps[i])) {
      const bool forward = span.activity == Activity::SendForward || span.activity == Activity::ReceiveForward;
      const bool send = is_send(span.activity);
      writer.arrow(rank, send, send ? span.begin : span.end, forward ? "activations" : "gradient",
                   fmt::format("{}.{}", *id, passed[*id]++));
    }
  }
  write_memory(writer, rank, timeline);
}

}  // namespace

std::string span_name(const Span& span) {
  if (is_compute(span.activity)) return fmt::format("{}{}{}", span.stage, letter(span.activity), span.index);
  switch (span.activity) {
    case Activity::ReceiveForward:
      return fmt::format("{}RECV_F{}", span.stage, span.index);
    case Activity::ReceiveBackward:
      return fmt::format("{}RECV_B{}", span.stage, span.index);
    case Activity::SendForward:
      return fmt::format("{}SEND_F{}", span.stage, span.index);
    case Activity::SendBackward:
      return fmt::format("{}SEND_B{}", span.stage, span.index);
    case Activity::Step:
      return fmt::format("step {}", span.index);
    default:
      return std::string(name_of(span.activity));
  }
}

std::string trace_json(const Timeline& timeline) {
  std::int64_t origin = std::numeric_limits<std::int64_t>::max();
  for (const RankTimeline& rank : timeline.ranks) {
    for (const Span& span : rank.spans) origin = std::min(origin, span.begin);
  }
  TraceWriter writer(origin);
  for (std::size_t r = 0; r < timeline.ranks.size(); ++r) write_rank(writer, r, timeline.ranks[r]);
  return writer.finish(timeline.clock_error);
}

std::string actions_json(const Timeline& timeline, std::int64_t step) {
  std::int64_t begin = std::numeric_limits<std::int64_t>::max(), end = 0;
  for (const RankTimeline& rank : timeline.ranks) {
    for (const Span& span : rank.spans) {
      if (span.activity != Activity::Step || span.index != step) continue;
      begin = std::min(begin, span.begin);
      end = std::max(end, span.end);
    }
  }
  const auto seconds = [begin](std::int64_t at) { return static_cast<double>(at - begin) * 1e-9; };
  std::string ranks;
  for (std::size_t r = 0; r < timeline.ranks.size(); ++r) {
    const RankTimeline& rank = timeline.ranks[r];
    const std::vector<std::int64_t> steps = step_of_spans(rank.spans);
    std::string spans;
    for (std::size_t i = 0; i < rank.spans.size(); ++i) {
      const Span& span = rank.spans[i];
      if (steps[i] != step || span.activity == Activity::Pass) continue;
      fmt::format_to(std::back_inserter(spans), "{}[\"{}\",{:.7f},{:.7f}]", spans.empty() ? "" : ",", span_name(span),
                     seconds(span.begin), seconds(span.end));
    }
    fmt::format_to(std::back_inserter(ranks), "{}\n{{\"rank\":{},\"place\":\"{}\",\"spans\":[{}]}}", r == 0 ? "" : ",",
                   r, rank.place, spans);
  }
  return fmt::format("{{\"step\":{},\"seconds\":{:.7f},\"ranks\":[{}\n]}}\n", step, seconds(end), ranks);
}

}  // namespace trainer::observe
