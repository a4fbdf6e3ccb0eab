"""The charts of a report's findings: accuracy by arm, differences to random, time by stage, scores, classes, weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from tasks.report.inputs import StageTiming
from tasks.report.vega import FONT, WIDTH, Rows, drawing, fitted, linear, named, padded, table_of, width_of
from tasks.report.wording import bounds, duration, percent, signed, with_margin

TRACK = 44
"""Pixels of an arm: a line of text, and its marks under it."""


# Vega's own "+" writes +0.
SIGNED = "datum.value === 0 ? '0' : format(datum.value, '+~g')"


class Tracks:
    """Lay out a track an arm, one below the other: its name, its figures, and where its marks are."""

    def __init__(self) -> None:
        self.height = 0.0
        self.names: list[dict[str, Any]] = []
        self.figures: list[dict[str, Any]] = []

    def add(self, name: str, figures: str, colour: str = "var(--ink)") -> float:
        """Add a track, of one line of text where both fit and of two otherwise, and return the height of its marks."""
        self.names.append({"y": self.height + 12, "words": fitted(name, WIDTH)})
        if width_of(name) + width_of(figures) + 16 > WIDTH:
            self.height += 17
        self.figures.append({"y": self.height + 12, "words": figures, "colour": colour})
        self.height += TRACK
        return self.height - TRACK + 30

    def y(self, field: str = "y") -> alt.Y:
        """Return the axis of heights, downwards in pixels."""
        return alt.Y(f"{field}:Q", axis=None, scale=alt.Scale(domain=[0, self.height], range=[0, self.height], nice=False))

    def chart(self, layers: Sequence[alt.Chart], label: str) -> str:
        """Return the layers with the texts over them."""
        text: dict[str, Any] = {"baseline": "middle"}
        names = table_of(self.names).mark_text(align="left", **text).encode(x=alt.value(0), y=self.y(), text="words:N")
        figures = table_of(self.figures).mark_text(align="right", fontWeight=600, **text).encode(
            x=alt.value(WIDTH), y=self.y(), text="words:N", color=named("colour")
        )
        return drawing(alt.layer(*layers, names, figures).properties(width=WIDTH, height=self.height), label)


def across(field: str, domain: tuple[float, float], title: str, **axis: Any) -> alt.X:
    """Return a horizontal axis with about six round marks."""
    return alt.X(f"{field}:Q", title=title, scale=linear(domain), axis=alt.Axis(tickCount=6, **axis))


def accuracy_chart(arms: Sequence[Mapping[str, Any]]) -> str:
    """Return each arm's replicates as dots, its mean as a bar and the 95 % interval of the mean as a line."""
    every = [value for arm in arms for value in (*arm["accuracy"], *(arm["ci95"] or ()))]
    low, high = padded(every)
    domain = max(low, min(0.0, *every)), min(high, max(100.0, *every))
    tracks = Tracks()
    dots, means, intervals = [], [], []
    for arm in arms:
        kind = "full" if arm["full"] else "random" if arm["protocol"] == "random" else "arm"
        at = {"y": tracks.add(arm["name"], f"{with_margin(arm['mean'], arm['ci95'])} %"), "colour": f"var(--{kind})"}
        dots += [{**at, "x": value} for value in arm["accuracy"]]
        means.append({**at, "x": arm["mean"]})
        if arm["ci95"] is not None:
            intervals.append({**at, "x": arm["ci95"][0], "x2": arm["ci95"][1]})
    x, y = across("x", domain, "test accuracy at the last step, %"), tracks.y()
    layers = [
        _intervals(intervals, x, y, 0.75),
        table_of(dots).mark_circle(size=42, opacity=0.5).encode(x=x, y=y, color=named("colour")),
        table_of(means).mark_tick(thickness=3.5, size=16, opacity=1).encode(x=x, y=y, color=named("colour")),
    ]
    return tracks.chart(layers, "Test accuracy by arm")


def _intervals(rows: Rows, x: alt.X, y: alt.Y, opacity: float = 1.0) -> alt.Chart:
    rule = table_of(rows).mark_rule(strokeWidth=4, strokeCap="round", opacity=opacity)
    chart: alt.Chart = rule.encode(x=x, x2="x2:Q", y=y, color=named("colour"))
    return chart


def forest_chart(rows: Sequence[Mapping[str, Any]], margin: float) -> str:
    """Return each arm's paired difference to random with its adjusted interval, and the two-way one in thin."""
    every = [0.0]
    for row in rows:
        every += [row["mean_difference"], *(row["ci95"] or ()), *(row["two_way_ci95"] or ())]
    domain = padded([*every, *((-margin, margin) if margin < 2 * (max(every) - min(every)) else ())])
    tracks = Tracks()
    means: list[dict[str, Any]] = []
    decides: list[dict[str, Any]] = []
    wider: list[dict[str, Any]] = []
    for row in rows:
        verdict, colour = row["verdict"], f"var(--{row['verdict']})"
        said = f"{signed(row['mean_difference'])} {bounds(row['ci95'])} {verdict}".replace("-", "−")
        at = {"y": tracks.add(row["arm"], said, colour), "colour": colour}
        means.append({**at, "x": row["mean_difference"], "fill": "var(--card)" if verdict == "undecided" else colour})
        for interval, found in (("ci95", decides), ("two_way_ci95", wider)):
            if row[interval] is not None:
                found.append({**at, "x": row[interval][0], "x2": row[interval][1]})
    x, y = across("x", domain, "difference to random, points", labelExpr=SIGNED), tracks.y()
    layers = []
    if margin > 0:
        band = {"x": max(-margin, domain[0]), "x2": min(margin, domain[1])}
        layers.append(table_of([band]).mark_rect(fill="var(--band)").encode(x=x, x2="x2:Q"))
    zero = table_of([{"x": 0.0}]).mark_rule(color="var(--ink)", strokeWidth=1.5, strokeDash=[4, 3])
    ends = [{**row, "x": row[end]} for row in wider for end in ("x", "x2")]
    layers += [
        zero.encode(x=x),
        table_of(wider).mark_rule(strokeWidth=1.3).encode(x=x, x2="x2:Q", y=y, color=named("colour")),
        table_of(ends).mark_tick(thickness=1.3, size=9, opacity=1).encode(x=x, y=y, color=named("colour")),
        _intervals(decides, x, y),
        table_of(means).mark_point(size=90, strokeWidth=2.5, opacity=1).encode(
            x=x, y=y, stroke=alt.Stroke("colour:N", scale=None), fill=alt.Fill("fill:N", scale=None)
        ),
    ]
    return tracks.chart(layers, "Paired difference to random by arm")


def time_chart(stages: Sequence[StageTiming]) -> str:
    """Return a bar a stage with its seconds; reused stages are hollow."""
    rows: list[dict[str, Any]] = []
    for place, stage in enumerate(stages):
        items = f"{stage.items:,} item{'s' * (stage.items != 1)}"
        said = f"{duration(stage.seconds)} · {items}{'' if stage.computed else ', reused'}"
        fill = "var(--bar)" if stage.computed else "transparent"
        rows.append({"place": place, "name": fitted(stage.name, 150), "x": stage.seconds, "words": said, "fill": fill})
    longest = max((stage.seconds for stage in stages), default=0.0) or 1.0
    names = {str(row["place"]): row["name"] for row in rows}
    x = alt.X("x:Q", axis=None, scale=linear((0.0, 2.2 * longest)))
    base = table_of(rows).encode(x=x, y=_names(names))
    layers = [
        base.mark_bar(height=16, stroke="var(--bar)", strokeWidth=1.5, cornerRadius=2).encode(
            x2=alt.datum(0.0), fill=alt.Fill("fill:N", scale=None)
        ),
        base.mark_text(align="left", dx=8, fontSize=FONT, fill="var(--soft)").encode(text="words:N"),
    ]
    return drawing(alt.layer(*layers).properties(width=WIDTH - 100, height=alt.Step(26)), "Time by stage")


def _names(names: Mapping[str, str]) -> alt.Y:
    """Return an axis of names by their place: two that are cut to the same text, or are the same, are two rows still."""
    axis = alt.Axis(
        labelExpr=f"{json.dumps(names)}[datum.value]", labelColor="var(--ink)", labelFontSize=FONT + 1, labelLimit=160
    )
    return alt.Y("place:O", title=None, sort=None, axis=axis)


def histogram_chart(low: float, high: float, counts: Sequence[int], marks: Sequence[tuple[float, str]], name: str) -> str:
    """Return a score's histogram with a numbered line for each selection threshold, (value, number).

    The counts have a logarithmic axis where the highest bin is above 100 times the median of the filled ones: else all but
    a few bins would look empty.
    """
    filled = sorted(count for count in counts if count)
    logarithmic = bool(filled) and filled[-1] > 100 * filled[len(filled) // 2]
    domain = low, high if high > low else low + 1.0
    step = (domain[1] - domain[0]) / max(len(counts), 1)
    # Just under 1, so that a bin of one example is seen on a logarithmic axis.
    floor, ceiling = (0.8, 1.6 * max(filled)) if logarithmic else (0.0, 1.06 * max(filled, default=1))
    bins = [
        {"x": low + place * step, "x2": low + (place + 0.9) * step, "y": floor, "y2": count}
        for place, count in enumerate(counts) if count
    ]  # fmt: skip
    x = across("x", domain, f"{fitted(name, 200)}, against number of examples{' (log scale)' if logarithmic else ''}", grid=False)
    kind: Any = "log" if logarithmic else "linear"
    axis = alt.Axis(tickCount=5, tickMinStep=1, format=",d")
    y = alt.Y("y:Q", title=None, axis=axis, scale=alt.Scale(type=kind, domain=[floor, ceiling], nice=False, zero=False))
    layers = [table_of(bins).mark_rect(fill="var(--bar)").encode(x=x, x2="x2:Q", y=y, y2="y2:Q")]
    # Numbers stand in as many rows as they need: neighbours closer than a number would lie on each other.
    last: list[float] = []
    for value, label in sorted(marks):
        place = min(max(value, domain[0]), domain[1])
        at = (place - domain[0]) / (domain[1] - domain[0]) * (WIDTH - 40)
        row = next((row for row, end in enumerate(last) if at - end >= 20), len(last))
        last[row : row + 1] = [at]
        height = alt.value(-9 - 17 * row)
        mark = table_of([{"x": place, "label": label}]).encode(x=x)
        layers += [
            mark.mark_rule(color="var(--mark)", strokeWidth=1.5).encode(y=height, y2=alt.value("height")),
            mark.mark_circle(size=260, opacity=1, color="var(--mark)").encode(y=height),
            mark.mark_text(fontSize=11, fontWeight=700, fill="var(--onmark)").encode(y=height, text="label:N"),
        ]
    return drawing(alt.layer(*layers).properties(width=WIDTH - 40, height=180), f"Histogram of {name}")


def balance_chart(rows: Sequence[tuple[str, float, float, float]], highest: float) -> str:
    """Return, for each class, its share of the kept examples (signal, then exploration) and a tick at its full share.

    `rows` holds (class, share in the full data, share that is signal, share that is exploration), in 0..1; `highest` is
    the largest share in any chart beside this one, so that bars can be compared across them.
    """
    bars, ticks = [], []
    for place, (_, full, signal, exploration) in enumerate(rows):
        bars.append({"place": place, "x": 0.0, "x2": 100 * signal, "colour": "var(--signal)"})
        bars.append({"place": place, "x": 100 * signal, "x2": 100 * (signal + exploration), "colour": "var(--exploration)"})
        ticks.append({"place": place, "x": 100 * full})
    y = _names({str(place): fitted(name, 120) for place, (name, *_) in enumerate(rows)})
    x = across("x", (0.0, 108 * (highest or 1.0)), "share of the examples, %")
    layers = [
        table_of(bars).mark_bar(height=12).encode(x=x, x2="x2:Q", y=y, color=named("colour")),
        table_of(ticks).mark_tick(thickness=2.5, size=17, opacity=1, color="var(--ink)").encode(x=x, y=y),
    ]
    return drawing(alt.layer(*layers).properties(width=WIDTH - 30, height=alt.Step(19)), "Class balance")


def weight_chart(rows: Sequence[tuple[str, Sequence[tuple[float, float]], float]]) -> str:
    """Return, for each arm, its weights' smallest to largest value with the quartiles, and the effective share.

    `rows` holds (arm, [(quantile, weight), ...] ascending, effective sample size / kept).
    """
    highest = max((points[-1][1] for _, points, _ in rows), default=0.0) or 1.0
    tracks = Tracks()
    lines, ends, boxes = [], [], []
    for name, points, share in rows:
        at = {"y": tracks.add(name, f"effective size {percent(round(share, 3))} of kept"), "colour": "var(--arm)"}
        low, high = points[0][1], points[-1][1]
        inner = [weight for quantile, weight in points if 0.25 <= quantile <= 0.75] or [low, high]
        lines.append({**at, "x": low, "x2": high})
        ends += [{**at, "x": low}, {**at, "x": high}]
        # Two pixels more on each side: a box of equal weights is seen.
        air = 2 * highest / WIDTH
        boxes.append({"y": at["y"], "x": min(inner) - air, "x2": max(inner) + air})
    x, y = across("x", (-0.02 * highest, 1.06 * highest), "weight of an example in the loss"), tracks.y()
    layers = [
        _intervals(lines, x, y, 0.75),
        table_of(boxes).mark_bar(height=12, cornerRadius=2, fill="var(--bar)").encode(x=x, x2="x2:Q", y=y),
        table_of(ends).mark_circle(size=50, opacity=1).encode(x=x, y=y, color=named("colour")),
    ]
    return tracks.chart(layers, "Weights by arm")
