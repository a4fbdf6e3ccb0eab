"""What is in the SVG of a chart: marks by kind, and where they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree

Element = ElementTree.Element


def parse(svg: str | bytes) -> Element:
    """Return the root, its tags without the name space of a file that stands alone."""
    text = svg.decode() if isinstance(svg, bytes) else svg
    return ElementTree.fromstring(text.replace(' xmlns="http://www.w3.org/2000/svg"', ""))


def marks(root: Element, kind: str) -> list[Element]:
    """Return the marks of a kind (line, symbol, rule, rect, text), without those of axes and legends."""
    groups = (group for group in root.iter("g") if f"mark-{kind} role-mark" in group.get("class", ""))
    return [one for group in groups for one in group if one.tag != "g"]


def words(root: Element) -> list[str]:
    """Return all texts that are drawn, axes and legends included."""
    return ["".join(one.itertext()) for one in root.iter("text")]


def places(element: Element, x: float = 0.0, y: float = 0.0) -> Iterator[tuple[float, float]]:
    """Yield where marks and texts are, the shifts of their groups added."""
    for part in re.findall(r"translate\(([-\d.]+),([-\d.]+)\)", element.get("transform", "")):
        x, y = x + float(part[0]), y + float(part[1])
    if element.tag in ("text", "path", "line") and element.get("display") != "none":
        yield x, y
    for child in element:
        yield from places(child, x, y)


def corners(line: Element) -> list[tuple[float, float]]:
    """Return the points of a line mark."""
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([-\d.]+),([-\d.]+)", line.get("d", ""))]
