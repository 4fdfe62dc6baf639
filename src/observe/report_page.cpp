// A run's page: what stands where, in which words.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <deque>

#include "report_charts.hpp"
#include "report_data.hpp"
#include "report_style.hpp"
#include "svg.hpp"
#include "trainer/observe/report.hpp"
#include "trainer/observe/reporters.hpp"

namespace trainer::observe {

namespace {

std::string section(const std::string& title, const std::string& words, const std::string& body) {
  if (body.empty()) return {};
  const std::string note = words.empty() ? "" : fmt::format("<p class=\"note\">{}</p>", words);
  return fmt::format("<section><h2>{}</h2>{}{}</section>\n", title, note, body);
}

std::string plural(double count, const char* word, const char* ending = "s") {
  return fmt::format("{:.0f} {}{}", count, word, count == 1 ? "" : ending);
}

std::string subtitle(const RunData& run) {
  std::vector<std::string> parts;
  if (run.pipeline > 0) {
    parts.push_back(fmt::format("data {:.0f} × pipeline {:.0f} × tensor {:.0f} = {}", run.data, run.pipeline,
                                run.tensor, plural(run.data * run.pipeline * run.tensor, "rank")));
    const std::string pieces = plural(run.micro_batches, "micro-batch", "es");
    parts.push_back(run.pipeline > 1 ? run.schedule + ", " + pieces : pieces);
    parts.push_back(plural(run.threads, "thread") + " a rank");
  }
  if (!run.started.empty()) parts.push_back("started " + run.started);
  if (!run.build.empty()) parts.push_back(run.build);
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : " · ") + escape(part);
  return text.empty() ? "" : "<p class=\"sub\">" + text + "</p>";
}

std::string how_it_ended(const RunData& run) {
  if (!run.ended) return "no end yet";
  const double code = run.exit_code.value_or(-1);
  if (code == 0) return "done";
  if (code == 75) return "interrupted";
  return code == 5 ? "diverged" : fmt::format("exit code {:.0f}", code);
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

std::vector<Point> points_of(const RunData& run, std::optional<double> StepPoint::*member, double scale = 1) {
  std::vector<Point> points;
  for (const StepPoint& step : run.steps) {
    if (step.*member) points.push_back({step.step, scale * *(step.*member)});
  }
  return points;
}

double median_of(const RunData& run, std::optional<double> StepPoint::*member) {
  std::vector<double> values;
  for (const StepPoint& step : run.steps) {
    if (step.*member && (step.step > 1 || run.steps.size() == 1)) values.push_back(*(step.*member));
  }
  return median(std::move(values));
}

std::string tiles(const RunData& run) {
  std::string text;
  const auto tile = [&text](const std::string& value, const std::string& name) {
    text += fmt::format("<div class=\"tile\"><b>{}</b><span>{}</span></div>", escape(value), escape(name));
  };
  const double last = run.last_step.value_or(run.steps.empty() ? 0 : run.steps.back().step);
  tile(run.total_steps > last ? fmt::format("{:.0f} / {:.0f}", last, run.total_steps) : fmt::format("{:.0f}", last),
       "steps, " + how_it_ended(run));
  const std::vector<Point> losses = points_of(run, &StepPoint::loss);
  if (run.loss || !losses.empty()) tile(fmt::format("{:.4g}", run.loss ? *run.loss : losses.back().y), "training loss");
  if (run.validation_loss || !run.evaluations.empty()) {
    tile(fmt::format("{:.4g}", run.validation_loss ? *run.validation_loss : run.evaluations.back().loss),
         "validation loss");
  }
  if (run.accuracy) tile(fmt::format("{:.2f}%", 100 * *run.accuracy), "validation accuracy");
  if (const double seconds = median_of(run, &StepPoint::step_seconds); seconds > 0) {
    tile(seconds < 0.01 ? fmt::format("{:.2f} ms", 1e3 * seconds) : human_duration(seconds), "a step (median)");
  }
  if (const double tokens = median_of(run, &StepPoint::tokens_per_second); tokens > 0) {
    tile(human_count(tokens), "tokens a second");
  } else if (const double samples = median_of(run, &StepPoint::samples_per_second); samples > 0) {
    tile(human_count(samples), "samples a second");
  }
  double memory = 0;
  for (const RankMemoryFacts& rank : run.memory) memory = std::max(memory, rank.measured.value_or(0));
  if (memory > 0) tile(human_bytes(memory), "memory, largest rank");
  return "<div class=\"tiles\">" + text + "</div>\n";
}

/// Means over `width` points around each.
std::vector<Point> smoothed(const std::vector<Point>& points, std::size_t width) {
  std::vector<Point> means;
  double sum = 0;
  std::size_t begin = 0, end = 0;
  for (std::size_t i = 0; i < points.size(); ++i) {
    while (end < std::min(points.size(), i + width / 2 + 1)) sum += points[end++].y;
    while (begin + width / 2 < i) sum -= points[begin++].y;
    means.push_back({points[i].x, sum / static_cast<double>(end - begin)});
  }
  return means;
}

// More points than this are shown faint, with their means over them.
constexpr std::size_t kMany = 60;

std::vector<Series> curve(const std::vector<Point>& points, const std::string& name) {
  if (points.size() <= kMany) return {{name, "first", points, false}};
  return {{"", "faint", points, false}, {name, "first", smoothed(points, points.size() / 30), false}};
}

std::string loss_chart(const RunData& run) {
  LineChart chart;
  chart.title = "loss";
  chart.show = [](double loss) { return fmt::format("loss {:.5g}", loss); };
  const std::vector<Point> losses = points_of(run, &StepPoint::loss);
  chart.series = curve(losses, losses.size() > kMany ? "training, smoothed" : "training");
  std::vector<Point> evaluations;
  for (const EvaluationPoint& point : run.evaluations) evaluations.push_back({point.step, point.loss});
  if (!evaluations.empty()) chart.series.push_back({"validation", "second", evaluations, true});
  return line_chart(chart);
}

std::string small_chart(const char* title, const std::vector<Point>& points, bool zero,
                        std::function<std::string(double)> show) {
  LineChart chart;
  chart.title = title;
  chart.zero = zero;
  chart.show = std::move(show);
  chart.series = curve(points, "");
  const std::string svg = line_chart(chart);
  return svg.empty() ? "" : fmt::format("<div><h3>{}</h3>{}</div>", title, svg);
}

std::string curves(const RunData& run) {
  if (run.steps.empty()) return {};
  const bool tokens = std::any_of(run.steps.begin(), run.steps.end(),
                                  [](const StepPoint& step) { return step.tokens_per_second.has_value(); });
  const auto plain = [](const char* unit) {
    return [unit](double value) { return fmt::format("{:.4g}{}", value, unit); };
  };
  std::string text = "<div class=\"grid2\">";
  text += fmt::format("<div><h3>Loss</h3>{}</div>", loss_chart(run));
  text += small_chart("Learning rate", points_of(run, &StepPoint::learning_rate), true, plain(""));
  text += small_chart("Gradient norm, before clipping", points_of(run, &StepPoint::grad_norm), false, plain(""));
  text += small_chart(tokens ? "Tokens a second" : "Samples a second",
                      points_of(run, tokens ? &StepPoint::tokens_per_second : &StepPoint::samples_per_second), true,
                      [](double value) { return human_count(value) + " a second"; });
  if (std::any_of(run.evaluations.begin(), run.evaluations.end(),
                  [](const EvaluationPoint& e) { return e.accuracy.has_value(); })) {
    std::vector<Point> accuracy;
    for (const EvaluationPoint& e : run.evaluations) {
      if (e.accuracy) accuracy.push_back({e.step, 100 * *e.accuracy});
    }
    text += small_chart("Validation accuracy, %", accuracy, false, plain("%"));
  }
  return text + "</div>";
}

std::string configuration(const RunData& run) {
  std::string text;
  if (!run.stages.empty() && run.pipeline > 1) {
    text += "<table><tr><th>stage</th><th class=\"words\">layers</th></tr>";
    for (std::size_t s = 0; s < run.stages.size(); ++s) {
      text += fmt::format("<tr><td>{}</td><td class=\"words\">{}</td></tr>", s, escape(run.stages[s]));
    }
    text += "</table>";
  }
  if (!run.config.empty()) {
    text += "<details><summary>The whole configuration, every key with its value</summary><pre>" + escape(run.config) +
            "</pre></details>";
  }
  return text;
}

std::string notices(const RunData& run) {
  if (run.notices.empty()) return {};
  std::string items;
  for (const std::string& notice : run.notices) items += "<li>" + escape(notice) + "</li>";
  return "<section class=\"notices\"><ul>" + items + "</ul></section>\n";
}

}  // namespace

ReportPage report_page(const RunFiles& files) {
  const RunData run = read_run(files);
  const std::string step_words =
      run.actions.empty() ? ""
                          : fmt::format(
                                "Step {:.0f}, the one of median duration among the last that were kept. A row is a "
                                "rank, numbers are micro-batches; rest the pointer on a block for its times.",
                                run.action_step);
  const std::string time_words = fmt::format(
      "{} “Bubble” is what the schedule itself makes a rank wait at these computing times, with messages that take no "
      "time; what is waited beyond that stands under messages and collectives.",
      run.splits_of_run ? "Mean of a step, the first one not counted." : "Mean of the logged steps but the first.");
  std::string html = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>{0}</title>"
      "<style>{1}</style></head>\n<body><main>\n<h1>{0}</h1>{2}\n",
      escape(run.name), kReportStyle, subtitle(run));
  html += tiles(run);
  html += notices(run);
  html += section("Training", "", curves(run));
  html += section("A step", step_words, pipeline_chart(run));
  html += section("Where the time of a step went", time_words, time_chart(run));
  html += section("Predicted and measured", "", prediction_table(run));
  html += section("Memory above what the process had when MPI had started", "", memory_chart(run));
  html += section("Configuration", "", configuration(run));
  html += "</main></body></html>\n";
  return {std::move(html), run.notices};
}

}  // namespace trainer::observe
