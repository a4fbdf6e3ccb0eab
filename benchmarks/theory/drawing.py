"""Figures of the theory: panels of points with intervals and dashed theory, one SVG file for light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tasks.report.svg import dot, element, line, number, scale, text, tick_labels, ticks, width_of
from tasks.report.svg import title as named

WIDTH, HEIGHT = 430.0, 290.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 24.0, 34.0, 46.0

Axis = tuple[Callable[[float], float], list[float], list[str]]

# The colours of the report's style sheet, written out: a file of its own is not styled by the page that shows it.
LIGHT = ("#0a5fb4", "#b3261e", "#6639ba", "#57606a", "#12702f", "#b86412", "#0b7480", "#a8327d")
DARK = ("#6db3f8", "#ff8f85", "#c3a6ff", "#a2adba", "#52c574", "#ffab5e", "#56c8d8", "#f08ac8")
_RULES = """svg{{font:13px system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif}}
.page{{fill:{page}}}.t,.b{{fill:{ink}}}.m{{fill:{soft};font-size:12px}}.b{{font-weight:600}}.grid{{stroke:{grid}}}
.axis{{stroke:{soft}}}{series}"""
_SERIES = ".f{0}{{fill:{1}}}.s{0}{{stroke:{1};fill:none;stroke-width:1.8}}.o{0}{{stroke:{1};fill:{2};stroke-width:1.8}}"


def _rules(page: str, ink: str, soft: str, grid: str, colours: Sequence[str]) -> str:
    series = "".join(_SERIES.format(kind, colour, page) for kind, colour in enumerate(colours))
    return _RULES.format(page=page, ink=ink, soft=soft, grid=grid, series=series)


STYLE = (
    _rules("#ffffff", "#1c2128", "#57606a", "#e3e7ec", LIGHT)
    + ".dash{stroke-dasharray:6 4;stroke-width:1.4}.wide{stroke-width:1.8}"
    + "@media (prefers-color-scheme:dark){" + _rules("#0f1318", "#e6eaf0", "#a2adba", "#2b343f", DARK)
    + ".dash{stroke-width:1.4}}"
)  # fmt: skip


@dataclass(frozen=True)
class Series:
    """Hold one line: points (x, y, low, high), and what the theory says at each x of the panel (dashed).

    `kind` chooses colour and shape; `joined` draws a line through the points.
    """

    label: str
    kind: int
    points: Sequence[tuple[float, float, float, float]] = ()
    truth: Sequence[float] = ()
    joined: bool = True


@dataclass(frozen=True)
class Panel:
    """Hold one pair of axes. `xs` are where `truth` is given, and the range of x."""

    title: str
    x_name: str
    y_name: str
    xs: Sequence[float]
    series: Sequence[Series]
    log_x: bool = True
    log_y: bool = True
    marks: Sequence[tuple[float, str, int]] = ()
    """Vertical lines: x, words, kind."""


def figure(title: str, panels: Sequence[Panel], caption: str, columns: int = 2) -> str:
    """Return the whole file: title, one legend for all panels, the panels in rows, the caption below the legend."""
    width = columns * WIDTH + 10
    body = [text(14, 26, title, "b"), text(14, 46, caption, "m")]
    shown: dict[str, int] = {}
    for panel in panels:
        for series in panel.series:
            shown.setdefault(series.label, series.kind)
    x, y = 20.0, 72.0
    for label, kind in shown.items():
        wide = width_of(label) + 34
        if x + wide > width:
            x, y = 20.0, y + 22
        body += [*_marker(x, y - 4, kind), text(x + 12, y, label, "t")]
        x += wide
    top = y + 14
    for place, panel in enumerate(panels):
        at_x, at_y = place % columns * WIDTH, top + place // columns * HEIGHT
        body.append(element("g", "".join(_panel(panel)), transform=f"translate({number(at_x)} {number(at_y)})"))
    height = top + -(-len(panels) // columns) * HEIGHT + 6
    whole = named(title) + element("style", STYLE) + element(
        "rect", "", x=0, y=0, width=width, height=height, class_="page", rx=8
    )
    return element(
        "svg", whole + "".join(body), xmlns="http://www.w3.org/2000/svg", width=width, height=height, role="img",
        viewBox=f"0 0 {number(width)} {number(height)}",
    ) + "\n"  # fmt: skip


def _marker(x: float, y: float, kind: int) -> list[str]:
    if kind % 3 == 0:
        return [dot(x, y, 4, f"f{kind}")]
    if kind % 3 == 1:
        return [element("rect", "", x=x - 3.6, y=y - 3.6, width=7.2, height=7.2, class_=f"f{kind}")]
    return [element("path", "", d=f"M{number(x)} {number(y - 4.6)}l4.6 4.6l-4.6 4.6l-4.6 -4.6z", class_=f"o{kind}")]


def _log_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if math.log10(high / low) > 2.2 else (1, 2, 5)
    values = [f * 10.0**p for p in powers for f in factors if low * 0.999 <= f * 10.0**p <= high * 1.001]
    if len(values) > 7:
        values = values[:: math.ceil(len(values) / 7)]
    return values, [_power(value) for value in values]


def _power(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def _range(values: Sequence[float], log: bool, air: float) -> tuple[float, float]:
    if log:
        low, high = math.log10(min(values)), math.log10(max(values))
        room = (high - low or 1.0) * air
        return 10 ** (low - room), 10 ** (high + room)
    low, high = min(values), max(values)
    room = (high - low or 1.0) * air
    return low - room, high + room


def _axis(low: float, high: float, log: bool, start: float, end: float) -> Axis:
    if log:
        place = scale(math.log10(low), math.log10(high), start, end)
        values, labels = _log_ticks(low, high)
        return lambda value: place(math.log10(min(max(value, low), high))), values, labels
    linear = scale(low, high, start, end)
    values = ticks(low, high)
    return lambda value: linear(min(max(value, low), high)), values, tick_labels(values)


def _panel(panel: Panel) -> list[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    every = [value for s in panel.series for point in s.points for value in point[1:]]
    every += [value for s in panel.series for value in s.truth]
    if panel.log_y:
        # A lower end of an interval at or below 0 has no place on a logarithmic axis: it is cut at the lowest mean.
        every = [value for value in every if value > 0]
        means = [point[1] for s in panel.series for point in s.points if point[1] > 0]
        every = [max(value, min(means) / 2) for value in every] if means else every
    x_low, x_high = _range(panel.xs, panel.log_x, 0.03)
    y_low, y_high = _range(every, panel.log_y, 0.05)
    x_at, x_values, x_labels = _axis(x_low, x_high, panel.log_x, LEFT, right)
    y_at, y_values, y_labels = _axis(y_low, y_high, panel.log_y, bottom, TOP)
    out = [text(LEFT, TOP - 12, panel.title, "b")]
    for value, label in zip(y_values, y_labels):
        out += [line(LEFT, y_at(value), right, y_at(value), "grid"), text(LEFT - 6, y_at(value) + 4, label, "m", "end")]
    for value, label in zip(x_values, x_labels):
        out += [line(x_at(value), bottom, x_at(value), bottom + 4, "axis"), text(x_at(value), bottom + 17, label, "m", "middle")]
    out += [line(LEFT, bottom, right, bottom, "axis"), text((LEFT + right) / 2, bottom + 35, panel.x_name, "m", "middle")]
    middle = (TOP + bottom) / 2
    turned = text(0, 0, panel.y_name, "m", "middle")
    out.append(element("g", turned, transform=f"translate(14 {number(middle)}) rotate(-90)"))
    for value, words, kind in panel.marks:
        anchor = "end" if x_at(value) > (LEFT + right) / 2 else "start"
        out += [line(x_at(value), TOP, x_at(value), bottom, f"s{kind} dash"),
                text(x_at(value) + (-6 if anchor == "end" else 6), TOP + 12, words, "m", anchor)]  # fmt: skip
    for series in panel.series:
        if series.truth:
            out.append(_path([(x_at(x), y_at(y)) for x, y in zip(panel.xs, series.truth)], f"s{series.kind} dash"))
        spots = [(x_at(x), y_at(y)) for x, y, *_ in series.points]
        if series.joined and spots:
            out.append(_path(spots, f"s{series.kind}"))
        for (x, _, low, high), spot in zip(series.points, spots):
            if high > low:
                out.append(line(x_at(x), y_at(max(low, y_low)), x_at(x), y_at(high), f"s{series.kind}"))
            out += _marker(*spot, series.kind)
    return out


def _path(spots: Sequence[tuple[float, float]], class_: str) -> str:
    points = "L".join(f"{number(x)} {number(y)}" for x, y in spots)
    return element("path", "", d=f"M{points}", class_=class_)
