"""Accuracy against the share kept: a curve an arm, where score-based pruning collapses and what repairs it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import altair as alt

from cluster.control_characters import show_controls
from tasks.report.vega import SERIES_LIGHT, WIDTH, Drawable, Rows, drawing, figure, fitted, table_of, width_of
from tasks.report.wording import count

FIGURE = "curves.svg"
WIDE = 700
MOST_ARMS = len(SERIES_LIGHT)
"""Beside random and the full data in one panel: as many as there are colours."""
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right", "triangle-left")
# Errors at which accuracies are marked, in % over powers of ten: of the ladders the first that has three marks or more.
_LADDERS = ((10, 5, 2), (10, 9, 8, 7, 6, 5, 4, 3, 2), tuple(step / 10 for step in range(100, 10, -1)))
MOST_MARKS = 7
AXIS = "test accuracy, %, spaced by the logarithm of the error"

Arm = Mapping[str, Any]
Curve = tuple[str, str, list[Arm]]
"""Name, its colour among those of style.py and vega.py, and the arm at its keeps, ascending."""


def curve_section(results: Mapping[str, Any]) -> str:
    """Return the report's section of curves; empty where there is one keep only."""
    panels = panels_of(results)
    if not panels:
        return ""
    cards = "".join(
        f'<div class="card"><h3>{escape(name)}</h3>{drawing(_panel(curves, results, WIDTH - 40), _label(curves))}</div>'
        for name, curves in panels
    )
    grid = results.get("sweep")
    said = f" The grid has {grid['sentence']}." if grid else ""
    return (
        f"<section><h2>Accuracy against the share kept</h2><p>{escape(_caption(results))}{escape(said)}</p>"
        f'<div class="cards">{cards}</div></section>'
    )


def curve_figure(results: Mapping[str, Any]) -> bytes | None:
    """Return the curves as an SVG file that stands alone, on white and on dark pages; None where there is one keep only."""
    panels = panels_of(results)
    if not panels:
        return None
    said = f"Test accuracy against the share kept: mean and 95 % interval of {_replicates(results)}"
    charts = [
        _panel(curves, results, WIDE).properties(title=alt.Title(name if len(panels) > 1 else said)) for name, curves in panels
    ]
    if len(panels) == 1:
        return figure(charts[0], said).encode()
    return figure(alt.vconcat(*charts, title=said).resolve_scale(color="independent", shape="independent"), said).encode()


def panels_of(results: Mapping[str, Any]) -> list[tuple[str, list[Curve]]]:
    """Return (name, curves) panels: one with all arms where they can be told apart, else by score, else by number.

    Random, and the full data where it was trained, are in each.
    """
    arms: dict[str, list[Arm]] = {}
    for arm in sorted(results["arms"], key=lambda arm: float(arm["keep"])):
        arms.setdefault(arm["name"], []).append(arm)
    if max((len(found) for found in arms.values()), default=0) < 2:
        return []
    always: list[Curve] = []
    chosen: list[str] = []
    for name in dict.fromkeys(arm["name"] for arm in results["arms"]):
        arm = arms[name][0]
        if arm["full"]:
            always.append((name, "full", arms[name]))
        elif arm["protocol"] == "random" and name == "random":
            always.insert(0, (name, "random", arms[name]))
        else:
            chosen.append(name)
    groups: dict[str, list[str]] = {} if chosen else {"All arms": []}
    for name in chosen:
        key = "All arms" if len(chosen) <= MOST_ARMS else str(arms[name][0]["score"] or "no score")
        groups.setdefault(key, []).append(name)
    panels = []
    for key, names in groups.items():
        # Even parts: the last one is not left with an arm alone.
        parts = max(1, -(-len(names) // MOST_ARMS))
        size = -(-len(names) // parts)
        for part in range(parts):
            some = names[part * size : (part + 1) * size]
            said = key if parts == 1 else f"{key}, {part + 1} of {parts}"
            panels.append((said, [*always, *((name, f"c{i}", arms[name]) for i, name in enumerate(some))]))
    return panels


def _panel(curves: Sequence[Curve], results: Mapping[str, Any], width: int) -> Drawable:
    """Return one panel; arms are apart by a few pixels at each keep, so that intervals do not hide each other."""
    keeps = sorted({float(arm["keep"]) for _, _, arms in curves for arm in arms})
    every = [value for _, _, arms in curves for arm in arms for value in (arm["mean"], *(arm["ci95"] or ()))]
    axis = ErrorAxis(every, int(results["dataset"]["n_test"]))
    air = (keeps[-1] / keeps[0]) ** 0.08
    low, high = keeps[0] / air, keeps[-1] * air
    # Pixels between two arms of one keep, on a logarithmic axis.
    apart = (high / low) ** (min(5.0, 26.0 / len(curves)) / width)
    rows = []
    for order, (_, _, arms) in enumerate(curves):
        for arm in arms:
            at = {"x": arm["keep"] * apart ** (order - (len(curves) - 1) / 2), "y": axis.place(arm["mean"])}
            ends = {end: axis.place(value) for end, value in zip(("low", "high"), arm["ci95"] or ())}
            rows.append({"order": order, **at, **ends})
    marks = alt.Axis(values=keeps, labelExpr="format(100 * datum.value, '.4~g') + ' %'", labelOverlap=True)
    domain = alt.Scale(type="log", domain=[low, high], nice=False)
    said = f"share of the {count(results['dataset']['n_train'])} train examples that is kept (log scale)"
    base = table_of(rows).encode(x=alt.X("x:Q", title=said, scale=domain, axis=marks))
    entries = Entries([(name, colour) for name, colour, _ in curves], width)
    bars = table_of([row for row in rows if "low" in row]).mark_rule(strokeWidth=1.6, opacity=0.8)
    layers = [
        bars.encode(x=base.encoding.x, y=axis.y("low"), y2="high:Q", color=entries.colour()),
        *entries.lines(rows, base.encoding.x, axis.y("y")),
        base.mark_point(size=55, filled=True, opacity=1).encode(y=axis.y("y"), color=entries.colour(), shape=entries.shape()),
    ]
    return alt.layer(*layers).properties(width=width, height=round(0.56 * width))


class ErrorAxis:
    """Place accuracies, in percent, by the logarithm of the error on `tested` examples: room for these values, and marks."""

    def __init__(self, every: Sequence[float], tested: int) -> None:
        # Half a test example: an arm without an error has a place too.
        self.least = 50.0 / max(tested, 1)
        low, high = self._error(max(min(every), 0.0)), self._error(max(every))
        air = max((high - low) * 0.05, 0.02)
        self.low, self.high = max(low - air, -2.0), high + air

    def _error(self, accuracy: float) -> float:
        return -math.log10(max(100.0 - accuracy, self.least))

    def place(self, accuracy: float) -> float:
        """Return where an accuracy is, at the end of the axis where it is beyond."""
        return min(max(self._error(accuracy), self.low), self.high)

    def marks(self) -> list[float]:
        """Return places of round accuracies, ascending: about MOST_MARKS at most, three or more where errors differ by tenths."""
        found: list[float] = []
        for ladder in _LADDERS:
            every = (-math.log10(factor * 10.0**power) for power in range(1, -5, -1) for factor in ladder)
            found = [place for place in every if self.low <= place <= self.high]
            if len(found) > 2:
                break
        return found[:: -(-len(found) // MOST_MARKS)] if found else found

    def y(self, field: str) -> alt.Y:
        """Return the axis of a field of places."""
        label = "format(100 - pow(10, -datum.value), '.5~g')"
        title: dict[str, Any] = {"titleAnchor": "start", "titleAngle": 0, "titleAlign": "left", "titleY": -10, "titleX": -26}
        axis = alt.Axis(values=self.marks(), labelExpr=label, **title)
        return alt.Y(f"{field}:Q", title=AXIS, axis=axis, scale=alt.Scale(domain=[self.low, self.high], nice=False, zero=False))


class Entries:
    """Tell arms apart by colour and shape, from the rows' field `order`: the place of an arm in (name, colour) pairs."""

    def __init__(self, entries: Sequence[tuple[str, str]], width: int) -> None:
        self.entries = entries
        self.order = list(range(len(entries)))
        # Names differ in their middle, where score and parameters stand: only what is wider than the chart is cut.
        shown = [show_controls(name) for name, _ in entries]
        columns = max(1, int(width // (max(map(width_of, shown)) + 40)))
        names = json.dumps({str(order): fitted(name, width / columns - 39) for order, name in enumerate(shown)})
        self.legend = alt.Legend(title=None, columns=columns, labelExpr=f"{names}[datum.value]")

    def colour(self) -> alt.Color:
        """Return each arm's colour."""
        scale = alt.Scale(domain=self.order, range=[f"var(--{colour})" for _, colour in self.entries])
        return alt.Color("order:N", scale=scale, legend=self.legend)

    def shape(self) -> alt.Shape:
        """Return shapes that tell arms apart where colours do not."""
        scale = alt.Scale(domain=self.order, range=[SHAPES[order % len(SHAPES)] for order in self.order])
        return alt.Shape("order:N", scale=scale, legend=self.legend)

    def lines(self, rows: Rows, x: alt.X, y: alt.Y) -> list[alt.Chart]:
        """Return the lines through the rows: random's and the full data's are dashed."""
        dashed = {order for order, (_, colour) in enumerate(self.entries) if colour in ("random", "full")}
        out = []
        # As a channel of its own the dashes would be drawn around the legend's symbols too.
        for dash, wanted in (([7, 4], True), ([1, 0], False)):
            some = [row for row in rows if (row["order"] in dashed) == wanted]
            if some:
                line = table_of(some).mark_line(strokeWidth=1.8, strokeDash=dash)
                out.append(line.encode(x=x, y=y, color=self.colour()))
        return out


def _label(curves: Sequence[Curve]) -> str:
    return f"Test accuracy against the share kept, of {', '.join(name for name, *_ in curves)}"


def _replicates(results: Mapping[str, Any]) -> str:
    numbers = sorted({len(arm["accuracy"]) for arm in results["arms"]})
    said = "–".join(str(one) for one in sorted({numbers[0], numbers[-1]}))
    return f"{said} replicate{'s' * (said != '1')}"


def _caption(results: Mapping[str, Any]) -> str:
    return (
        f"Mean of {_replicates(results)} with its 95 % interval, which is not that of a difference: what is better than random "
        "is told below, keep by keep. An interval that is not seen is smaller than its mark. Arms of one keep are drawn apart."
    )
