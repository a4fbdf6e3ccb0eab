"""The page's section about time to accuracy: curves over steps with what was paid before, and when each arm gets where."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import altair as alt

from tasks.report.curves import MOST_ARMS, Entries, ErrorAxis
from tasks.report.inputs import PageInputs
from tasks.report.time_to_accuracy import told_share
from tasks.report.vega import FONT, WIDTH, drawing, table_of
from tasks.report.wording import count, listed, percent, plural

Row = Mapping[str, Any]
Drawn = tuple[str, str, Row]
"""Name, colour, and the row of the record."""


def time_section(results: Mapping[str, Any], page: PageInputs) -> str:
    """Return curves and tables of every keep; empty where trainings were evaluated at their last step alone."""
    found = results.get("time_to_accuracy")
    if found is None:
        return ""
    replicates = max(len(arm["accuracy"]) for arm in results["arms"])
    said = (
        f"Test accuracy at {plural(found['points'], 'point')} of each training, mean over {plural(replicates, 'replicate')}. "
        "Steps are optimiser steps. What had to be paid before an arm could be trained stands before its curve: in the first "
        f"chart one training bears all of it, in the second {count(found['many'])} later trainings share it. An arm reaches an "
        "accuracy at the first point from which on its mean stays there; who trains sees no test set, and would not know."
    )
    keeps = "".join(_keep(results, entry) for entry in found["keeps"])
    costs = "".join(f"<li>{escape(one)}</li>" for one in cost_lines(results, page))
    return f"<section><h2>Time to accuracy</h2><p>{escape(said)}</p><ul>{costs}</ul>{keeps}</section>"


def cost_lines(results: Mapping[str, Any], page: PageInputs) -> list[str]:
    """Return what is charged to whom, and what is not, in sentences."""
    found = results["time_to_accuracy"]
    rows = [row for entry in found["keeps"] for row in entry["arms"]]
    scored = [row for row in rows if row["charge"]["scored_examples"]]
    out = []
    if scored:
        charge = scored[0]["charge"]
        out.append(
            f"Scoring: {count(charge['scoring_steps'])} steps of proxies for every arm that ranks; its "
            f"{count(charge['scored_examples'])} examples passed forward are no steps, and are in its time."
        )
    if any(row["charge"]["scoring_steps"] is None for row in rows):
        out.append("Scoring: the scores were brought, and what they cost is not known and not charged.")
    taught = [row for row in rows if row["charge"]["teacher_steps"]]
    if taught:
        steps = listed(list(dict.fromkeys(count(row["charge"]["teacher_steps"]) for row in taught)))
        out.append(f"Teacher: the full-data training that soft labels come from, {steps} steps.")
    searched = [row for row in rows if row["charge"]["search_steps"]]
    if searched:
        steps = listed(list(dict.fromkeys(count(row["charge"]["search_steps"]) for row in searched)))
        out.append(f"Search: the race and its confirmation, {steps} steps; their time is that of the whole run, for all keeps.")
    elif scored:
        out.append("Search: none is charged, since these arms were named in advance. Who tries several pays for each.")
    selecting = {stage.name: stage for stage in page.stages if stage.name in ("select", "subset") and stage.computed}
    if len(selecting) == 2:
        both = sum(stage.seconds for stage in selecting.values())
        many = plural(selecting["select"].items, "selection")
        out.append(f"Selecting and cutting out took {both:.1f} s for {many} of all arms together, and is charged to none.")
    out.append(
        "Seconds: of trainings on their workers, evaluation left out, median over replicates; of scoring, the wall time of its "
        "stages in the runs that computed them. A dash stands where the records do not tell all of it."
    )
    return out


def _keep(results: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    many = results["time_to_accuracy"]["many"]
    rows, hidden = drawn_rows(entry["arms"])
    share = told_share(entry)
    target = next((one["accuracy"] for one in entry["targets"] if one["share"] == share), None)
    ways = [("Nothing was paid before", 1)]
    if any(row["charge"]["steps"] for row in entry["arms"]):
        ways = [("One training bears the costs", 1), (f"{count(many)} trainings share the costs", many)]
    charts = "".join(
        f'<div class="card"><h3>{name}</h3>{time_chart(rows, trainings, target, share, int(results["dataset"]["n_test"]))}</div>'
        for name, trainings in ways
    )
    left = f'<p class="caption">{plural(hidden, "arm")} of lower accuracy are in the tables alone.</p>' if hidden else ""
    tables = "".join(
        f"<details{' open' if one['share'] == share else ''}><summary>{percent(one['share'])} of the full data's accuracy: "
        f"{one['accuracy']:.2f} %</summary>{_table(entry['arms'], place, many)}</details>"
        for place, one in enumerate(entry["targets"])
    )
    said = entry["sentence"].partition(": ")[2]
    return (
        f"<h3>Keep {percent(entry['keep'])}</h3><p>{escape(said[0].upper() + said[1:])}</p>"
        f'<div class="cards">{charts}</div>{left}{tables}'
    )


def drawn_rows(rows: Sequence[Row]) -> tuple[list[Drawn], int]:
    """Return what is drawn with its colour, and how many are not: random, the full data, and the best of the others."""
    always = [row for row in rows if row["random"] or row["full"]]
    others = [row for row in rows if row not in always]
    best = sorted(others, key=lambda row: -row["accuracy"][-1])[:MOST_ARMS]
    chosen = [row for row in others if row in best]
    drawn = [(row["arm"], "random" if row["random"] else "full", row) for row in always]
    return [*drawn, *((row["arm"], f"c{place}", row) for place, row in enumerate(chosen))], len(others) - len(chosen)


def time_chart(drawn: Sequence[Drawn], trainings: int, target: float | None, share: float | None, tested: int) -> str:
    """Return accuracy over steps, each arm's after what it pays where so many trainings share it; both axes logarithmic."""
    values = [value for _, _, row in drawn for value in row["accuracy"]] + ([] if target is None else [target])
    axis = ErrorAxis(values, tested)
    rows = [
        {"order": order, "x": step + row["charge"]["steps"] / trainings, "y": axis.place(value)}
        for order, (_, _, row) in enumerate(drawn)
        for step, value in zip(row["steps"], row["accuracy"])
    ]
    every = [row["x"] for row in rows]
    marks = alt.Axis(values=_marked(min(every), max(every)), format=",", labelOverlap=True)
    below = "optimiser steps, what was paid before included (log scale)"
    domain = alt.Scale(type="log", domain=[min(every) / 1.02, max(every) * 1.05], nice=False)
    x, y = alt.X("x:Q", title=below, scale=domain, axis=marks), axis.y("y")
    entries = Entries([(name, colour) for name, colour, _ in drawn], WIDTH)
    last = [row for row, after in zip(rows, [*rows[1:], {"order": -1}]) if row["order"] != after["order"]]
    layers = [
        *entries.lines(rows, x, y),
        table_of(last).mark_point(size=55, filled=True, opacity=1).encode(
            x=x, y=y, color=entries.colour(), shape=entries.shape()
        ),
    ]
    if target is not None and share is not None:
        level = table_of([{"y": axis.place(target)}]).encode(y=y)
        text = level.mark_text(align="left", dx=4, dy=-8, fontSize=FONT, fill="var(--soft)")
        layers += [
            level.mark_rule(color="var(--ink)", strokeWidth=1.5, strokeDash=[4, 3]),
            text.encode(x=alt.value(0), text=alt.value(f"{percent(share)} of the full data's")),
        ]
    said = f"Test accuracy over steps of {', '.join(name for name, *_ in drawn)}, costs shared by {plural(trainings, 'training')}"
    return drawing(alt.layer(*layers).properties(width=WIDTH - 40, height=240), said)


def _marked(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten between two positive numbers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = (factor * 10.0**power for power in powers for factor in (1, 2, 5))
    return [value for value in every if low <= value <= high]


def _table(rows: Sequence[Row], place: int, many: int) -> str:
    shared = f"with 1/{count(many)} of them"
    heads = ("arm", "touched", "paid before, steps", "its own steps", "with all costs", shared, "its own seconds",
             "with all costs", shared, "replicates that get there")  # fmt: skip
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = []
    for row in rows:
        one = row["reached"][place]
        never = one["steps"] is None
        steps = ["never" if never else count(one[name]) for name in ("steps", "steps_one", "steps_many")]
        seconds = ["never" if never else _seconds(one[name]) for name in ("seconds", "seconds_one", "seconds_many")]
        paid = count(row["charge"]["steps"]) if row["charge"]["scoring_steps"] is not None else "scores brought"
        cells = [count(row["examples_touched"]), paid, *steps, *seconds, f"{one['replicates']} of {one['of']}"]
        said = "".join(f"<td>{cell}</td>" for cell in cells)
        body.append(f'<tr><th scope="row">{escape(row["arm"])}</th>{said}</tr>')
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="scroll shift" tabindex="0">{table}</div>'


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"
