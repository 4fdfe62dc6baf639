// Pieces of HTML and SVG: escaped text, axes with round numbers, line charts, stacked bars.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace trainer::observe {

/// For text and attribute values. Bytes that are no UTF-8 and control characters become U+FFFD.
std::string escape(std::string_view text);

/// About `count` round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`, both finite, low < high.
std::vector<double> linear_ticks(double low, double high, int count);
/// The same for a logarithmic axis: powers of ten, with 2 and 5 where there are few, round numbers where there are
/// fewer.
std::vector<double> log_ticks(double low, double high, int count);
/// "0", "0.25", "4e-5", "12k", "1.5M".
std::string tick_label(double value);

struct Point {
  double x = 0, y = 0;
};
struct Series {
  std::string name;   // written at its end when there are several
  std::string style;  // CSS class
  std::vector<Point> points;
  bool dots = false;  // each point is a thing of its own
};
struct LineChart {
  std::string title;
  std::string x_name = "step";
  std::vector<Series> series;
  std::function<std::string(double)> show;  // a value with its unit, for tooltips
  bool zero = false;                        // the axis begins at 0
};
/// At most this many points of a series are drawn, the extremes of each stretch among them.
inline constexpr std::size_t kMostPoints = 800;
std::vector<Point> thinned(const std::vector<Point>& points, std::size_t most);

/// An <svg> that fills its container's width. Empty when no series has two different points or one dot.
std::string line_chart(const LineChart& chart);

struct BarPart {
  std::string style, tip;
  double value = 0;
};
/// An <svg> bar that fills its container's width; `whole` is the value of that width. `mark` > 0: a line there.
std::string stacked_bar(const std::vector<BarPart>& parts, double whole, double mark = 0);

}  // namespace trainer::observe
