"""Accuracy against the share kept: a curve an arm, where score-based pruning collapses and what repairs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from tasks.report.svg import drawing, element, fitted, line, number, scale, text, title, width_of
from tasks.report.wording import count, percent, with_margin

FIGURE = "curves.svg"
WIDTH, WIDE = 440.0, 760.0
MOST_ARMS = 8
"""Beside random and the full data in one panel: as many as there are colours."""
ROW = 19.0
# Errors, in %, at which accuracies are marked.
_ERRORS = tuple(factor * 10.0**power for power in (1, 0, -1, -2) for factor in (10, 5, 2))
_LIGHT = ("#0a5fb4", "#c4500a", "#12702f", "#8e3aa3", "#8a6a00", "#c2185b", "#007a85", "#5f4a3a")
_DARK = ("#6db3f8", "#ff9a5c", "#52c574", "#d79bf0", "#e0b254", "#ff8fb5", "#4fd0d8", "#c9ab97")


def _series(colours: Sequence[str]) -> str:
    return "".join(f".c{i}{{stroke:{colour}}}.m{i}{{fill:{colour}}}" for i, colour in enumerate(colours))


CURVE_STYLE = (
    ".curve{fill:none;stroke-width:1.8;stroke-linejoin:round}.curve.dashed{stroke-dasharray:7 4}"
    ".bars{stroke-width:1.6;opacity:.8}.c-random{stroke:var(--random)}.m-random{fill:var(--random)}.c-full{stroke:var(--full)}.m-full{fill:var(--full)}"
    f"{_series(_LIGHT)}@media (prefers-color-scheme:dark){{{_series(_DARK)}}}"
)
"""Beside the colours of style.py's :root."""

_ALONE = (
    ":root{--card:#fff;--ink:#1c2128;--soft:#57606a;--grid:#e3e7ec;--rule:#d5dae1;--random:#6b7280;--full:#8a5a00}"
    "@media (prefers-color-scheme:dark){:root{--card:#0f1318;--ink:#e6eaf0;--soft:#a2adba;--grid:#262e38;--rule:#323b46;"
    "--random:#a2adba;--full:#e0b254}}"
    'text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif}text.m{font-size:12px}'
    "text.h{font-size:14px;font-weight:600}.t,.h{fill:var(--ink)}.m{fill:var(--soft)}line.grid{stroke:var(--grid)}"
    ".paper{fill:var(--card);stroke:var(--rule)}"
)

Arm = Mapping[str, Any]
Curve = tuple[str, str, list[Arm]]
"""Name, class of colour, and the arm at its keeps, ascending."""


def curve_section(results: Mapping[str, Any]) -> str:
    """Return the report's section of curves; empty where there is one keep only."""
    panels = panels_of(results)
    if not panels:
        return ""
    cards = "".join(
        f'<div class="card"><h3>{escape(name)}</h3>{drawing(WIDTH, height, _label(curves), body)}</div>'
        for name, curves in panels
        for body, height in [_panel(curves, results, WIDTH)]
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
    body, y = [], 34.0
    for name, curves in panels:
        if len(panels) > 1:
            body.append(text(16, y + 14, name, "t"))
            y += 22
        content, height = _panel(curves, results, WIDE - 32)
        body.append(element("g", "".join(content), transform=f"translate(16 {number(y)})"))
        y += height
    said = f"Test accuracy against the share kept: mean and 95 % interval of {_replicates(results)}"
    paper = element("rect", x=0.5, y=0.5, width=WIDE - 1, height=y + 7, rx=8, class_="paper")
    style = element("style", escape(_ALONE + CURVE_STYLE, quote=False))
    parts = [style, title(said), paper, text(16, 26, fitted(said, WIDE, 14), "h"), *body]
    root = element(
        "svg", "".join(parts), xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {number(WIDE)} {number(y + 8)}",
        width=WIDE, height=y + 8, role="img",
    )  # fmt: skip
    # XML has no control characters, and the name of an arm may.
    return f"{root.translate(dict.fromkeys(range(32)))}\n".encode()


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
            panels.append((said, [*always, *((name, str(i), arms[name]) for i, name in enumerate(some))]))
    return panels


def _panel(curves: Sequence[Curve], results: Mapping[str, Any], width: float) -> tuple[list[str], float]:
    """Return the elements of one panel and its height."""
    left, right, top, bottom = 34.0, width - 8, 30.0, width * 0.56
    keeps = sorted({float(arm["keep"]) for _, _, arms in curves for arm in arms})
    x = scale(math.log(keeps[0]), math.log(keeps[-1]), left + 26, right - 26)
    every = [value for _, _, arms in curves for arm in arms for value in (arm["mean"], *(arm["ci95"] or ()))]
    y, marks = accuracy_axis(every, int(results["dataset"]["n_test"]), bottom, top)
    body = [text(0, 14, "test accuracy, %, spaced by the logarithm of the error", "m")]
    for value, label in marks:
        body += [line(left, y(value), right, y(value), "grid"), text(left - 6, y(value) + 4, label, "m", "end")]
    last = -100.0
    for keep in keeps:
        place = x(math.log(keep))
        body.append(line(place, top, place, bottom, "grid"))
        said = percent(keep)
        # Keeps closer than their labels: the line alone.
        if place - last > width_of(said):
            body.append(text(place, bottom + 16, said, "m", "middle"))
            last = place
    said = f"share of the {count(results['dataset']['n_train'])} train examples that is kept (log scale)"
    body.append(text((left + right) / 2, bottom + 33, said, "m", "middle"))
    step = min(5.0, 26.0 / len(curves))
    for order, (name, colour, arms) in enumerate(curves):
        shift = (order - (len(curves) - 1) / 2) * step
        body += _curve(name, colour, order, [(x(math.log(arm["keep"])) + shift, arm) for arm in arms], y)
    key, height = legend([(name, colour) for name, colour, _ in curves], width, bottom + 50)
    return [*body, *key], height


def legend(entries: Sequence[tuple[str, str]], width: float, top: float) -> tuple[list[str], float]:
    """Return names beside samples of their lines, of (name, colour) in the order of their marks, and where they end."""
    columns = max(1, int(width // max(width_of(name) + 44 for name, _ in entries)))
    body: list[str] = []
    for order, (name, colour) in enumerate(entries):
        spot, line_y = (order % columns) * width / columns, top + 6 + (order // columns) * ROW
        said = fitted(name, width / columns - 36)
        body += [*_sample(colour, order, spot, line_y - 4.5), text(spot + 32, line_y, said, hint=name)]
    return body, top + -(-len(entries) // columns) * ROW


def accuracy_axis(
    every: Sequence[float], tested: int, bottom: float, top: float
) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    """Return where an accuracy in percent is drawn, of these or between them, and (accuracy, label) marks.

    Spaced by the logarithm of the error on `tested` examples.
    """
    # Half a test example: an arm without an error has a place too.
    least = 50.0 / max(tested, 1)

    def error(accuracy: float) -> float:
        return -math.log10(max(100.0 - accuracy, least))

    low, high = error(max(min(every), 0.0)), error(max(every))
    air = max((high - low) * 0.05, 0.02)
    low, high = max(low - air, -2.0), high + air
    place = scale(low, high, bottom, top)
    marked = [100.0 - value for value in _ERRORS if low <= -math.log10(value) <= high]
    return lambda value: place(min(max(error(value), low), high)), [(value, f"{value:.4g}") for value in marked]


def _curve(
    name: str, colour: str, order: int, points: Sequence[tuple[float, Arm]], y: Callable[[float], float]
) -> list[str]:
    spots = [(place, y(arm["mean"])) for place, arm in points]
    path = " ".join(f"{number(a)},{number(b)}" for a, b in spots)
    out = [element("polyline", points=path, class_=curve_class(colour))]
    for (place, middle), (_, arm) in zip(spots, points):
        if arm["ci95"] is not None:
            out.append(line(place, y(arm["ci95"][0]), place, y(arm["ci95"][1]), f"bars c{colour_name(colour)}"))
        hint = f"{name} at keep {percent(arm['keep'])}: {with_margin(arm['mean'], arm['ci95'])} %"
        out.append(mark(order, place, middle, f"m{colour_name(colour)}", hint))
    return out


def _sample(colour: str, order: int, x: float, y: float) -> list[str]:
    ends = f"{number(x)},{number(y)} {number(x + 26)},{number(y)}"
    rule = element("polyline", points=ends, class_=curve_class(colour))
    return [rule, mark(order, x + 13, y, f"m{colour_name(colour)}", "")]


def colour_name(colour: str) -> str:
    """Return the end of a class of CURVE_STYLE: c<name> colours a line, m<name> a mark."""
    return colour if colour.isdigit() else f"-{colour}"


def curve_class(colour: str) -> str:
    """Return the class of a curve: random's and the full data's are dashed."""
    return f"curve {'' if colour.isdigit() else 'dashed '}c{colour_name(colour)}"


def mark(order: int, x: float, y: float, class_: str, hint: str) -> str:
    """Return a mark whose shape tells arms apart where colours do not."""
    r = 4.2
    shapes = (
        [(-r, -r), (r, -r), (r, r), (-r, r)],
        [(0, -1.35 * r), (1.2 * r, r), (-1.2 * r, r)],
        [(0, -1.4 * r), (1.4 * r, 0), (0, 1.4 * r), (-1.4 * r, 0)],
        [(0, 1.35 * r), (1.2 * r, -r), (-1.2 * r, -r)],
        [(-1.5 * r, -0.55 * r), (1.5 * r, -0.55 * r), (1.5 * r, 0.55 * r), (-1.5 * r, 0.55 * r)],
        [(-0.55 * r, -1.5 * r), (0.55 * r, -1.5 * r), (0.55 * r, 1.5 * r), (-0.55 * r, 1.5 * r)],
    )
    order %= len(shapes) + 1
    if order == 0:
        return element("circle", title(hint), cx=x, cy=y, r=r, class_=class_)
    corners = " ".join(f"{number(x + a)},{number(y + b)}" for a, b in shapes[order - 1])
    return element("polygon", title(hint), points=corners, class_=class_)


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
