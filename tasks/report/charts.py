"""The charts of a report's findings: accuracy by arm, differences to random, time by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.report.inputs import StageTiming
from tasks.report.svg import box, dot, drawing, fitted, line, padded, scale, text, tick_labels, ticks, width_of, x_axis
from tasks.report.wording import bounds, percent, signed, with_margin

WIDTH = 440.0
LEFT, RIGHT = 12.0, WIDTH - 12.0
TRACK = 24.0
GAP = 20.0


def accuracy_chart(arms: Sequence[Mapping[str, Any]]) -> str:
    """Return each arm's replicates as dots, its mean as a bar and the 95 % interval of the mean as a line."""
    every = [value for arm in arms for value in (*arm["accuracy"], *(arm["ci95"] or ()))]
    low, high = padded(every)
    low, high = max(low, min(0.0, *every)), min(high, max(100.0, *every))
    place = scale(low, high, LEFT + 8, RIGHT - 8)
    body, y = [], 0.0
    for arm in arms:
        rows, y = _labels(arm["name"], f"{with_margin(arm['mean'], arm['ci95'])} %", "b", y)
        kind = "random" if arm["protocol"] == "random" and not arm["full"] else "full" if arm["full"] else "arm"
        middle = y + TRACK / 2 - 3
        if arm["ci95"] is not None:
            rows.append(line(place(arm["ci95"][0]), middle, place(arm["ci95"][1]), middle, f"interval s-{kind}"))
        for number, value in enumerate(arm["accuracy"]):
            rows.append(dot(place(value), middle, 3.4, f"faint f-{kind}", f"replicate {number}: {value:.2f} %"))
        hint = f"mean {arm['mean']:.2f} %"
        rows.append(box(place(arm["mean"]) - 1.75, middle - 8, 3.5, 16, f"f-{kind}", hint=hint, radius=1.5))
        body += rows
        y += TRACK
    axis = x_axis(place, ticks(low, high), 4, y, "test accuracy at the last step, %")
    return drawing(WIDTH, y + 40, "Test accuracy by arm", [*axis, *body])


def forest_chart(rows: Sequence[Mapping[str, Any]], margin: float) -> str:
    """Return each arm's paired difference to random with its adjusted interval, and the two-way one in thin."""
    every = [0.0]
    for row in rows:
        every += [row["mean_difference"], *(row["ci95"] or ()), *(row["two_way_ci95"] or ())]
    low, high = padded([*every, *((-margin, margin) if margin < 2 * (max(every) - min(every)) else ())])
    place = scale(low, high, LEFT + 8, RIGHT - 8)
    body, y = [], 0.0
    for row in rows:
        verdict = row["verdict"]
        said = f"{signed(row['mean_difference'])} {bounds(row['ci95'])} {verdict}".replace("-", "−")
        marks, y = _labels(row["arm"], said, f"b v-{verdict}", y)
        middle = y + TRACK / 2 - 3
        if row["two_way_ci95"] is not None:
            marks += _whisker(place, row["two_way_ci95"], middle, 4.5, f"thin k-{verdict}")
        if row["ci95"] is not None:
            marks += _whisker(place, row["ci95"], middle, 0, f"interval k-{verdict}")
        shape = "open" if verdict == "undecided" else ""
        marks.append(dot(place(row["mean_difference"]), middle, 5.5, f"{shape} p-{verdict}".strip(), row["sentence"]))
        body += marks
        y += TRACK
    behind = []
    if margin > 0:
        left, right = max(place(-margin), LEFT), min(place(margin), RIGHT)
        behind.append(box(left, 4, right - left, y - 4, "margin", hint=f"margin: ±{margin:g} points"))
    axis = x_axis(place, ticks(low, high), 4, y, "difference to random, points", sign=True)
    zero = line(place(0), 4, place(0), y, "zero")
    return drawing(WIDTH, y + 40, "Paired difference to random by arm", [*behind, *axis, zero, *body])


def _whisker(place: Any, interval: Sequence[float], y: float, cap: float, class_: str) -> list[str]:
    left, right = place(interval[0]), place(interval[1])
    out = [line(left, y, right, y, class_)]
    if cap:
        out += [line(left, y - cap, left, y + cap, class_), line(right, y - cap, right, y + cap, class_)]
    return out


def _labels(name: str, said: str, class_: str, y: float) -> tuple[list[str], float]:
    """Return an arm's name and figures, on one line where both fit and on two otherwise, and where the track starts."""
    room = RIGHT - LEFT
    if width_of(name) + width_of(said) + 16 <= room:
        return [text(LEFT, y + 18, name, "t"), text(RIGHT, y + 18, said, class_, "end")], y + GAP
    return [
        text(LEFT, y + 18, fitted(name, room), "t", hint=name),
        text(RIGHT, y + 35, said, class_, "end"),
    ], y + GAP + 17


def time_chart(stages: Sequence[StageTiming]) -> str:
    """Return a bar a stage with its seconds; reused stages are hollow."""
    longest = max((stage.seconds for stage in stages), default=0.0) or 1.0
    left = min(LEFT + max(width_of(fitted(stage.name, 150)) for stage in stages) + 10, 180.0)
    place = scale(0.0, longest, left, RIGHT - 140)
    body = []
    for number, stage in enumerate(stages):
        y = number * 26.0 + 6
        state = "" if stage.computed else ", reused"
        items = f"{stage.items:,} item{'s' * (stage.items != 1)}"
        body += [
            text(LEFT, y + 14, fitted(stage.name, 150), "t", hint=stage.name),
            box(left, y + 2, max(place(stage.seconds) - left, 2.0), 16, "bar" if stage.computed else "bar hollow",
                hint=f"{stage.name}: {duration(stage.seconds)}, {items}{state}", radius=2),
            text(max(place(stage.seconds), left + 2) + 8, y + 14, f"{duration(stage.seconds)} · {items}{state}", "m"),
        ]
    return drawing(WIDTH, len(stages) * 26.0 + 10, "Time by stage", body)


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def histogram_chart(
    low: float, high: float, counts: Sequence[int], marks: Sequence[tuple[float, str, str]], name: str
) -> str:
    """Return a score's histogram with a numbered line for each selection threshold.

    `marks` holds (value, short label, hint). The counts have a logarithmic axis where the highest bin is above 100
    times the median of the filled ones: else all but a few bins would look empty.
    """
    import math

    top, bottom, left = 34.0, 214.0, 62.0
    filled = sorted(count for count in counts if count)
    logarithmic = bool(filled) and filled[-1] > 100 * filled[len(filled) // 2]
    highest = max(counts, default=0) or 1
    if logarithmic:
        ceiling = math.ceil(math.log10(highest))
        height = scale(0.0, float(ceiling), bottom - 12, top)
        levels = [(height(power), f"{10**power:,}") for power in range(0, ceiling + 1, max(1, ceiling // 5))]
        spots = [height(math.log10(count)) if count else bottom for count in counts]
    else:
        values = ticks(0.0, highest * 1.05, 5)
        height = scale(0.0, highest * 1.05, bottom, top)
        levels = [(height(value), label) for value, label in zip(values, tick_labels(values))]
        spots = [height(count) for count in counts]
    place = scale(low, high if high > low else low + 1.0, left, RIGHT)
    body = []
    for y, label in levels:
        body += [line(left, y, RIGHT, y, "grid"), text(left - 6, y + 4, label, "m", "end")]
    width = (RIGHT - left) / max(len(counts), 1)
    for number, (count, spot) in enumerate(zip(counts, spots)):
        start, end = (low + (high - low) * step / len(counts) for step in (number, number + 1))
        hint = f"{start:.4g} to {end:.4g}: {count:,} examples"
        if count:
            body.append(box(left + number * width, spot, max(width - 0.8, 0.6), bottom - spot, "bar", hint=hint))
    last = [-100.0, -100.0]
    for value, label, hint in sorted(marks):
        x = min(max(place(value), left), RIGHT)
        # Two rows of labels, the less crowded first: neighbours closer than a label would overlap.
        row = 0 if x - last[0] >= 20 else 1 if x - last[1] >= 20 else int(last[1] < last[0])
        last[row] = x
        body += [line(x, 12 + 14 * row, x, bottom, "mark"), dot(x, 9 + 14 * row, 8.5, "f-mark", hint),
                 text(x, 13 + 14 * row, label, "onmark", "middle", hint=hint)]  # fmt: skip
    values = ticks(low, high)
    for value, label in zip(values, tick_labels(values)):
        body.append(text(place(value), bottom + 16, label, "m", "middle"))
    body.append(line(left, bottom, RIGHT, bottom, "axis"))
    counted = "examples (log scale)" if logarithmic else "examples"
    body.append(text((left + RIGHT) / 2, bottom + 34, f"{name}, against number of {counted}", "m", "middle"))
    return drawing(WIDTH, bottom + 42, f"Histogram of {name}", body)


def balance_chart(rows: Sequence[tuple[str, float, float, float]], highest: float) -> str:
    """Return, for each class, its share of the kept examples (signal, then exploration) and a tick at its full share.

    `rows` holds (class, share in the full data, share that is signal, share that is exploration), in 0..1; `highest` is
    the largest share in any chart beside this one, so that bars can be compared across them.
    """
    left = min(LEFT + max((width_of(fitted(name, 120)) for name, *_ in rows), default=0.0) + 8, 140.0)
    highest = highest or 1.0
    values = ticks(0.0, 100 * highest * 1.08, 5)
    place = scale(0.0, highest * 1.08, left, RIGHT - 6)
    bottom = len(rows) * 19.0 + 6
    body = x_axis(lambda value: place(value / 100), values, 2, bottom, "share of the examples, %")
    for number, (name, full, signal, exploration) in enumerate(rows):
        y = number * 19.0 + 5
        hint = (f"{name}: {percent(round(signal, 5))} signal and {percent(round(exploration, 5))} exploration, "
                f"against {percent(round(full, 5))} of the full data")  # fmt: skip
        body += [
            text(left - 8, y + 12, fitted(name, 120), "t", "end", hint=name),
            box(left, y + 2, place(signal) - left, 12, "f-signal", hint=hint),
            box(place(signal), y + 2, place(exploration) - left, 12, "f-exploration", hint=hint),
            box(place(full) - 1.25, y - 0.5, 2.5, 17, "f-ink", hint=hint),
        ]
    return drawing(WIDTH, bottom + 40, "Class balance", body)


def weight_chart(rows: Sequence[tuple[str, Sequence[tuple[float, float]], float]]) -> str:
    """Return, for each arm, its weights' smallest to largest value with the quartiles, and the effective share.

    `rows` holds (arm, [(quantile, weight), ...] ascending, effective sample size / kept).
    """
    highest = max((points[-1][1] for _, points, _ in rows), default=0.0) or 1.0
    place = scale(0.0, highest * 1.06, LEFT + 8, RIGHT - 8)
    body, y = [], 0.0
    for name, points, share in rows:
        marks, y = _labels(name, f"effective size {percent(round(share, 3))} of kept", "b", y)
        middle = y + TRACK / 2 - 3
        low, high = points[0][1], points[-1][1]
        inner = [weight for quantile, weight in points if 0.25 <= quantile <= 0.75] or [low, high]
        start = place(min(inner)) - 2
        hint = ", ".join(f"{percent(quantile)}: {weight:.3g}" for quantile, weight in points)
        marks += [
            line(place(low), middle, place(high), middle, "interval s-arm"),
            box(start, middle - 6, place(max(inner)) - start + 2, 12, "bar", hint=hint, radius=2),
            dot(place(low), middle, 4, "f-arm", f"smallest weight {low:.4g}"),
            dot(place(high), middle, 4, "f-arm", f"largest weight {high:.4g}"),
        ]
        body += marks
        y += TRACK
    axis = x_axis(place, ticks(0.0, highest * 1.06), 4, y, "weight of an example in the loss")
    return drawing(WIDTH, y + 40, "Weights by arm", [*axis, *body])
