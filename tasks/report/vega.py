"""Altair charts as SVG without scripts: Vega draws them where the report is written, the page's style sheet colours them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import altair as alt
import vl_convert

from cluster.control_characters import show_controls, show_controls_in

WIDTH = 416
FONT = 12
# Widths of characters of a sans-serif face over its size, on the wide side so that nothing is cut: the mean of most, of
# capitals (0.72 in Helvetica's own table, and less), of the widest Latin ones, and of East Asian wide ones, which are square.
CHARACTER, CAPITAL, WIDEST, SQUARE = 0.56, 0.72, 0.94, 1.0

Rows = Sequence[Mapping[str, Any]]
Drawable = alt.Chart | alt.LayerChart | alt.FacetChart | alt.VConcatChart | alt.ConcatChart

SERIES_LIGHT = ("#0a5fb4", "#c4500a", "#12702f", "#8e3aa3", "#6b8e00", "#c2185b", "#007a85", "#5f4a3a")
SERIES_DARK = ("#6db3f8", "#ff9a5c", "#52c574", "#d79bf0", "#b5d34a", "#ff8fb5", "#4fd0d8", "#c9ab97")


def _series(colours: Sequence[str]) -> str:
    return "".join(f"--c{place}:{colour};" for place, colour in enumerate(colours))


SERIES_STYLE = f":root{{{_series(SERIES_LIGHT)}}}@media (prefers-color-scheme:dark){{:root{{{_series(SERIES_DARK)}}}}}"
"""Colours of arms beside those of style.py, var(--c0) and on."""

_ALONE = (
    ":root{--card:#fff;--ink:#1c2128;--soft:#57606a;--grid:#e3e7ec;--rule:#d5dae1;--random:#6b7280;--full:#8a5a00}"
    "@media (prefers-color-scheme:dark){:root{--card:#0f1318;--ink:#e6eaf0;--soft:#a2adba;--grid:#262e38;--rule:#323b46;"
    "--random:#a2adba;--full:#e0b254}}" + SERIES_STYLE
)
_FACE = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif"
_TEXT = {"labelColor": "var(--soft)", "titleColor": "var(--soft)", "labelFontSize": FONT, "titleFontSize": FONT,
         "titleFontWeight": "normal"}  # fmt: skip
_CONFIG: dict[str, Any] = {
    # A label for each mark would be most of the file; the chart as a whole has one, and the tables say the figures.
    "aria": False,
    "background": "transparent",
    "padding": {"left": 4, "right": 10, "top": 6, "bottom": 4},
    "font": _FACE,
    "view": {"stroke": None},
    "text": {"fontSize": FONT + 1, "fill": "var(--ink)"},
    "axis": {**_TEXT, "gridColor": "var(--grid)", "domain": False, "ticks": False, "labelPadding": 6},
    "legend": {**_TEXT, "labelColor": "var(--ink)", "titleColor": "var(--ink)", "orient": "bottom", "labelLimit": WIDTH,
               "symbolSize": 70, "symbolOpacity": 1, "symbolDash": []},
    "title": {"color": "var(--ink)", "subtitleColor": "var(--soft)", "fontSize": FONT + 2, "anchor": "start",
              "subtitleFontSize": FONT, "offset": 12},
    "concat": {"spacing": 26},
}  # fmt: skip


def table_of(rows: Rows) -> alt.Chart:
    """Return a chart of rows, without marks yet."""
    return alt.Chart(alt.InlineData(values=[dict(row) for row in rows]))


def named(field: str) -> alt.Color:
    """Return colours that the rows name themselves in a field: CSS, so that the page's style sheet decides."""
    return alt.Color(f"{field}:N", scale=None, legend=None)


def drawing(chart: Drawable, label: str) -> str:
    """Return a chart as an SVG element of the page: it scales down with its place; `label` is for those who cannot see it."""
    (width, height), body = _drawn(chart, {})
    style = f"max-width:{1.15 * width:.0f}px"
    title = f"<title>{escape(show_controls(label))}</title>"
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" style="{style}">{title}{body}</svg>'


def figure(chart: Drawable, label: str) -> str:
    """Return a chart as an SVG file that stands alone, for light and dark pages."""
    (width, height), body = _drawn(chart, {"background": "var(--card)", "padding": 16})
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
        f'role="img"><title>{escape(show_controls(label))}</title><style>{escape(_ALONE, quote=False)}</style>{body}</svg>\n'
    )


def _drawn(chart: Drawable, config: Mapping[str, Any]) -> tuple[tuple[float, float], str]:
    """Return the size of a chart, and what is inside its SVG element."""
    # A control character in a text ends vl-convert, and this process with it: no exception crosses from Rust.
    spec = show_controls_in({**chart.to_dict(), "config": {**_CONFIG, **config}})
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    text = vl_convert.vegalite_to_svg(spec, vl_version=version)
    found = re.match(r'<svg [^>]*viewBox="0 0 ([\d.]+) ([\d.]+)"[^>]*>(.*)</svg>$', text, re.S)
    assert found is not None, f"SVG of an unknown form: {text[:200]}"
    return (float(found[1]), float(found[2])), re.sub(r"<[^>]*>", _rounded, found[3])


def _rounded(tag: re.Match[str]) -> str:
    """Return a tag with coordinates to a hundredth of a pixel: half of a report is digits after that."""
    return re.sub(r"-?\d+\.\d{3,}(?:e-\d+)?", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), tag[0])


def width_of(words: str) -> float:
    """Return about how wide a text of a mark is, in pixels of the chart."""
    return sum(map(_width, words)) * (FONT + 1)


def _width(character: str) -> float:
    if unicodedata.east_asian_width(character) in "WF":
        return SQUARE
    if character in "MW@%mw—…":
        return WIDEST
    return CAPITAL if character.isupper() else CHARACTER


def fitted(words: str, width: float) -> str:
    """Return the text, control characters shown, its middle replaced by an ellipsis where it is wider than `width`."""
    words = show_controls(words)
    cut, left = words, len(words)
    while width_of(cut) > width and left > 4:
        left -= 1
        tail = (left - 1) // 3
        cut = f"{words[: left - 1 - tail]}…{words[len(words) - tail :]}"
    return cut


def padded(values: Sequence[float], share: float = 0.05) -> tuple[float, float]:
    """Return a range that holds the values with some air; never empty."""
    low, high = min(values), max(values)
    air = (high - low) * share or max(abs(high) * 0.01, 0.5)
    return low - air, high + air


def linear(domain: tuple[float, float]) -> alt.Scale:
    """Return a linear scale of this domain, as it is."""
    return alt.Scale(domain=list(domain), nice=False, zero=False)
