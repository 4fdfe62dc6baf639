#include "report_charts.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <string_view>

#include "svg.hpp"
#include "trainer/observe/reporters.hpp"

namespace trainer::observe {

namespace {

std::string milliseconds(double seconds) {
  const double ms = 1e3 * seconds;
  return fmt::format("{:.{}f} ms", ms, ms < 10 ? 2 : ms < 1000 ? 1 : 0);
}

struct Style {
  std::string_view key, name;  // CSS class, words
};
// In the order of legends.
constexpr Style kActionStyles[] = {{"F", "forward (F)"},
                                   {"B", "backward (B)"},
                                   {"I", "input gradient (I)"},
                                   {"W", "weight gradient (W)"},
                                   {"waiting", "waiting for messages"},
                                   {"sum", "collectives"},
                                   {"opt", "optimizer"},
                                   {"data", "data"},
                                   {"other", "other"}};

std::string legend(const std::vector<Style>& styles) {
  std::string text = "<p class=\"legend\">";
  for (const Style& style : styles) {
    text += fmt::format(
        R"(<span><svg class="key" viewBox="0 0 10 10"><rect class="{}" width="10" height="10"/></svg>{}</span>)",
        style.key, style.name);
  }
  return text + "</p>";
}

/// Of a span's name; "" for what is not drawn: what encloses others, and messages sent, which take no time.
std::string_view style_of(const ActionSpan& span) {
  const std::size_t digits = std::min(span.name.find_first_not_of("0123456789"), span.name.size());
  if (digits > 0 && digits < span.name.size()) {
    const std::string_view rest = std::string_view(span.name).substr(digits);
    if (rest.starts_with("RECV")) return "waiting";
    if (rest.starts_with("SEND")) return "";
    for (const Style& style : kActionStyles) {
      if (style.key.size() == 1 && rest.front() == style.key.front()) return style.key;
    }
    return "other";
  }
  if (span.name.starts_with("step ")) return "";
  if (span.name == "send wait") return "waiting";
  for (const std::string_view collective : {"tensor sum", "replicas", "tied gradients", "weights", "agreement"}) {
    if (span.name == collective) return "sum";
  }
  if (span.name == "optimizer") return "opt";
  return span.name == "data" ? "data" : "other";
}

/// "3" of "2F3"; the stage with it where a rank holds several.
std::string label_of(const ActionSpan& span, bool with_stage) {
  const std::size_t letter = span.name.find_first_not_of("0123456789");
  if (letter == std::string::npos) return {};
  const std::string micro_batch = span.name.substr(letter + 1);
  return with_stage ? fmt::format("{}.{}", span.name.substr(0, letter), micro_batch) : micro_batch;
}

std::string rank_name(std::size_t rank, const std::string& place) {
  const std::string stage = place.substr(0, place.find(','));
  return stage.empty() ? fmt::format("rank {}", rank) : fmt::format("rank {} · {}", rank, stage);
}

class PipelineChart {
 public:
  explicit PipelineChart(const RunData& run) : run_(run) {
    rows_ = std::min(run.actions.size(), kMostRows);
    for (std::size_t r = 0; r < rows_; ++r) {
      for (const ActionSpan& span : run.actions[r].spans) end_ = std::max(end_, span.end);
      with_stage_ = with_stage_ || run.actions[r].place.starts_with("stages ");
    }
  }

  std::string text() {
    if (rows_ == 0 || !(end_ > 0)) return {};
    std::string body;
    for (std::size_t r = 0; r < rows_; ++r) body += row(r);
    const double height = kTop + kRow * static_cast<double>(rows_) + kBottom;
    std::vector<Style> used;
    for (const Style& style : kActionStyles) {
      if (used_.contains(style.key)) used.push_back(style);
    }
    return legend(used) +
           fmt::format(
               R"(<div class="scroll"><svg class="pipeline" viewBox="0 0 {} {}" role="img" aria-label="a step">)",
               kWidth, height) +
           std::string(kHatch) + axis(height) + body + "</svg></div>";
  }

 private:
  static constexpr double kWidth = 1100, kLeft = 128, kRight = 10, kTop = 4, kRow = 32, kBar = 25, kBottom = 36;
  static constexpr double kWithin = 7;
  static constexpr const char* kHatch =
      R"svg(<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">)svg"
      R"svg(<rect class="hatch-back" width="6" height="6"/><rect class="hatch-line" width="2" height="6"/>)svg"
      "</pattern></defs>";

  double x(double seconds) const { return kLeft + seconds / end_ * (kWidth - kLeft - kRight); }

  std::string axis(double height) const {
    std::string text;
    for (const double tick : linear_ticks(0, 1e3 * end_, 10)) {
      fmt::format_to(std::back_inserter(text),
                     R"(<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>)"
                     R"(<text x="{0:.1f}" y="{3}" text-anchor="middle">{4}</text>)",
                     x(tick * 1e-3), kTop, height - kBottom + 4, height - kBottom + 17, tick_label(tick));
    }
    fmt::format_to(std::back_inserter(text),
                   R"(<text x="{}" y="{}" text-anchor="middle">ms from the beginning of the step</text>)",
                   (kLeft + kWidth - kRight) / 2, height - 4);
    return text;
  }

  std::string row(std::size_t r) {
    const ActionRow& of = run_.actions[r];
    const double y = kTop + kRow * static_cast<double>(r);
    std::string text = fmt::format(
        R"(<text x="{}" y="{}" text-anchor="end">{}<title>{}</title></text><rect class="lane" x="{}" y="{}" width="{}" height="{}"/>)",
        kLeft - 8, y + kBar / 2 + 4, escape(rank_name(static_cast<std::size_t>(of.rank), of.place)), escape(of.place),
        kLeft, y, kWidth - kLeft - kRight, kBar);
    // What encloses others comes behind them in the file and is drawn before.
    std::vector<const ActionSpan*> spans;
    for (const ActionSpan& span : of.spans) spans.push_back(&span);
    std::stable_sort(spans.begin(), spans.end(), [](const ActionSpan* a, const ActionSpan* b) {
      return a->begin < b->begin || (a->begin == b->begin && a->end > b->end);
    });
    double enclosing = -1;  // end of the last action that computes
    for (const ActionSpan* span : spans) {
      const std::string_view style = style_of(*span);
      const bool within = span->end <= enclosing;
      if (style.size() == 1) enclosing = std::max(enclosing, span->end);
      if (!style.empty()) text += block(*span, style, y, within);
    }
    return text;
  }

  /// Waits within an action lie along its lower edge.
  std::string block(const ActionSpan& span, std::string_view style, double y, bool within) {
    const double left = x(span.begin), width = x(span.end) - left;
    if (width < 0.15) return {};
    used_.insert(style);
    const double top = within ? y + kBar - kWithin : y, height = within ? kWithin : kBar;
    std::string text;
    const auto out = std::back_inserter(text);
    fmt::format_to(
        out,
        R"(<g><title>{}: {} to {}, {}</title><rect class="{}" x="{:.2f}" y="{:.1f}" width="{:.2f}" height="{:.1f}"/>)",
        escape(span.name), milliseconds(span.begin), milliseconds(span.end), milliseconds(span.end - span.begin), style,
        left, top, width, height);
    const std::string label = style.size() == 1 ? label_of(span, with_stage_) : std::string();
    if (!label.empty() && width > 7.0 * static_cast<double>(label.size()) + 3) {
      fmt::format_to(out, R"(<text class="on-{}" x="{:.2f}" y="{:.1f}" text-anchor="middle">{}</text>)", style,
                     left + width / 2, y + kBar / 2 + 1.5, escape(label));
    }
    return text + "</g>";
  }

  const RunData& run_;
  std::size_t rows_ = 0;
  double end_ = 0;
  bool with_stage_ = false;
  std::set<std::string_view> used_;
};

struct TimeGroup {
  Style style;
  std::vector<double TimeSplit::*> parts;
};
const std::vector<TimeGroup>& time_groups() {
  static const std::vector<TimeGroup> groups{
      {{"F", "forward"}, {&TimeSplit::forward}},
      {{"B", "backward"}, {&TimeSplit::backward}},
      {{"I", "input gradients"}, {&TimeSplit::backward_input}},
      {{"W", "weight gradients"}, {&TimeSplit::backward_weight}},
      {{"bubble", "bubble of the schedule"}, {&TimeSplit::bubble}},
      {{"wait", "messages"}, {&TimeSplit::receive, &TimeSplit::send}},
      {{"sum", "collectives"}, {&TimeSplit::tensor, &TimeSplit::gradients, &TimeSplit::agreement}},
      {{"opt", "optimizer"}, {&TimeSplit::optimizer}},
      {{"data", "data"}, {&TimeSplit::data}},
      {{"other", "other"}, {&TimeSplit::other}}};
  return groups;
}

std::string more_rows(std::size_t rows) {
  if (rows <= kMostRows) return {};
  return fmt::format("<p class=\"note\">Shown are the first {} of {} ranks.</p>", kMostRows, rows);
}

std::string time_table(const RunData& run) {
  std::string head = "<tr><th>rank</th><th>step</th>", body;
  std::vector<const TimePart*> shown;
  for (const TimePart& part : kTimeParts) {
    const auto any = [&part](const TimeSplit& split) { return split.*part.seconds > 0; };
    if (std::none_of(run.splits.begin(), run.splits.end(), any)) continue;
    shown.push_back(&part);
    std::string name(part.name);
    std::replace(name.begin(), name.end(), '_', ' ');
    const bool between = &part >= &kTimeParts[kStepParts];
    head += fmt::format("<th>{}{}</th>", name, between ? ", s in all" : "");
  }
  for (std::size_t r = 0; r < run.splits.size() && r < kMostRows; ++r) {
    body += fmt::format("<tr><td>{}</td><td>{:.2f}</td>", r, 1e3 * run.splits[r].step());
    for (const TimePart* part : shown) {
      const bool between = part >= &kTimeParts[kStepParts];
      body += fmt::format("<td>{:.2f}</td>", (between ? 1.0 : 1e3) * run.splits[r].*part->seconds);
    }
    body += "</tr>";
  }
  return fmt::format(
      "<details><summary>Numbers, ms of a step</summary><div class=\"scroll\"><table>{}</tr>{}</table></div></details>",
      head, body);
}

std::string place_of(const RunData& run, std::size_t rank) { return rank < run.places.size() ? run.places[rank] : ""; }

std::string bar_row(const std::string& name, const std::string& bar, const std::string& value) {
  return fmt::format(R"(<div class="row"><span class="who">{}</span>{}<span class="value">{}</span></div>)",
                     escape(name), bar, escape(value));
}

}  // namespace

std::string pipeline_chart(const RunData& run) { return PipelineChart(run).text() + more_rows(run.actions.size()); }

std::string time_chart(const RunData& run) {
  double longest = 0;
  for (const TimeSplit& split : run.splits) longest = std::max(longest, split.step());
  if (!(longest > 0)) return {};
  std::string rows;
  std::vector<Style> used;
  for (const TimeGroup& group : time_groups()) {
    double sum = 0;
    for (const TimeSplit& split : run.splits) {
      for (const auto part : group.parts) sum += split.*part;
    }
    if (sum > 0) used.push_back(group.style);
  }
  for (std::size_t r = 0; r < run.splits.size() && r < kMostRows; ++r) {
    const TimeSplit& split = run.splits[r];
    std::vector<BarPart> parts;
    for (const TimeGroup& group : time_groups()) {
      double seconds = 0;
      for (const auto part : group.parts) seconds += split.*part;
      parts.push_back(
          {std::string(group.style.key),
           fmt::format("{}: {}, {:.1f}%", group.style.name, milliseconds(seconds), 100 * seconds / split.step()),
           seconds});
    }
    rows += bar_row(rank_name(r, place_of(run, r)), stacked_bar(parts, longest), milliseconds(split.step()));
  }
  return legend(used) + "<div class=\"bars\">" + rows + "</div>" + more_rows(run.splits.size()) + time_table(run);
}

std::string memory_chart(const RunData& run) {
  constexpr Style kStyles[] = {{"m0", "weights"},     {"m1", "gradients"},     {"m2", "optimizer"},
                               {"m3", "activations"}, {"m4", "communication"}, {"m5", "data set"},
                               {"m6", "process"},     {"measured", "measured"}};
  double most = 0;
  std::vector<Style> used;
  const auto total = [](const RankMemoryFacts& memory) {
    double sum = 0;
    for (const double part : memory.predicted) sum += part;
    return sum;
  };
  for (const RankMemoryFacts& memory : run.memory) most = std::max({most, total(memory), memory.measured.value_or(0)});
  if (!(most > 0)) return {};
  for (std::size_t p = 0; p < kMemoryParts.size(); ++p) {
    const auto any = [p](const RankMemoryFacts& memory) { return memory.predicted[p] > 0; };
    if (std::any_of(run.memory.begin(), run.memory.end(), any)) used.push_back(kStyles[p]);
  }
  const auto measured = [](const RankMemoryFacts& memory) { return memory.measured.has_value(); };
  if (std::any_of(run.memory.begin(), run.memory.end(), measured)) used.push_back(kStyles[kMemoryParts.size()]);
  std::string rows;
  for (std::size_t r = 0; r < run.memory.size() && r < kMostRows; ++r) {
    const RankMemoryFacts& memory = run.memory[r];
    std::vector<BarPart> parts;
    for (std::size_t p = 0; p < kMemoryParts.size(); ++p) {
      parts.push_back({std::string(kStyles[p].key),
                       fmt::format("{}: {}", kStyles[p].name, human_bytes(memory.predicted[p])), memory.predicted[p]});
    }
    const double predicted = total(memory);
    if (predicted > 0) {
      rows += bar_row(rank_name(r, memory.place), stacked_bar(parts, most), human_bytes(predicted) + " predicted");
    }
    if (memory.measured) {
      rows += bar_row(predicted > 0 ? "" : rank_name(r, memory.place),
                      stacked_bar({{"measured", "measured: " + human_bytes(*memory.measured), *memory.measured}}, most),
                      human_bytes(*memory.measured) + " measured");
    }
  }
  return legend(used) + "<div class=\"bars wide-value\">" + rows + "</div>" + more_rows(run.memory.size());
}

std::string prediction_table(const RunData& run) {
  if (run.predictions.empty()) return {};
  std::string rows;
  for (const PredictionRow& row : run.predictions) {
    const bool share = row.what == "bubble";
    const bool bytes = row.what == "memory bytes";
    const auto show = [&](double value) {
      return share ? fmt::format("{:.1f}%", 100 * value) : bytes ? human_bytes(value) : milliseconds(value);
    };
    const std::string name = share ? "bubble" : bytes ? "memory, largest rank" : row.what.substr(0, row.what.find(' '));
    std::string error = "–";
    if (share) {
      error = fmt::format("{:+.1f} points", 100 * (row.predicted - row.measured));
    } else if (row.measured > 0) {
      error = fmt::format("{:+.1f}%", 100 * (row.predicted / row.measured - 1));
    }
    const double whole = share ? 1 : std::max(row.predicted, row.measured);
    const std::string bar =
        stacked_bar({{"measured", "measured: " + show(row.measured), row.measured}}, whole * 1.02, row.predicted);
    rows += fmt::format(
        "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"bar-cell\">{}</td><td "
        "class=\"words\">{}</td></tr>",
        escape(name), show(row.predicted), show(row.measured), error, bar, escape(row.source));
  }
  return "<div class=\"scroll\"><table "
         "class=\"promises\"><tr><th></th><th>predicted</th><th>measured</th><th>error</th>"
         "<th class=\"words\">measured, and a line where it was predicted</th><th class=\"words\">by</th></tr>" +
         rows + "</table></div>";
}

}  // namespace trainer::observe
