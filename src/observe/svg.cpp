#include "svg.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace trainer::observe {

namespace {

// Of the view box; text has 12 of these.
constexpr double kWidth = 560, kHeight = 250;
constexpr double kLeft = 52, kRight = 20, kTop = 12, kBottom = 40;
constexpr double kLineHeight = 14;
// Logarithmic where the largest value is this many times the smallest.
constexpr double kLogRatio = 8;

/// Length of the UTF-8 character at the front; 0: none.
std::size_t character_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  const std::size_t length = first < 0x80 ? 1 : first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  if (length == 0 || first > 0xF4 || length > text.size()) return 0;
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  if (first == 0xE0 && byte(1) < 0xA0) return 0;
  if (first == 0xED && byte(1) > 0x9F) return 0;  // surrogates
  if (first == 0xF0 && byte(1) < 0x90) return 0;
  if (first == 0xF4 && byte(1) > 0x8F) return 0;
  return length;
}

class Axis {
 public:
  Axis(double low, double high, bool logarithmic, double begin, double end)
      : low_(logarithmic ? std::log(low) : low),
        high_(logarithmic ? std::log(high) : high),
        logarithmic_(logarithmic),
        begin_(begin),
        end_(end) {}

  double at(double value) const {
    const double v = logarithmic_ ? std::log(value) : value;
    return begin_ + (v - low_) / (high_ - low_) * (end_ - begin_);
  }

 private:
  double low_, high_;
  bool logarithmic_;
  double begin_, end_;
};

struct Span2 {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  void add(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
};

std::string path_of(const std::vector<Point>& points, const Axis& x, const Axis& y) {
  std::string path;
  for (const Point& point : points) {
    fmt::format_to(std::back_inserter(path), "{}{:.1f} {:.1f}", path.empty() ? "M" : "L", x.at(point.x), y.at(point.y));
  }
  return path;
}

/// Names of the lines, one below the other on the right, above or below the curves: where there is more room.
std::string line_names(const std::vector<Series>& series, const Axis& x, const Axis& y) {
  std::vector<const Series*> named;
  for (const Series& s : series) {
    if (!s.name.empty() && !s.points.empty()) named.push_back(&s);
  }
  if (named.size() < 2) return {};
  double highest = kHeight - kBottom, lowest = kTop;  // of the curves' right half
  for (const Series& s : series) {
    for (const Point& point : s.points) {
      if (x.at(point.x) < kWidth / 2) continue;
      highest = std::min(highest, y.at(point.y));
      lowest = std::max(lowest, y.at(point.y));
    }
  }
  const double block = kLineHeight * static_cast<double>(named.size());
  const bool above = highest - kTop >= kHeight - kBottom - lowest;
  double at = above ? kTop + 12 : kHeight - kBottom - block + 6;
  std::string text;
  for (const Series* s : named) {
    fmt::format_to(std::back_inserter(text),
                   R"(<text class="name {}" x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>)", s->style,
                   kWidth - kRight, at, escape(s->name));
    at += kLineHeight;
  }
  return text;
}

std::string grid(const Axis& x, const Axis& y, const std::vector<double>& x_ticks, const std::vector<double>& y_ticks,
                 const std::string& x_name) {
  std::string text;
  const auto out = std::back_inserter(text);
  for (const double tick : y_ticks) {
    fmt::format_to(out, R"(<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>)", kLeft, kWidth - kRight,
                   y.at(tick), y.at(tick));
    fmt::format_to(out, R"(<text x="{}" y="{:.1f}" text-anchor="end">{}</text>)", kLeft - 6, y.at(tick) + 4,
                   tick_label(tick));
  }
  for (const double tick : x_ticks) {
    fmt::format_to(out, R"(<line class="tick" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>)", x.at(tick),
                   kHeight - kBottom, kHeight - kBottom + 4);
    fmt::format_to(out, R"(<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>)", x.at(tick), kHeight - kBottom + 17,
                   tick_label(tick));
  }
  fmt::format_to(out, R"(<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>)", kLeft, kWidth - kRight,
                 kHeight - kBottom, kHeight - kBottom);
  fmt::format_to(out, R"(<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>)", (kLeft + kWidth - kRight) / 2,
                 kHeight - 6, escape(x_name));
  return text;
}

std::string marks(const LineChart& chart, const Axis& x, const Axis& y) {
  constexpr std::size_t kMostTips = 150;
  std::string text;
  const auto out = std::back_inserter(text);
  for (const Series& series : chart.series) {
    const std::vector<Point> drawn = thinned(series.points, kMostPoints);
    if (drawn.size() > 1) fmt::format_to(out, R"(<path class="line {}" d="{}"/>)", series.style, path_of(drawn, x, y));
    for (const Point& point : thinned(series.points, kMostTips)) {
      fmt::format_to(out, R"(<circle class="{} {}" cx="{:.1f}" cy="{:.1f}" r="{}"><title>{}{} {}: {}</title></circle>)",
                     series.dots || drawn.size() == 1 ? "dot" : "tip", series.style, x.at(point.x), y.at(point.y),
                     series.dots || drawn.size() == 1 ? 3 : 5, escape(series.name), series.name.empty() ? "" : ",",
                     escape(fmt::format("{} {:.10g}", chart.x_name, point.x)),
                     escape(chart.show ? chart.show(point.y) : tick_label(point.y)));
    }
  }
  return text;
}

}  // namespace

std::string escape(std::string_view text) {
  std::string escaped;
  while (!text.empty()) {
    const std::size_t length = character_length(text);
    const char c = text.front();
    const bool control = static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t';
    if (length == 0 || control || c == 0x7F) {
      escaped += "\xEF\xBF\xBD";
    } else if (c == '&') {
      escaped += "&amp;";
    } else if (c == '<') {
      escaped += "&lt;";
    } else if (c == '>') {
      escaped += "&gt;";
    } else if (c == '"') {
      escaped += "&quot;";
    } else if (c == '\'') {
      escaped += "&#39;";
    } else {
      escaped += text.substr(0, length);
    }
    text.remove_prefix(std::max<std::size_t>(1, length));
  }
  return escaped;
}

std::vector<double> linear_ticks(double low, double high, int count) {
  const double rough = (high - low) / count;
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= rough * 0.999) {
      step = factor * power;
      break;
    }
  }
  std::vector<double> ticks;
  for (double k = std::ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; ++k)
    ticks.push_back(k == 0 ? 0 : k * step);
  return ticks;
}

std::vector<double> log_ticks(double low, double high, int count) {
  const double decades = std::log10(high / low);
  if (decades < 1) return linear_ticks(low, high, count);
  const int every = std::max(1, static_cast<int>(std::ceil(decades / count)));
  std::vector<double> ticks;
  for (int e = static_cast<int>(std::floor(std::log10(low))); e <= static_cast<int>(std::ceil(std::log10(high))); ++e) {
    if (e % every != 0) continue;
    for (const double factor : {1.0, 2.0, 5.0}) {
      const double tick = factor * std::pow(10.0, e);
      if (factor > 1 && decades > 2.5) continue;
      if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push_back(tick);
    }
  }
  return ticks;
}

std::string tick_label(double value) {
  if (value == 0) return "0";
  const double magnitude = std::abs(value);
  if (magnitude < 1e-4) {
    const int exponent = static_cast<int>(std::floor(std::log10(magnitude) + 1e-12));
    return fmt::format("{:.3g}e{}", value / std::pow(10.0, exponent), exponent);
  }
  constexpr std::array<std::pair<double, const char*>, 4> kSuffixes{{{1e12, "T"}, {1e9, "B"}, {1e6, "M"}, {1e4, "k"}}};
  for (const auto& [from, suffix] : kSuffixes) {
    if (magnitude >= from) return fmt::format("{:.4g}{}", value / (from == 1e4 ? 1e3 : from), suffix);
  }
  return fmt::format("{:.4g}", value);
}

std::vector<Point> thinned(const std::vector<Point>& points, std::size_t most) {
  if (points.size() <= most) return points;
  std::vector<Point> kept;
  const std::size_t stretches = std::max<std::size_t>(1, most / 2);
  for (std::size_t s = 0; s < stretches; ++s) {
    const auto begin = points.begin() + static_cast<std::ptrdiff_t>(points.size() * s / stretches);
    const auto end = points.begin() + static_cast<std::ptrdiff_t>(points.size() * (s + 1) / stretches);
    const auto [low, high] = std::minmax_element(begin, end, [](const Point& a, const Point& b) { return a.y < b.y; });
    kept.push_back(*std::min(low, high));
    if (low != high) kept.push_back(*std::max(low, high));
  }
  // The curve ends where the run did.
  kept.front() = points.front();
  kept.back() = points.back();
  return kept;
}

std::string line_chart(const LineChart& chart) {
  Span2 xs, ys;
  std::size_t points = 0;
  for (const Series& series : chart.series) {
    for (const Point& point : series.points) {
      xs.add(point.x);
      ys.add(point.y);
    }
    points += series.points.size();
  }
  if (points == 0) return {};
  const bool logarithmic = !chart.zero && ys.low > 0 && ys.high / ys.low > kLogRatio;
  if (chart.zero) ys.low = std::min(0.0, ys.low);
  if (ys.high == ys.low) {
    const double room = ys.high == 0 ? 1 : std::abs(ys.high) * 0.1;
    ys.low -= room;
    ys.high += room;
  } else if (!logarithmic) {
    const double room = 0.06 * (ys.high - ys.low);
    ys.high += room;
    if (!chart.zero) ys.low -= room;
  } else {
    ys.high *= 1.1;
    ys.low /= 1.1;
  }
  if (xs.high == xs.low) {
    xs.low -= 1;
    xs.high += 1;
  }
  const Axis x(xs.low, xs.high, false, kLeft + 4, kWidth - kRight);
  const Axis y(ys.low, ys.high, logarithmic, kHeight - kBottom, kTop);
  const std::vector<double> y_ticks = logarithmic ? log_ticks(ys.low, ys.high, 6) : linear_ticks(ys.low, ys.high, 5);
  // Steps are whole numbers.
  std::vector<double> x_ticks = linear_ticks(xs.low, xs.high, 6);
  std::erase_if(x_ticks, [](double tick) { return tick != std::round(tick); });
  return fmt::format(R"(<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">)", kWidth, kHeight,
                     escape(chart.title)) +
         grid(x, y, x_ticks, y_ticks, chart.x_name) + marks(chart, x, y) + line_names(chart.series, x, y) + "</svg>";
}

std::string stacked_bar(const std::vector<BarPart>& parts, double whole, double mark) {
  constexpr double kUnits = 1000;
  std::string text = fmt::format(R"(<svg class="bar" viewBox="0 0 {} 10" preserveAspectRatio="none">)", kUnits);
  if (!(whole > 0)) return text + "</svg>";
  double at = 0;
  for (const BarPart& part : parts) {
    const double width = part.value / whole * kUnits;
    if (!(width > 0)) continue;
    fmt::format_to(std::back_inserter(text),
                   R"(<rect class="{}" x="{:.2f}" y="0" width="{:.2f}" height="10"><title>{}</title></rect>)",
                   part.style, at, width, escape(part.tip));
    at += width;
  }
  if (mark > 0) {
    fmt::format_to(std::back_inserter(text), R"(<rect class="mark" x="{:.2f}" y="0" width="3" height="10"/>)",
                   mark / whole * kUnits - 1.5);
  }
  return text + "</svg>";
}

}  // namespace trainer::observe
