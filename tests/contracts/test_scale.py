"""The arithmetic of `benchmarks.scale`: known data give known exponents and intervals, known items a known least makespan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import linregress, t

from benchmarks.scale import known_lines, note
from benchmarks.scale_calls import Counted, counted_stores
from benchmarks.scale_fit import fit_power, greedy_bound, lower_bound
from benchmarks.scale_plan import Cluster, cpu_of, stages
from benchmarks.scale_tables import _slope, reads_a_megabyte, tables
from cluster.storage import Store

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
LINES = Path(__file__).parents[2] / "benchmarks" / "scale.jsonl"
DECADES = [10.0**power for power in np.arange(1, 4.5, 0.5)]


def test_every_line_of_the_tables_on_the_page_follows_from_what_was_measured() -> None:
    page = set(PAGE.read_text().splitlines())
    lines = [line for line in tables(known_lines(LINES)).splitlines() if line.startswith("|")]
    assert len(lines) > 80 and [line for line in lines if line not in page] == []


def test_an_exact_power_law_is_found_without_a_fixed_cost() -> None:
    fit = fit_power(DECADES, [3 * x**0.75 for x in DECADES])
    assert (fit.fixed, fit.scale, fit.exponent) == pytest.approx((0, 3, 0.75))
    assert fit.low == pytest.approx(0.75) == fit.high
    assert fit.at(10**6) == pytest.approx(3 * 10**4.5)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
def test_a_fixed_cost_is_told_from_the_growth(exponent: float) -> None:
    fit = fit_power(DECADES, [20 + 0.1 * x**exponent for x in DECADES])
    assert (fit.fixed, fit.scale, fit.exponent) == pytest.approx((20, 0.1, exponent), rel=1e-3)


@pytest.mark.parametrize("before", [0.9, 1.0, 1.05])
def test_a_last_point_that_alone_stands_out_is_no_steep_growth(before: float) -> None:
    y = [1.0, 1.1, 0.9, 1.05, 0.95, before, 1.9]
    fit, line = fit_power(DECADES, y), linregress(np.log(DECADES), np.log(y))
    assert (fit.fixed, fit.exponent) == (0, pytest.approx(line.slope)) and fit.high < 1


def test_without_a_fixed_cost_the_interval_is_that_of_the_regression() -> None:
    noise = np.random.default_rng(3).normal(0, 0.1, len(DECADES))
    y = 2 * np.array(DECADES) ** 1.1 * np.exp(noise)
    fit, line = fit_power(DECADES, y), linregress(np.log(DECADES), np.log(y))
    half = t.ppf(0.975, len(DECADES) - 2) * line.stderr
    assert fit.fixed == 0
    assert (fit.exponent, fit.low, fit.high) == pytest.approx((line.slope, line.slope - half, line.slope + half))


def test_the_interval_holds_the_exponent_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    x = np.repeat(DECADES, 2)
    held = 0
    for _ in range(100):
        fit = fit_power(x, (5 + 0.01 * x) * np.exp(generator.normal(0, 0.05, len(x))))
        held += fit.low <= 1.0 <= fit.high
    assert held >= 90


def test_what_does_not_grow_has_an_exponent_of_none() -> None:
    fit = fit_power(DECADES, [7.0, 7.1, 6.9, 7.0, 7.05, 6.95, 7.0])
    assert fit.low <= 0 <= fit.high


@pytest.mark.parametrize(("x", "y"), [([1, 1, 2], [1, 1, 2]), ([1, 2, 3], [1, 0, 2]), ([0, 1, 2], [1, 1, 1]), ([1, 2], [1, 2])])
def test_too_little_to_fit_is_refused(x: list[float], y: list[float]) -> None:
    with np.errstate(divide="ignore"), pytest.raises(ValueError, match="three different x"):
        fit_power(x, y)


def test_the_least_makespan_is_the_work_or_the_longest_item() -> None:
    assert lower_bound(80, 4, [(0, 8)]) == 10
    assert lower_bound(80, 40, [(0, 8)]) == 40
    # 8 slots for 4 s do 32 of 80, 6 do the rest.
    assert lower_bound(80, 4, [(0, 8), (4, 6)]) == 12
    assert lower_bound(80, 4, [(0, 8), (20, 1)]) == 10
    # All nodes are gone for a while.
    assert lower_bound(80, 4, [(0, 8), (5, 0), (9, 8)]) == 14
    assert greedy_bound(80, 4, 8) == 13.5
    with pytest.raises(ValueError, match="never finish"):
        lower_bound(80, 4, [(0, 8), (1, 0)])


def test_counts_are_straight_lines_of_the_shards() -> None:
    assert _slope([(10, 37), (30, 97), (100, 307)]) == (3, 7)


def test_a_counted_store_counts_every_call_and_changes_none(tmp_path: object) -> None:
    from collections import Counter

    count: Counter[str] = Counter()
    with counted_stores(count):
        store = Store(str(tmp_path))
        assert store.create("stages/a/1", b"four")
        assert not store.create("stages/a/1", b"more")
        assert store.read("stages/a/1") == b"four"
        assert store.list("stages") == ["stages/a/1"]
        assert not store.exists("stages/b")
        with store.open("stages/a/1") as file:
            file.seek(1)
            assert file.read() == b"our"
    assert count == {"create": 2, "bytes in": 8, "read": 1, "open": 1, "bytes out": 7, "list": 1, "exists": 1}
    assert not isinstance(Store(str(tmp_path)).objects, Counted)


def line(part: str, place: dict[str, Any], cpu: float, reads: int = 0, writes: int = 0, **found: Any) -> dict[str, Any]:
    """Return a measurement whose stages all cost and ask the same."""
    shards = place.get("shards", 1)
    each = {"cpu": cpu, "peak_mib": 1.0, "get_object": reads, "put_object": writes, "bytes in": 0, "bytes out": 0}
    stages_ = ("shard", "proxy", "score", "merge", "select", "subset", "train")
    seals = {stage: [shards, 100 * shards] for stage in stages_}
    return {"part": part, "place": place, "repeat": 0, "found": {**dict.fromkeys(stages_, each), "seals": seals, **found}}


@pytest.fixture
def lines() -> list[dict[str, Any]]:
    """Give measurements of stages of 1e-6 s a row, 1e-3 a shard, 1e-9 a feature beyond 8 and 1e-8 a proxy beyond the first."""
    base = {"rows": 10**5, "shards": 10, "proxies": 1, "classes": 10, "features": 8}
    out = [line("rows", {**base, "rows": rows}, 1e-6 * rows) for rows in (10**4, 10**5, 10**6)]
    out += [line("shards", {**base, "shards": shards}, 1e-3 * shards) for shards in (10, 100, 1000)]
    out += [line("proxies", {**base, "proxies": count}, 0.1 + 1e-8 * 10**5 * (count - 1)) for count in (1, 2, 4)]
    out += [line("features", {**base, "features": width}, 0.1 + 1e-9 * 10**5 * (width - 8)) for width in (8, 768)]
    out += [line("s3", {**base, "shards": shards}, 0.0, 5 * shards + 2, shards + 1) for shards in (5, 10)]
    out += [line("s3_wide", {**base, "rows": rows, "features": 768}, 0.0, rows // 1000) for rows in (10**4, 2 * 10**4)]
    return [*out, {"part": "pool", "place": {"items": 100}, "found": {"makespan": 1.0}}]


def test_the_plan_adds_up_rows_shards_features_and_proxies(lines: list[dict[str, Any]]) -> None:
    there = Cluster(examples=1e9, shard_rows=10**5, proxies=3, features=768)
    # 10 reads more for 10,000 rows of 3,072 bytes.
    assert reads_a_megabyte(lines)["score"] == pytest.approx(10 / 30.72)
    cost, low, high = cpu_of(lines, "score", there)
    assert cost == pytest.approx(1e9 * (1e-6 + 760e-9 + 2e-8) + 1e-3 * 10**4)
    assert low == pytest.approx(cost) == high
    score = next(row for row in stages(lines, there).splitlines() if row.startswith("| score"))
    reads = 5 * 10**4 + 2 + 10 / 30.72 * 4e-6 * 768 * 1e9
    assert [cell.strip() for cell in score.split("|")][2:4] == [f"{reads:,.0f}", "10,001"]


def test_lines_of_another_commit_are_no_part_of_a_measurement(tmp_path: Path) -> None:
    out = tmp_path / "scale.jsonl"
    first = note(out, "wait", {"in flight": 1}, 0, lambda: {"seconds": 1.0})
    assert note(out, "wait", {"in flight": 1}, 0, lambda: {"seconds": 2.0}) == first
    out.write_text(out.read_text().replace(first["commit"], "elsewhere"))
    with pytest.raises(ValueError, match="figures of elsewhere"):
        note(out, "wait", {"in flight": 2}, 0, lambda: {"seconds": 2.0})
