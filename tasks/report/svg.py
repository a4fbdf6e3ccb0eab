"""SVG by hand: elements, round tick marks, axes. Every text is escaped here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

FONT = 13.0
# Mean width of a character of a sans-serif face over its size, on the wide side so that nothing is cut.
CHARACTER = 0.56


def number(value: float) -> str:
    """Return a coordinate with at most two digits."""
    return f"{value:.2f}".rstrip("0").rstrip(".") or "0"


def element(name: str, content: str = "", /, **attributes: str | float) -> str:
    """Return an element; `content` is markup already, attribute values are escaped. `class_` spells class."""
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value) if isinstance(value, str) else number(value)}"'
        for key, value in attributes.items()
    )
    return f"<{name}{said}>{content}</{name}>"


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    """Return a line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def box(
    x: float, y: float, width: float, height: float, class_: str, *, hint: str = "", radius: float = 0
) -> str:
    """Return a rectangle, with a hint on hover."""
    width, height = max(width, 0.0), max(height, 0.0)
    return element("rect", title(hint), x=x, y=y, width=width, height=height, rx=radius, class_=class_)


def dot(x: float, y: float, radius: float, class_: str, hint: str = "") -> str:
    """Return a circle, with a hint on hover."""
    return element("circle", title(hint), cx=x, cy=y, r=radius, class_=class_)


def title(hint: str) -> str:
    """Return the element that browsers show on hover, or nothing."""
    return element("title", escape(hint)) if hint else ""


def text(x: float, y: float, words: str, class_: str = "t", anchor: str = "start", *, hint: str = "") -> str:
    """Return a line of text; `words` is escaped."""
    return element("text", escape(words) + title(hint), x=x, y=y, class_=class_, text_anchor=anchor)


def width_of(words: str, size: float = FONT) -> float:
    """Return about how wide a text is, in the units of the drawing."""
    return len(words) * size * CHARACTER


def fitted(words: str, width: float, size: float = FONT) -> str:
    """Return the text, its middle replaced by an ellipsis where it is wider than `width`."""
    most = max(int(width / (size * CHARACTER)), 4)
    if len(words) <= most:
        return words
    tail = (most - 1) // 3
    return f"{words[: most - 1 - tail]}…{words[len(words) - tail :]}"


def drawing(width: float, height: float, label: str, content: Sequence[str]) -> str:
    """Return an SVG that scales down with its place, never up, described by `label` to those who cannot see it."""
    return element(
        "svg", element("title", escape(label)) + "".join(content),
        viewBox=f"0 0 {number(width)} {number(height)}", role="img", style=f"max-width:{number(width * 1.15)}px",
    )  # fmt: skip


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return at most `most` round numbers in [low, high], evenly spaced by 1, 2 or 5 times a power of ten."""
    span = high - low
    if span <= 0:
        return [low]
    step = 10.0 ** math.floor(math.log10(span / most))
    for factor in (1, 2, 5, 10, 20):
        first, last = math.ceil(low / (step * factor) - 1e-9), math.floor(high / (step * factor) + 1e-9)
        if last - first + 1 <= most:
            return [round(i * step * factor, 12) + 0.0 for i in range(first, last + 1)]
    return [low, high]


def tick_labels(values: Sequence[float], *, sign: bool = False) -> list[str]:
    """Return the values with as many digits as tell them apart."""
    gap = abs(values[1] - values[0]) if len(values) > 1 else 1.0
    digits = max(0, -math.floor(math.log10(gap) + 1e-9)) if gap else 0
    labels = [f"{value:,.{digits}f}" for value in values]
    return [f"+{label}" if sign and value > 0 else label.replace("-", "−") for label, value in zip(labels, values)]


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """Return a range that holds the values with some air; never empty."""
    low, high = min(values), max(values)
    air = (high - low) * share or max(abs(high) * 0.01, 0.5)
    return low - air, high + air


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Return the linear map of [low, high] onto [start, end]."""
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def x_axis(
    place: Callable[[float], float], values: Sequence[float], top: float, bottom: float, name: str, *,
    sign: bool = False, labels: Sequence[str] | None = None,
) -> list[str]:
    """Return grid lines from `top` to `bottom`, tick labels under them, and the axis name under those (34 units)."""
    out = []
    for value, label in zip(values, labels or tick_labels(values, sign=sign)):
        x = place(value)
        out += [line(x, top, x, bottom, "grid"), text(x, bottom + 15, label, "m", "middle")]
    middle = (place(values[0]) + place(values[-1])) / 2 if len(values) > 1 else place(values[0])
    return [*out, text(middle, bottom + 32, name, "m", "middle")]
