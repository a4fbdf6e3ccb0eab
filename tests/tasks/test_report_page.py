"""index.html and the terminal: self-contained, escaped, whole, and honest at every size."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.storage import Store
from tasks.report import charts
from tasks.report.inputs import ArmResult, PageInputs, StageTiming
from tasks.report.page import render_page
from tasks.report.results import build_results
from tasks.report.sections import balance_rows, quantile_points
from tasks.report.terminal import print_results
from tasks.report.vega import fitted
from tests.tasks import report_case as case
from tests.tasks.drawn import parse, places
from tests.tasks.drawn import words as words_of

EVIL = "<script>alert(1)</script>\"'&[red]"
VOID = {"meta", "br", "img", "link"}


class Reader(HTMLParser):
    """Check that tags nest, and keep what was read."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[ArmResult]]:
    store = Store(str(tmp_path_factory.mktemp("store")))
    arms = case.sweep(store, long_names=True)
    return build_results("mnist-abc", case.index_seal(limit=60000), arms, 0.5, store), arms


def evil_page(tmp_path: Path) -> tuple[str, dict[str, Any]]:
    store = Store(str(tmp_path))
    arms = [
        case.arm(store, "random", "random", 0.1, [90, 90.4, 89.8, 90.1, 90.2]),
        case.arm(store, EVIL, "exact", 0.1, [91, 91.2, 90.8, 91.3, 91.1], alpha=0.5, score="el2n"),
    ]
    index = case.index_seal()
    names = [EVIL, *index.meta["class_names"][1:]]
    index = type(index)(index.stage, index.key, index.parts, {**index.meta, "class_names": names})
    results = build_results(EVIL, index, arms, 0.5, store)
    shown = case.page_inputs(arms)
    page = PageInputs(
        arms, shown.merge, [StageTiming(EVIL, 1.0, True, 1)], {EVIL: EVIL, "end": "</pre><img src=x>"}, {EVIL: EVIL}
    )
    return render_page(results, page), results


def test_names_are_escaped_everywhere(tmp_path: Path) -> None:
    html, _ = evil_page(tmp_path)
    reader = read(html)
    assert not {"script", "img", "iframe", "link", "object"} & {tag for tag, _ in reader.tags}
    assert "<script" not in html
    text = "".join(reader.words)
    assert text.count("<script>alert(1)</script>") >= 6


def test_page_needs_no_network_and_no_script(big: tuple[dict[str, Any], list[ArmResult]]) -> None:
    results, arms = big
    html = render_page(results, case.page_inputs(arms))
    assert not re.search(r"https?:|//[a-z]|url\(|@import|@font-face", html)
    for tag, attributes in read(html).tags:
        assert tag not in ("script", "link", "img", "iframe")
        assert not {"src", "href", "xlink:href", "srcset", "data", "action"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)


def test_page_shows_what_was_asked(big: tuple[dict[str, Any], list[ArmResult]]) -> None:
    results, arms = big
    html = render_page(results, case.page_inputs(arms))
    text = " ".join(" ".join(read(html).words).split())
    assert results["headline"] in text
    assert "data.limit = 60,000" in text
    for entry in results["keeps"]:
        assert entry["sentence"] in text and entry["adjustment"] in text
    for words in ("last step", "design effect", "effective sample size", "signal", "exploration", "proxy", "torch",
                  "undecided", "equivalent", "84 s", "non-inferior", "not shown", "its difference"):  # fmt: skip
        assert words in text
    # One of all keeps, accuracy and forest a keep, one histogram, a balance for each of 15 arms, weights a keep, time.
    assert html.count("<svg") == 1 + 3 * 2 + 1 + 15 + 3 + 1
    assert html == render_page(results, case.page_inputs(arms))


def test_page_of_results_alone_and_of_one_replicate(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    arms = [
        case.arm(store, "random", "random", 0.1, [90]),
        case.arm(store, "top", "topk", 0.1, [91], score="el2n"),
    ]
    results = build_results("r", case.index_seal(), arms, 0.0, store)
    text = " ".join(read(render_page(results)).words)
    assert "No verdict yet" in text and "no interval" in text
    assert not re.search(r"\bnan\b", text.lower())


def test_drawings_are_whole_and_inside_their_box(big: tuple[dict[str, Any], list[ArmResult]]) -> None:
    results, arms = big
    html = render_page(results, case.page_inputs(arms))
    found = re.findall(r'<svg viewBox="0 0 ([\d.]+) ([\d.]+)".*?</svg>', html, re.S)
    assert len(found) == html.count("<svg")
    for drawn in re.finditer(r'<svg viewBox="0 0 ([\d.]+) ([\d.]+)".*?</svg>', html, re.S):
        assert "NaN" not in drawn[0] and "Infinity" not in drawn[0] and "<title>" in drawn[0]
        for x, y in places(parse(drawn[0])):
            assert -1 <= x <= float(drawn[1]) + 1 and -1 <= y <= float(drawn[2]) + 1, drawn[0][:200]
    assert not re.search(r' id="| clip-path="', html), "ids of two drawings would be one"


def test_many_classes_are_cut_to_the_extremes_and_said(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    arm = case.arm(store, "top", "topk", 0.1, [90], score="el2n")
    picks = [case.select_seal("top", 0, "topk", 0.1, None, classes=100)]
    arm = ArmResult(arm.name, arm.score, arm.protocol, arm.keep, None, None, picks, arm.trains)
    rows, left_out = balance_rows(arm, [f"c{k}" for k in range(100)])
    assert [row[0] for row in rows] == [f"c{k}" for k in (*range(10), *range(90, 100))]
    assert left_out.startswith("20 of 100 classes")


@pytest.mark.parametrize("name", ["\a\0", "\ud800\uffff", "a\nb", "", "\u2028", '"\'\\', "\\u0007", "x" * 5000])
def test_any_name_is_drawn(name: str) -> None:
    drawn = [
        charts.balance_chart([(name, 0.5, 0.1, 0.2), ("other", 0.5, 0.3, 0.3)], 0.6),
        charts.weight_chart([(name, [(0.0, 1.0), (1.0, 2.0)], 0.5)]),
        charts.histogram_chart(0.0, 1.0, [1, 2], [(0.5, "1")], name),
        charts.time_chart([StageTiming(name, 1.0, True, 1), StageTiming("other", 2.0, False, 2)]),
    ]
    for one in drawn:
        assert len(words_of(parse(one))) > 2


def test_histograms_of_nothing_of_one_value_and_of_steep_counts() -> None:
    for counts in ([0] * 64, [5] + [0] * 63, [10**6, *[3] * 63]):
        drawn = charts.histogram_chart(0.0, 0.0 if counts[1] == 0 else 1.0, counts, [(0.5, "1")], "el2n")
        read(drawn)
        assert "nan" not in drawn.lower()
        assert ("log scale" in drawn) == (counts[1] == 3)


def test_weight_quantiles_in_either_form() -> None:
    assert quantile_points({"0.5": 1, "0": 0.5, "1": 2}) == [(0.0, 0.5), (0.5, 1.0), (1.0, 2.0)]
    assert quantile_points({"max": 2, "min": 0.5, "q75": 1}) == [(0.0, 0.5), (0.75, 1.0), (1.0, 2.0)]
    assert quantile_points([0.5, 1, 2]) == [(0.0, 0.5), (0.5, 1.0), (1.0, 2.0)]
    assert quantile_points(None) == []


def test_long_names_lose_their_middle() -> None:
    assert fitted("short", 100) == "short"
    cut = fitted("a" * 50 + "b" * 50, 200)
    assert cut.startswith("aaa") and cut.endswith("bbb") and "…" in cut and len(cut) < 40
    # What is wide takes fewer characters of the same room.
    assert len(fitted("漢" * 100, 200)) < len(fitted("W" * 100, 200)) < len(fitted("A" * 100, 200)) < len(cut)


@pytest.mark.parametrize("width", [80, 110, 160])
def test_terminal_shows_every_arm_uncut(big: tuple[dict[str, Any], list[ArmResult]], width: int) -> None:
    results, _ = big
    console = Console(file=StringIO(), width=width, color_system=None)
    print_results(results, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(len(line) for line in said.splitlines()) <= width
    assert "…" not in said
    for row in results["comparisons"]:
        assert f"{row['mean_difference']:+.2f}" in said
        assert row["verdict"] in said
    for words in ("keep 1 %", "keep 10 %", "data.limit = 60,000", "last step"):
        assert words in " ".join(said.split())


def test_terminal_takes_names_as_text_not_as_markup(tmp_path: Path) -> None:
    _, results = evil_page(tmp_path)
    console = Console(file=StringIO(), width=160, color_system=None)
    print_results(results, console)
    assert "[red]" in console.file.getvalue()  # type: ignore[attr-defined]


def test_printing_results_imports_nothing_heavy() -> None:
    code = (
        "import sys, flows.execute, tasks.report.terminal\n"
        "print([name for name in ('altair', 'vl_convert', 'numpy', 'pyarrow', 'torch', 'scipy', 'ray') if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout.strip() == "[]"
