"""Loss against time and against bytes as one SVG: plain shapes and text, light and dark, no scripts, nothing fetched."""
import math
from html import escape

WIDTH, LEFT, RIGHT, GAP = 1120, 54, 14, 50
PLOT_HEIGHT, TOP, BETWEEN = 230, 58, 56
LEGEND_ROW = 17
# Of the lines of a panel, in order; the reference has the text's colour. Dashes tell lines apart without colours too.
LIGHT = ("#2a6fc9", "#d9541e", "#0f8f63", "#8a3fc4", "#b8860b")
DARK = ("#5aa2f5", "#f4814f", "#35c08d", "#bb8cf0", "#e0b13a")
DASHES = ("", "7 3", "2 2.5", "9 3 2 3", "4 2")
STYLE = """
text { font: 12px system-ui, sans-serif; fill: var(--text); }
.title { font-size: 15px; font-weight: 600; }
.head { font-weight: 600; }
.axis, .tick { fill: var(--quiet); }
.tick { font-size: 11px; }
.paper { fill: var(--paper); }
.grid { stroke: var(--grid); stroke-width: 1; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.band { stroke: none; opacity: 0.13; }
.reference { stroke: var(--text); } .reference-fill { fill: var(--text); }
"""


def variables(colors, paper, text, quiet, grid):
    named = "".join(f"--c{i}: {color}; " for i, color in enumerate(colors))
    return f"svg {{ --paper: {paper}; --text: {text}; --quiet: {quiet}; --grid: {grid}; {named}}}"


def style():
    series = "".join(f".s{i} {{ stroke: var(--c{i}); }} .f{i} {{ fill: var(--c{i}); }}\n" for i in range(len(LIGHT)))
    return (f"<style>\n{variables(LIGHT, '#ffffff', '#1f2328', '#5b636d', '#e4e7ea')}\n"
            f"@media (prefers-color-scheme: dark) {{ {variables(DARK, '#15181c', '#e6e8ea', '#9aa3ad', '#2b3138')} }}\n"
            f"{STYLE}{series}</style>")


class Axis:
    """Logarithmic: from a value to a place between `begin` and `end`."""

    def __init__(self, least, most, begin, end):
        if not most > least:
            most = least * 1.1
        self.low, self.high, self.begin, self.end = math.log(least), math.log(most), begin, end

    def place(self, value):
        share = (math.log(value) - self.low) / (self.high - self.low)
        return self.begin + min(1.0, max(0.0, share)) * (self.end - self.begin)

    def ticks(self):
        """A few round values inside: the first of these sets of leading digits that gives at least three."""
        first, last = math.floor(self.low / math.log(10)) - 1, math.ceil(self.high / math.log(10)) + 1
        for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), [1 + i / 5 for i in range(45)]):
            values = [digit * 10.0 ** power for power in range(first, last) for digit in digits]
            inside = [v for v in values if self.low - 1e-9 <= math.log(v) <= self.high + 1e-9]
            if len(inside) >= 3:
                return inside
        return inside


def number(value):
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def points(axis_x, axis_y, xs, ys):
    return " ".join(f"{axis_x.place(x):.1f},{axis_y.place(y):.1f}" for x, y in zip(xs, ys))


def frame(axis_x, axis_y, label):
    """Grid, ticks and the label of the x axis of one panel."""
    lines = []
    for value in axis_x.ticks():
        x = axis_x.place(value)
        lines.append(f'<path class="grid" d="M{x:.1f} {axis_y.end}V{axis_y.begin}"/>'
                     f'<text class="tick" x="{x:.1f}" y="{axis_y.begin + 15}" text-anchor="middle">{number(value)}</text>')
    for value in axis_y.ticks():
        y = axis_y.place(value)
        lines.append(f'<path class="grid" d="M{axis_x.begin:.1f} {y:.1f}H{axis_x.end:.1f}"/>'
                     f'<text class="tick" x="{axis_x.begin - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
    middle = (axis_x.begin + axis_x.end) / 2
    lines.append(f'<text class="axis" x="{middle:.1f}" y="{axis_y.begin + 33}" text-anchor="middle">{escape(label)}</text>')
    return lines


def classes(series, slot):
    return ("reference", "reference-fill", "") if series["reference"] else (f"s{slot}", f"f{slot}", DASHES[slot])


def curves(axis_x, axis_y, panel, key):
    """Bands below, then lines. A series without the x of this row (bytes that nobody counted) is left out."""
    bands, lines = [], []
    for slot, series in slots(panel):
        xs = series[key]
        if not xs:
            continue
        stroke, fill, dash = classes(series, slot)
        around = points(axis_x, axis_y, xs, series["low"]) + " " + points(axis_x, axis_y, xs[::-1], series["high"][::-1])
        bands.append(f'<polygon class="band {fill}" points="{around}"/>')
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        lines.append(f'<polyline class="line {stroke}"{dashed} points="{points(axis_x, axis_y, xs, series["loss"])}">'
                     f'<title>{escape(series["name"])}</title></polyline>')
    return bands + lines


def slots(panel):
    """(place in the palette, series): the reference takes none."""
    slot, result = 0, []
    for series in panel["series"]:
        result.append((slot, series))
        slot += 0 if series["reference"] else 1
    return result


def legend(panel, x, y):
    lines = [f'<text class="head" x="{x}" y="{y}">{escape(panel["title"])}</text>']
    for row, (slot, series) in enumerate(slots(panel)):
        stroke, _, dash = classes(series, slot)
        at = y + LEGEND_ROW * (row + 1)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        lines.append(f'<path class="line {stroke}"{dashed} d="M{x} {at - 4}h28"/>'
                     f'<text x="{x + 36}" y="{at}">{escape(series["name"])}</text>')
    return lines


def extent(panels, keys):
    values = [v for panel in panels for series in panel["series"] for key in keys for v in series[key] or []]
    return (min(values), max(values)) if values else None


def draw(title, panels, rows):
    """The document. panels: [{"title", "series": [{"name", "reference", "loss", "low", "high", KEY...}]}] with lists of one
    length (a KEY's may be None), all above 0; rows: [(KEY, its axis' label)], one row of panels each, at most five lines a
    panel beside the reference. Axes are logarithmic, and the same within a row."""
    width = (WIDTH - LEFT - RIGHT - GAP * (len(panels) - 1)) / len(panels)
    legend_height = LEGEND_ROW * (max(len(panel["series"]) for panel in panels) + 1) + 10
    rows = [(key, label) for key, label in rows if extent(panels, [key])]
    height = TOP + legend_height + len(rows) * (PLOT_HEIGHT + BETWEEN)
    body = [f'<text class="title" x="{LEFT - 40}" y="26">{escape(title)}</text>']
    loss = extent(panels, ["low", "high"])
    for column, panel in enumerate(panels):
        left = LEFT + column * (width + GAP)
        body += legend(panel, round(left - 6), TOP)
        for row, (key, label) in enumerate(rows):
            bottom = TOP + legend_height + row * (PLOT_HEIGHT + BETWEEN) + PLOT_HEIGHT
            axis_x = Axis(*extent(panels, [key]), left, left + width)
            axis_y = Axis(*loss, bottom, bottom - PLOT_HEIGHT)
            body += frame(axis_x, axis_y, label) + curves(axis_x, axis_y, panel, key)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">\n'
            f'<title>{escape(title)}</title>\n{style()}\n<rect class="paper" width="{WIDTH}" height="{height}"/>\n'
            + "\n".join(body) + "\n</svg>\n")
