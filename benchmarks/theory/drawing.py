"""Figures of the theory: panels of points with intervals and dashed theory, one SVG file for light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from tasks.report import vega
from tasks.report.curves import SHAPES

WIDTH, HEIGHT = 350, 210
# A power of ten is a mark of a logarithmic axis, and 2 and 5 times it where that leaves few.
POWERS = 2.2


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
    """Return the whole file: title, caption, the panels in rows, one legend for all of them."""
    kinds: dict[str, int] = {}
    for panel in panels:
        for series in panel.series:
            kinds.setdefault(series.label, series.kind)
    names = list(kinds)
    legend = alt.Legend(title=None, columns=max(2, int(columns * WIDTH / (max(map(vega.width_of, names)) + 40))))
    colours = [f"var(--c{kind % len(vega.SERIES_LIGHT)})" for kind in kinds.values()]
    shapes = [SHAPES[kind % len(SHAPES)] for kind in kinds.values()]
    colour = alt.Color("label:N", scale=alt.Scale(domain=names, range=colours), legend=legend)
    shape = alt.Shape("label:N", scale=alt.Scale(domain=names, range=shapes), legend=legend)
    charts = [_panel(panel, colour, shape) for panel in panels]
    whole = alt.concat(*charts, columns=columns, title=alt.Title(title, subtitle=caption))
    return vega.figure(whole.resolve_scale(color="shared", shape="shared"), title)


def _panel(panel: Panel, colour: alt.Color, shape: alt.Shape) -> Any:
    every = [value for s in panel.series for point in s.points for value in point[1:]]
    every += [value for s in panel.series for value in s.truth]
    if panel.log_y:
        # A lower end of an interval at or below 0 has no place on a logarithmic axis: it is cut at the lowest mean.
        every = [value for value in every if value > 0]
        means = [point[1] for s in panel.series for point in s.points if point[1] > 0]
        every = [max(value, min(means) / 2) for value in every] if means else every
    x_range, y_range = _range(panel.xs, panel.log_x, 0.03), _range(every, panel.log_y, 0.05)
    x = alt.X("x:Q", title=panel.x_name, scale=_scale(x_range, panel.log_x), axis=_axis(x_range, panel.log_x, grid=False))
    y_axis = alt.Y("y:Q", title=panel.y_name, scale=_scale(y_range, panel.log_y), axis=_axis(y_range, panel.log_y))
    truths, points = [], []
    for series in panel.series:
        said = {"label": series.label}
        truths += [{**said, "x": at, "y": value} for at, value in zip(panel.xs, series.truth)]
        points += [
            {**said, "x": at, "y": value, "low": max(low, y_range[0]), "high": high, "joined": series.joined}
            for at, value, low, high in series.points
        ]
    spread = [{**point, "y": point["low"]} for point in points if point["high"] > point["low"]]
    joined = [point for point in points if point["joined"]]
    layers = [
        vega.table_of(truths).mark_line(strokeDash=[6, 4], strokeWidth=1.4).encode(x=x, y=y_axis, color=colour),
        vega.table_of(joined).mark_line(strokeWidth=1.8).encode(x=x, y=y_axis, color=colour),
        vega.table_of(spread).mark_rule(strokeWidth=1.8).encode(x=x, y=y_axis, y2="high:Q", color=colour),
        vega.table_of(points).mark_point(filled=True, size=45, opacity=1).encode(x=x, y=y_axis, color=colour, shape=shape),
    ]
    for at, words, kind in panel.marks:
        place = vega.table_of([{"x": at}]).encode(x=x)
        left = at > (math.sqrt(x_range[0] * x_range[1]) if panel.log_x else sum(x_range) / 2)
        text: dict[str, Any] = {"align": "right", "dx": -6} if left else {"align": "left", "dx": 6}
        layers += [
            place.mark_rule(strokeDash=[6, 4], strokeWidth=1.4, color=f"var(--c{kind})"),
            place.mark_text(fill="var(--soft)", dy=8, **text).encode(y=alt.value(0), text=alt.value(words)),
        ]
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT, title=panel.title)


def _scale(ends: tuple[float, float], log: bool) -> alt.Scale:
    return alt.Scale(type="log" if log else "linear", domain=list(ends), nice=False, zero=False, clamp=True)


def _axis(ends: tuple[float, float], log: bool, **more: Any) -> alt.Axis:
    return alt.Axis(values=_log_ticks(*ends), format=",~r", **more) if log else alt.Axis(tickCount=6, **more)


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if math.log10(high / low) > POWERS else (1, 2, 5)
    values = [f * 10.0**p for p in powers for f in factors if low * 0.999 <= f * 10.0**p <= high * 1.001]
    return values if len(values) <= 7 else values[:: math.ceil(len(values) / 7)]


def _range(values: Sequence[float], log: bool, air: float) -> tuple[float, float]:
    if log:
        low, high = math.log10(min(values)), math.log10(max(values))
        room = (high - low or 1.0) * air
        return 10 ** (low - room), 10 ** (high + room)
    low, high = min(values), max(values)
    room = (high - low or 1.0) * air
    return low - room, high + room
