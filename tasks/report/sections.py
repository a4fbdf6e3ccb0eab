"""The page's sections about scores and selections: histograms with thresholds, class balance, weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tasks.report.charts import balance_chart, histogram_chart, weight_chart
from tasks.report.effects import OF_TOTALS, OF_WEIGHTS, effects_list, weight_effect
from tasks.report.inputs import ArmResult, PageInputs
from tasks.report.wording import percent

MOST_CLASSES = 20
NAMED_QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1.0}


def score_section(page: PageInputs) -> str:
    """Return a histogram for each score that an arm ranks by, with the thresholds of its selections."""
    if page.merge is None:
        return ""
    histograms: Mapping[str, Mapping[str, Any]] = page.merge.meta.get("histograms") or {}
    used = [name for name in histograms if any(arm.score == name for arm in page.arms)]
    cards = [_histogram_card(name, histograms[name], page) for name in used]
    if not cards:
        return ""
    return (
        "<section><h2>Scores and thresholds</h2><p>How the scores of the train split are spread, and where the signal "
        "of each selection ends. A line is the threshold of replicate 0.</p>"
        f'<div class="cards">{"".join(cards)}</div></section>'
    )


def _histogram_card(name: str, histogram: Mapping[str, Any], page: PageInputs) -> str:
    groups: dict[float, list[str]] = {}
    direction = (page.merge.meta.get("directions") or {}).get(name) if page.merge else None
    for arm in page.arms:
        if arm.score != name or not arm.selections:
            continue
        meta = arm.selections[0].meta
        direction = meta.get("direction") or direction
        if meta.get("threshold") is not None and meta.get("num_signal"):
            groups.setdefault(float(meta["threshold"]), []).append(f"{arm.name} at keep {percent(arm.keep)}")
    marks, key = [], []
    for number, value in enumerate(sorted(groups), 1):
        hint = f"{value:.4g}: {', '.join(groups[value])}"
        marks.append((value, str(number)))
        key.append(f"<li><b>{number}</b><span>{escape(hint)}</span></li>")
    kept = {"high": "The highest are kept as signal, right of the line.",
            "low": "The lowest are kept as signal, left of the line."}.get(str(direction), "")  # fmt: skip
    chart = histogram_chart(float(histogram["low"]), float(histogram["high"]), list(histogram["counts"]), marks, name)
    return (
        f'<div class="card"><h3>{escape(name)}</h3>{chart}<p class="caption">{kept}</p>'
        f'<ul class="key lines">{"".join(key)}</ul></div>'
    )


def balance_section(page: PageInputs, results: Mapping[str, Any]) -> str:
    """Return the class balance of each selection against the full data, a fold for each keep."""
    names = results["dataset"]["class_names"]
    folds = []
    keeps = sorted({arm.keep for arm in page.arms if arm.selections})
    for keep in keeps:
        found = [(arm, *balance_rows(arm, names)) for arm in page.arms if arm.keep == keep and arm.selections]
        shares = [max(row[1], row[2] + row[3]) for _, rows, _ in found for row in rows]
        cards = [
            f'<div class="card"><h3>{escape(arm.name)}</h3>{balance_chart(rows, max(shares))}'
            f"{f'<p class=caption>{escape(left_out)}</p>' if left_out else ''}</div>"
            for arm, rows, left_out in found
            if rows
        ]
        if cards:
            opened = " open" if keep == keeps[0] else ""
            folds.append(
                f"<details{opened}><summary>Keep {percent(keep)}</summary>"
                f'<div class="cards">{"".join(cards)}</div></details>'
            )
    if not folds:
        return ""
    key = (
        '<ul class="key"><li><i class="i-signal"></i>signal</li><li><i class="i-exploration"></i>exploration</li>'
        '<li><i class="i-ink"></i>share in the full data</li></ul>'
    )
    return (
        "<section><h2>Class balance</h2><p>Each class's share of the kept examples, against its share in the full "
        f"data; mean over replicates.</p>{key}{''.join(folds)}</section>"
    )


def balance_rows(arm: ArmResult, names: Sequence[str]) -> tuple[list[tuple[str, float, float, float]], str]:
    """Return (class, full, signal, exploration shares) rows, and what was left out where there are many classes."""
    metas = [seal.meta["class_counts"] for seal in arm.selections or () if seal.meta.get("class_counts")]
    if not metas:
        return [], ""

    def total(part: str) -> list[float]:
        return [float(sum(counts)) for counts in zip(*(meta[part] for meta in metas))]

    full, signal, exploration = total("full"), total("signal"), total("exploration")
    kept, whole = (sum(signal) + sum(exploration)) or 1.0, sum(full) or 1.0
    rows = [
        (str(name), f / whole, s / kept, e / kept) for name, f, s, e in zip(names, full, signal, exploration)
    ]
    if len(rows) <= MOST_CLASSES:
        return rows, ""
    by_gap = sorted(range(len(rows)), key=lambda i: rows[i][2] + rows[i][3] - rows[i][1])
    shown = sorted(by_gap[: MOST_CLASSES // 2] + by_gap[-MOST_CLASSES // 2 :])
    said = f"{MOST_CLASSES} of {len(rows)} classes: the half that lost and the half that gained the largest shares."
    return [rows[i] for i in shown], said


def weight_section(page: PageInputs) -> str:
    """Return the weights of each selection with the effective sample size and the design effects, and a reason for every dash."""
    cards, table = [], []
    for keep in sorted({arm.keep for arm in page.arms if arm.selections}):
        rows = []
        for arm in page.arms:
            if arm.keep != keep or not arm.selections:
                continue
            meta = arm.selections[0].meta
            points = quantile_points(meta.get("weight_quantiles"))
            share = float(meta["ess"]) / meta["num_kept"]
            if points:
                rows.append((arm.name, points, share))
            effect = "–" if meta.get("design_effect") is None else f"{meta['design_effect']:.3f}"
            table.append(
                f'<tr><th scope="row">{escape(arm.name)}</th><td>{percent(keep)}</td><td>{meta["num_signal"]:,}</td>'
                f"<td>{meta['num_exploration']:,}</td><td>{meta['ess']:,.0f}</td><td>{percent(round(share, 3))}</td>"
                f"<td>{weight_effect(meta):.3f}</td><td>{effect}</td><td>{meta['weight_sum']:,.1f}</td></tr>"
            )
        if rows:
            cards.append(f'<div class="card"><h3>Keep {percent(keep)}</h3>{weight_chart(rows)}</div>')
    if not table:
        return ""
    head = "".join(
        f'<th scope="col">{name}</th>'
        for name in ("arm", "keep", "signal", "exploration", "effective size", "of kept", OF_WEIGHTS, OF_TOTALS, "weight sum")
    )
    return (
        "<section><h2>Weights</h2><p>What an example counts in the training loss: the line runs from the smallest "
        "weight to the largest, the box holds the middle half. Replicate 0.</p>"
        f'<div class="cards">{"".join(cards)}</div><div class="scroll" tabindex="0">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(table)}</tbody></table></div>"
        f"{effects_list((arm.name, arm.selections[0].meta) for arm in page.arms if arm.selections)}</section>"
    )


def quantile_points(quantiles: Any) -> list[tuple[float, float]]:
    """Return (quantile in 0..1, weight) pairs, ascending, from {quantile: weight} or evenly spaced weights."""
    if not quantiles:
        return []
    if isinstance(quantiles, Mapping):
        return sorted((NAMED_QUANTILES[name] if name in NAMED_QUANTILES else float(name), float(weight))
                      for name, weight in quantiles.items())  # fmt: skip
    last = max(len(quantiles) - 1, 1)
    return [(number / last, float(weight)) for number, weight in enumerate(quantiles)]
