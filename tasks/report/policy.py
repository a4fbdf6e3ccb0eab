"""What a race came to: the sentence of each keep, the record in results.json, the page's section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tasks.policy.answer import Costs, answer_of
from tasks.policy.halving import RANDOM, Race, Rung
from tasks.report.wording import count, duration, percent, plural, signed

RULE = (
    "Every training of the race has the full step budget of a final one. After each rung candidates are judged by the mean, over "
    "all replicates so far, of their paired difference to random on the validation split; a stated share stays. The best of the "
    "last rung is frozen if its mean is above 0, and then meets random once on the test set, in replicates whose selection and "
    "training seeds the race never had. Without a verdict of better there the answer is random. Figures of the race are those by "
    "which candidates were chosen: the best of them look better than they are, and only the confirmation says what a gain is."
)
CONFIRMATION = (
    "versus", "replicates", "differences", "mean_difference", "ci95", "two_way_ci95", "se_test", "verdict", "reason",
    "needed_replicates",
)  # fmt: skip
_DIGITS = 9


def rung_text(rung: Rung) -> str:
    """Return a decided rung in one clause: who stays, with the mean difference to random on validation."""
    staying = [one for one in rung.standings if one.stays]
    said = ", ".join(f"{one.name} ({signed(one.mean_difference)})" for one in staying)
    stay = "stays" if len(staying) == 1 else "stay"
    return f"{len(staying)} of {len(rung.standings)} {stay} after {plural(rung.replicates, 'replicate')}: {said}"


def keep_record(
    keep: float, race: Race, left_out: Mapping[str, str], settings: Mapping[str, Mapping[str, Any]], costs: Costs,
    comparisons: Sequence[Mapping[str, Any]], touched: Mapping[str, int],
) -> dict[str, Any]:
    """Return what `policy.keeps` of results.json holds of one keep, but its sentence.

    `settings` are those of every candidate by name, `comparisons` the rows of results.json, `touched` the distinct examples
    that a training of each candidate, and of random, shows.
    """
    row = next((row for row in comparisons if row["keep"] == keep and row["arm"] == race.winner), None)
    confirmation = None if row is None else {name: row[name] for name in CONFIRMATION}
    rungs = [
        {
            "replicates": rung.replicates,
            "candidates": [
                {"name": one.name, "replicates": rung.replicates, "mean_difference": one.mean_difference,
                 "differences": list(one.differences), "stays": one.stays}
                for one in rung.standings
            ],
        }
        for rung in race.rungs
    ]  # fmt: skip
    costs_record = {name: round(value, _DIGITS) if isinstance(value, float) else value for name, value in costs.record().items()}
    return {
        "keep": keep,
        "candidates": {name: dict(own) for name, own in settings.items()},
        "left_out": dict(left_out),
        "examples_touched": dict(touched),
        "rungs": rungs,
        "winner": race.winner,
        "confirmation": confirmation,
        "answer": answer_of(race.winner, None if confirmation is None else confirmation["verdict"]),
        "costs": costs_record,
    }


def time_text(wall: Mapping[str, Any], keeps: int) -> str:
    """Return how long scoring and search took, all keeps together, and of how many trainings that is not known."""
    unknown, trainings = wall["not_known"], wall["trainings"]
    if wall["seconds"] is None:
        return f"time not known, as all {count(trainings)} trainings were there already"
    said = duration(wall["seconds"]) + (" for all keeps" if keeps > 1 else "")
    if not unknown:
        return said
    were = "which was" if unknown == 1 else "which were"
    return f"at least {said}, not known for {count(unknown)} of {count(trainings)} trainings, {were} there already"


def policy_sentence(entry: Mapping[str, Any], wall: Mapping[str, Any], keeps: int) -> str:
    """Return the finding of one keep in one sentence, its costs included; `wall` is the time of all keeps together."""
    confirmation, candidates = entry["confirmation"], plural(len(entry["candidates"]), "candidate")
    start = f"Keep {percent(entry['keep'])}: "
    if confirmation is None:
        found = f"random; none of {candidates} ended the race above it on validation, so none was tested"
    else:
        interval = confirmation["ci95"]
        said = f"95 % interval {_points(interval[0])} to {_points(interval[1])}"
        where = f"({said}, {plural(confirmation['replicates'], 'replicate')}, this test set)"
        gain = confirmation["mean_difference"]
        if entry["answer"] == RANDOM:
            found = (
                f"random; {entry['winner']}, the best of {candidates} on validation, was not confirmed to beat it: "
                f"{signed(gain)} points {where}"
            )
        else:
            found = f"{entry['winner']} beats random by {_points(gain)} points {where}"
    costs = entry["costs"]
    full = f"{costs['full_trainings']:.1f} full trainings"
    what = "scoring and search" if costs["scoring_steps"] is not None else "the search, without the scores you brought,"
    return (
        f"{start}{found}; {what} cost {full} ({count(costs['steps'])} steps; {time_text(wall, keeps)}), every later training "
        f"{percent(entry['keep'])} of the data{_share_of_steps(entry)}."
    )


def _share_of_steps(entry: Mapping[str, Any]) -> str:
    """Return what a later training takes of a full one's steps, empty where that is its share of the data, to a tenth."""
    costs = entry["costs"]
    share = costs["later_training_steps"] / costs["full_training_steps"]
    return "" if share <= 1.1 * entry["keep"] else f" and {percent(float(f'{share:.2g}'))} of the steps"


def _points(value: float) -> str:
    """Return points with one digit, and with more where one would hide the sign."""
    text = f"{value:.1f}"
    return f"{value:.1g}" if value != 0 and float(text) == 0 else text


def sentences(results: Mapping[str, Any]) -> list[str]:
    """Return the sentence of each keep of a run with a policy, none for other runs."""
    policy = results.get("policy")
    return [] if policy is None else [entry["sentence"] for entry in policy["keeps"]]


def policy_section(results: Mapping[str, Any]) -> str:
    """Return the page's section about the race; empty where there was none."""
    policy = results.get("policy")
    if policy is None:
        return ""
    keeps = "".join(_keep(entry, number == 0) for number, entry in enumerate(policy["keeps"]))
    return f"<section><h2>How the arm was found</h2><p>{escape(RULE)}</p>{keeps}{_costs(results)}</section>"


def _keep(entry: Mapping[str, Any], first: bool) -> str:
    rungs = entry["rungs"]
    head = "".join(f'<th scope="col">rung {n}, {plural(rung["replicates"], "replicate")}</th>' for n, rung in enumerate(rungs, 1))
    fates: dict[str, list[str]] = {}
    # In the order of how far each went: the last rung's first.
    for rung in reversed(rungs):
        for one in rung["candidates"]:
            fates.setdefault(one["name"], [])
    for rung in rungs:
        there = {one["name"]: one for one in rung["candidates"]}
        for name, cells in fates.items():
            one = there.get(name)
            stays = "" if one is None or one["stays"] else ", dropped"
            cells.append("–" if one is None else f"{signed(one['mean_difference'])}{stays}".replace("-", "−"))
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}'
        f'<td class="words">{_fate(name, entry)}</td><td>{count(entry["examples_touched"][name])}</td></tr>'
        for name, cells in fates.items()
    )
    left = "".join(f"<li>{escape(name)}: {escape(why)}</li>" for name, why in entry["left_out"].items())
    left = f"<p>Left out at this keep:</p><ul>{left}</ul>" if left else ""
    return (
        f"<details{' open' if first else ''}><summary>Keep {percent(entry['keep'])}: mean difference to random on validation, in "
        f'points</summary><div class="scroll" tabindex="0"><table><thead><tr><th scope="col">candidate</th>{head}'
        '<th scope="col" class="words">on test</th><th scope="col">distinct examples touched</th>'
        f'</tr></thead><tbody>{rows}</tbody></table></div>{left}</details>'
    )


def _fate(name: str, entry: Mapping[str, Any]) -> str:
    if name != entry["winner"]:
        return "not tested"
    confirmation = entry["confirmation"]
    verdict = confirmation["verdict"]
    figure = signed(confirmation["mean_difference"]).replace("-", "−")
    return f'<span class="verdict v-{verdict}">{verdict}</span> {figure}'


def _costs(results: Mapping[str, Any]) -> str:
    policy = results["policy"]
    touched = {(arm["name"], arm["keep"]): arm["examples_touched"] for arm in results["arms"]}
    rows = []
    for entry in policy["keeps"]:
        costs = entry["costs"]
        scoring = "–" if costs["scoring_steps"] is None else count(costs["scoring_steps"])
        cells = [scoring, *(count(costs[name]) for name in ("race_steps", "confirmation_steps", "steps", "full_training_steps"))]
        cells += [f"{costs['full_trainings']:.1f}", count(costs["later_training_steps"])]
        cells.append(count(touched[entry["answer"], entry["keep"]]))
        rows.append(f'<tr><th scope="row">{percent(entry["keep"])}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    names = ("keep", "scoring", "race", "confirmation", "in all", "one full training", "full trainings", "a later training",
             "distinct examples that it touches")  # fmt: skip
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return (
        "<p>What it cost, in optimiser steps. Scoring is shared by all keeps and counts in full in each; its forward passes are "
        f"no steps. Wall time: {time_text(policy['wall'], len(policy['keeps']))}. It counts "
        f"{plural(policy['wall']['attempts'], 'attempt')} at this run, and the scoring of other runs.</p>"
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
