"""The page's section about distribution shift: what each selection changes, known before any training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

import altair as alt

from tasks.report.effects import OF_TOTALS, OF_WEIGHTS, no_totals_reason, weight_caveat, weight_effect
from tasks.report.inputs import PageInputs, ShiftResult
from tasks.report.vega import WIDTH, drawing, linear, table_of
from tasks.report.wording import count, percent, signed

HEIGHT = 266
LEVELS = 5

SHIFT_STYLE = (
    ".key .i-round{width:9px;height:9px;border-radius:5px;background:var(--signal)}"
    ".key .i-square{width:9px;height:9px;border-radius:0;background:var(--exploration)}"
    ".shift th,.shift td{padding:.45rem .5rem}.shift thead th{white-space:normal;min-width:4.6rem}"
    ".shift th:first-child{min-width:min(11rem,40vw)}.i-dense{background:var(--soft);opacity:.4}"
)
"""Beside the colours of style.py's :root."""

HEADERS = (
    "arm", "told apart (AUC)", "energy, %", "ignored regions, %", "data in them, %", "classes moved, %", "score moved, %",
    "signal and rest, %", "in theory, %", "effective size, %", OF_WEIGHTS, OF_TOTALS,
)  # fmt: skip

FEATURE_FACTS = ("features", "sample", "values", "of_values", "components", "explained", "scale", "cells", "pairs")

LEAD = (
    "How far the examples of each selection are from the whole train split, known before any training. Each figure is of the "
    "kept examples as they are and, after an arrow, of the same examples by their weights, where these differ. What random "
    "shows at the same keep is chance: hold the others against that row. Of arms that draw anew every epoch it is the first one."
)


def shift_record(shift: ShiftResult) -> dict[str, Any]:
    """Return `shift` of results.json: what the comparison rests on, and a row for each arm and keep that was measured."""
    features = shift.features.meta
    rows = []
    for arm in shift.arms:
        figures, selection = arm.figures.meta, arm.selection.meta
        named = {name: value for name, value in figures.items() if name not in ("points", "cells")}
        own = {name: selection.get(name) for name in ("ess", "design_effect", "weight_quantiles")}
        effects = {
            "weight_design_effect": weight_effect(selection), "weight_caveat": weight_caveat(selection),
            "no_design_effect": no_totals_reason(selection),
        }  # fmt: skip
        rows.append({"arm": arm.name, "keep": arm.keep, **named, **own, **effects})
    return {
        "replicate": 0,
        **{name: features[name] for name in FEATURE_FACTS},
        "arms": rows,
    }


def shift_section(results: Mapping[str, Any], page: PageInputs) -> str:
    """Return the table of figures and the projection of every arm, a fold for each keep; nothing where none was measured."""
    found = results.get("shift")
    if not found or not found["arms"] or page.shift is None:
        return ""
    keeps = sorted({row["keep"] for row in found["arms"]})
    density = page.shift.features.meta["density"]
    points = {(arm.name, arm.keep): arm.figures.meta["points"] for arm in page.shift.arms}
    folds = []
    for keep in keeps:
        rows = [row for row in found["arms"] if row["keep"] == keep]
        cards = "".join(
            f'<div class="card"><h3>{escape(row["arm"])}</h3>'
            f"{projection_chart(density, points[row['arm'], keep], row['arm'])}</div>"
            for row in rows
        )
        opened = " open" if keep == keeps[0] else ""
        folds.append(
            f"<details{opened}><summary>Keep {percent(keep)}: {count(rows[0]['num_kept'])} examples</summary>{_table(rows)}"
            f'<div class="cards">{cards}</div></details>'
        )
    key = (
        '<ul class="key"><li><i class="i-round"></i>kept as signal</li><li><i class="i-square"></i>kept as exploration</li>'
        '<li><i class="i-dense"></i>the train split, stronger where it is denser</li></ul>'
    )
    meaning = "".join(f"<dt>{escape(word)}</dt><dd>{escape(said)}</dd>" for word, said in meanings(found).items())
    return (
        f"<section><h2>What each selection changes</h2><p>{escape(LEAD)}</p>{key}{''.join(folds)}"
        f"<details><summary>What these figures mean</summary><dl>{meaning}</dl></details></section>"
    )


def meanings(found: Mapping[str, Any]) -> dict[str, str]:
    """Return what each figure says, in words for a reader who does not know it, with the numbers it rests on."""
    scores = sorted({row["score"] for row in found["arms"]})
    bins = max(row["bins"] for row in found["arms"])
    most = max(row["num_compared"] for row in found["arms"])
    what = "the inputs as they are stored" if found["features"] == "inputs" else "what goes into the first proxy's last layer"
    of_all = "" if found["values"] == found["of_values"] else f" of {found['of_values']:,}, evenly spaced"
    return {
        "told apart (AUC)": "A classifier is shown kept examples and examples of the train split, and is asked which is which: "
        "0.5 means that it cannot tell them apart, 1 that it always can. Below 0.5 is chance. Logistic regression on the "
        "coordinates and their squares, cross-validated in five folds; a copy in both kinds is never tested on itself.",
        "energy": "The energy distance in % (the coefficient of Szekely & Rizzo): 0 for the same distribution, towards 100 "
        "for one far away. A random draw is 0 on average, and may fall slightly below.",
        "classes moved, score moved": "The share of the kept mass that would have to move to another class, or to another of "
        f"{bins} equally full bins of the score ({', '.join(scores)}), to look like the train split: total variation.",
        "signal and rest, in theory": "The same with two cells, the top of the ranking and the rest, and what follows for them "
        "from the design alone: alpha (1 - keep) without weights, 0 with unbiased ones. A dash where no formula exists.",
        "ignored regions, data in them": f"The {found['cells']} cells of k-means that the train split falls into: the share of "
        "them without any of the kept examples that are looked at, and the share of the data that lies there. The source paper "
        "shows that top-k never sees whole regions.",
        "effective size": "How many equally weighted examples the kept ones are worth, as a share of them (Kish).",
        OF_WEIGHTS: "Kish's, n sum w^2 / (sum w)^2 over the n kept: by how much unequal weights alone raise the variance of a "
        "mean. Where weights are equal it is 1 whatever was kept, and cannot tell a fair draw from one that leaves regions out.",
        OF_TOTALS: "The mean squared error of estimated class totals against that of a random draw of the same size. A dash "
        "where no such error exists or can be stated; the list under the table of weights says why, arm by arm.",
        "what it rests on": "Replicate 0 of each arm, and its first epoch where each draws anew; a hash sample of "
        f"{found['sample']:,} train examples, the same for all arms, and at most {most:,} kept ones; "
        f"{found['components']} principal components of {what} "
        f"({found['values']:,} values{of_all}), with {percent(round(found['explained'], 3))} of their variance; energy from at "
        f"most {found['pairs']:,} of either. "
        "These are sizes of effects, no tests. A shift is not harm by itself: only the trained comparison decides.",
    }


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in HEADERS)
    body = []
    for row in rows:
        cells = [
            _pair(row, "auc", lambda value: f"{value:.3f}"),
            _pair(row, "energy", lambda value: signed(100 * value).lstrip("+")),
            _share(row["empty_share"]),
            _share(row["empty_mass"]),
            *(_pair(row, name, _share) for name in ("class_tv", "score_tv", "partition_tv", "closed_form")),
            _share(row["ess"] / row["num_kept"]),
            f"{row['weight_design_effect']:.3f}",
            "–" if row["design_effect"] is None else f"{row['design_effect']:.3f}",
        ]
        said = "".join(f"<td>{cell.replace('-', '−')}</td>" for cell in cells)
        body.append(f'<tr><th scope="row">{escape(row["arm"])}</th>{said}</tr>')
    return (
        f'<div class="scroll shift" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _share(value: float) -> str:
    return f"{100 * value:.1f}"


def _pair(row: Mapping[str, Any], name: str, said: Any) -> str:
    """Return a figure as it is and, where weights differ, by weights."""
    found = row[name]
    if found is None:
        return "–"
    raw, weighted = ("–" if found[kind] is None else said(found[kind]) for kind in ("raw", "weighted"))
    return f"{raw} → {weighted}" if row["weights_differ"] else raw


def projection_chart(density: Mapping[str, Any], points: Sequence[Sequence[float]], name: str) -> str:
    """Return kept points over the density of the train split, on its first two principal components.

    `points` holds [0 for signal or 1 for exploration, x, y]; one outside the sample's range stands at its edge.
    """
    counts = density["counts"]
    (left, right), (bottom, top) = density["x"], density["y"]
    width, height = (right - left) / len(counts[0]), (top - bottom) / len(counts)
    highest = max(max(row) for row in counts) or 1
    runs = []
    for y, row in enumerate(counts):
        levels = [math.ceil(LEVELS * math.sqrt(number / highest)) for number in row]
        at = 0
        # Squares of one level beside each other are one mark: a third of the file.
        for level, some in groupby(levels):
            start, at = at, at + len(list(some))
            if level:
                ends = {"x": left + start * width, "x2": left + at * width, "y": bottom + y * height}
                runs.append({**ends, "y2": ends["y"] + height, "level": round(0.08 + 0.085 * level, 3)})
    x = alt.X("x:Q", title="first principal component, the second upwards", scale=linear((left, right)),
              axis=alt.Axis(labels=False, grid=False))  # fmt: skip
    y_axis = alt.Y("y:Q", axis=None, scale=linear((bottom, top)))
    layers = [
        table_of(runs).mark_rect(fill="var(--soft)").encode(
            x=x, x2="x2:Q", y=y_axis, y2="y2:Q", opacity=alt.Opacity("level:Q", scale=None)
        )
    ]
    for code, kind, shape in ((1, "exploration", "square"), (0, "signal", "circle")):
        places = [
            {"x": min(max(x, left), right), "y": min(max(y, bottom), top)} for own, x, y in points if own == code
        ]
        mark = table_of(places).mark_point(shape=shape, filled=True, size=17, opacity=0.85, color=f"var(--{kind})")
        layers.append(mark.encode(x=x, y=y_axis))
    return drawing(alt.layer(*layers).properties(width=WIDTH, height=HEIGHT), f"Kept examples of {name} over the train split")
