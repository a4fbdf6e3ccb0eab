"""The tables of `benchmarks/cells.md`: what the sweeps found, and which of them were not run."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from textwrap import fill
from typing import Any, Protocol

import numpy as np

from flows.config import parse_config
from flows.plan import FULL
from tasks.comparison.paired import mean_interval
from tasks.proxy import ProxySpec
from tasks.report.wording import listed, plural

WIDTH = 130
PACKAGES = ("torch", "numpy", "scikit-learn", "mnist1d", "ray", "prefect")

HEAD = """# Every sampler against random, cell by cell

`MNIST=/path python -m benchmarks.cells` runs one sweep (`secateur sweep`) for each cell and group of keeps and writes this page.
{facts}

A cell is one data set with one model. All samplers rank by EL2N from three proxies of the model that is trained. Every arm has
ten paired replicates, each a new selection and a new training, and as many steps as random at that keep. An entry is the mean
difference to random in points of test accuracy with the interval that its verdict rests on, adjusted for all arms of that keep
(Dunnett, or Holm where spreads do not pass as equal): **better** and worse where it excludes 0, equivalent within 0.5 points by
two one-sided tests, otherwise undecided, which is left unsaid. A star: with other test examples the interval includes 0.
Intervals are conditional on one set of proxies. The best of so many arms looks better than it is. `beta` and `width` are shares
of the ranking: what is dropped from the hard end, and what the band holds below that; small keeps have other ones than large
keeps. `rs2` and `rotate` draw anew every epoch: they train on keep n examples at a time and touch many more, which saves steps
and no data. Where little is kept `raked` has too few examples for most margins and is nearly or wholly `exact`. The full data
are no candidate and adjusted for nothing.

"""


LOSSES = """## Where calibration loses

Of the unbiased arms (exact, raked), and of the biased ones (approximate, tempered), the best at each keep by its mean, which
looks better than it is, less random, top-k, and the best `band` or `prototype_band`, chosen likewise: mean over paired replicates
in points of test accuracy, with a 95 % interval by t that is adjusted for nothing. Bold: calibration loses, its interval lies
below 0. Where `auto` finds alpha 0, exact is random and is left out.

| cell | keep | best calibrated | less random | less topk | best band | less that band |
|---|---|---|---|---|---|---|
"""
CALIBRATED, BANDS = (("exact", "raked"), ("approximate", "tempered")), ("band", "prototype_band")


class Described(Protocol):
    """What the tables ask of a cell."""

    title: str
    groups: tuple[Any, ...]

    def config(self, name: str, group: Any) -> dict[str, Any]:
        """Return the configuration of the sweep over one group of keeps."""
        ...


def write_table(out: Path, work: Path, cells: Mapping[str, Described], more: Sequence[str] = ()) -> None:
    """Write the page from the results in `work`; what is not there is named as not run, and so is `more`."""
    times = _times(work)
    parts: list[str] = []
    missing: list[str] = []
    losses: list[str] = []
    for name, cell in cells.items():
        found: list[dict[str, Any]] = []
        for group in cell.groups:
            config = cell.config(name, group)
            path = work / f"{config['name']}.json"
            keeps = f"{cell.title}, keep {listed([f'{keep:g}' for keep in group.keep])}"
            if not path.exists():
                missing.append(keeps)
                continue
            results = json.loads(path.read_text())
            found.append(results)
            arms = {arm["name"] for arm in results["arms"]}
            absent = [arm.label for arm in parse_config(config).select.arms if arm.label not in arms]
            if absent:
                missing.append(f"{keeps}: {listed(absent)}")
        if found:
            seconds = sum(value for key, value in times.items() if key.startswith(f"cells_{name}_"))
            parts.append(section(name, cell, found, seconds))
            losses += [_loss(cell.title, keep, kind, found) for keep in _keeps(found) for kind in CALIBRATED]
    parts.append(LOSSES + "\n".join(losses) + "\n")
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    spent = sum(times.values())
    facts = (
        f"Python {platform.python_version()}, {packages}; {os.cpu_count()} cores, shared with other work. All of it took "
        f"{spent / 60:.0f} minutes."
    )
    text = HEAD.format(facts=fill(facts, WIDTH)) + "\n".join(parts)
    text += "\n## Not run\n\n" + ("\n".join(f"- {line}" for line in (*missing, *more)) or "Nothing.") + "\n"
    out.write_text(text)


def _times(work: Path) -> dict[str, float]:
    """Return the seconds that each sweep took, over all its attempts."""
    path = work / "times.jsonl"
    seconds: dict[str, float] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        row = json.loads(line)
        seconds[row["name"]] = seconds.get(row["name"], 0.0) + row["seconds"]
    return seconds


def section(name: str, cell: Described, found: list[dict[str, Any]], seconds: float) -> str:
    """Return the section of one cell from the results of its sweeps and the seconds that they took."""
    rows = [(results, arm) for results in found for arm in results["arms"]]
    comparisons = {(row["keep"], row["arm"]): row for results in found for row in results["comparisons"]}
    random = {arm["keep"]: arm for _, arm in rows if arm["name"] == "random"}
    keeps = sorted(random)
    data = found[0]["dataset"]
    proxy = ProxySpec.model_validate(cell.config(name, cell.groups[0])["proxy"])
    facts = (
        f"{data['n_train']:,} train, {data['n_validation']:,} validation and {data['n_test']:,} test examples. Scoring: "
        f"{plural(proxy.seeds, 'proxy').replace('proxys', 'proxies')} of {proxy.steps_for(data['n_train']):,} steps of "
        f"{proxy.batch_size}. {plural(len(rows) * 10, 'training')}, {seconds:.0f} s. "
        + _verdicts(row for row in comparisons.values() if row["arm"] != FULL)
    )
    lines = [
        f"## {cell.title}", "", fill(facts, WIDTH), "",
        "| | " + " | ".join(f"keep {keep:g}" for keep in keeps) + " |",
        "|---|" + "---|" * len(keeps),
        "| random, accuracy in % | " + " | ".join(_accuracy(random[keep]) for keep in keeps) + " |",
        "| examples kept | " + " | ".join(f"{random[keep]['n_kept']:,}" for keep in keeps) + " |",
        "| steps of batch | " + " | ".join(f"{random[keep]['steps']:,} of {random[keep]['batch_size']}" for keep in keeps) + " |",
        "| distinct examples touched by random | "
        + " | ".join(f"{random[keep]['examples_touched']:,}" for keep in keeps) + " |",
    ]  # fmt: skip
    order = list(dict.fromkeys(arm["name"] for _, arm in rows if arm["name"] != "random"))
    touched = {(arm["keep"], arm["name"]): arm for _, arm in rows}
    for arm in _sorted(order):
        entries = [_entry(comparisons.get((keep, arm)), touched.get((keep, arm)), random[keep]) for keep in keeps]
        said = "full data, as many steps" if arm == FULL else arm.replace(" el2n", "")
        lines.append(f"| {said} | " + " | ".join(entries) + " |")
    return "\n".join([*lines, ""])


def _keeps(found: list[dict[str, Any]]) -> list[float]:
    return sorted({arm["keep"] for results in found for arm in results["arms"]})


def _loss(title: str, keep: float, kind: tuple[str, ...], found: list[dict[str, Any]]) -> str:
    """Return one row of the losses: the best arm of the calibrated protocols `kind` at one keep against three others."""
    arms = [arm for results in found for arm in results["arms"] if arm["keep"] == keep]

    def best(protocols: tuple[str, ...]) -> Any:
        return max((arm for arm in arms if arm["protocol"] in protocols), key=lambda arm: arm["mean"])

    random = best(("random",))
    arms = [arm for arm in arms if arm is random or arm["accuracy"] != random["accuracy"]]
    mine, band = best(kind), best(BANDS)
    less = [_less(mine, other) for other in (random, best(("topk",)), band)]
    named = [arm["name"].replace(" el2n", "") for arm in (mine, band)]
    return f"| {title} | {keep:g} | {named[0]} | {less[0]} | {less[1]} | {named[1]} | {less[2]} |"


def _less(arm: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    differences = np.array(arm["accuracy"]) - np.array(other["accuracy"])
    low, high = mean_interval(differences) or (differences.mean(), differences.mean())
    said = f"{differences.mean():+.2f} [{low:+.2f}, {high:+.2f}]"
    return f"**{said}**" if high < 0 else said


def _sorted(names: list[str]) -> list[str]:
    """Return the names with those of one protocol together, in the order in which the protocols came, the full data last."""
    protocols = list(dict.fromkeys(name.split()[0] for name in names))
    return sorted(names, key=lambda name: (name == FULL, protocols.index(name.split()[0])))


def _accuracy(arm: Mapping[str, Any]) -> str:
    low, high = arm["ci95"]
    return f"{arm['mean']:.2f} ± {(high - low) / 2:.2f}"


def _entry(row: Mapping[str, Any] | None, arm: Mapping[str, Any] | None, random: Mapping[str, Any]) -> str:
    if row is None or arm is None:
        return ""
    low, high = row["ci95"]
    figures = f"{row['mean_difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
    star = "\\*" if "on this test set only" in row["reason"] else ""
    verdict = row["verdict"]
    said = f"**{figures} better**{star}" if verdict == "better" else figures
    if verdict in ("worse", "equivalent"):
        said += f" {verdict}{star}"
    if arm["examples_touched"] != random["examples_touched"]:
        said += f"; touches {arm['examples_touched']:,}"
    return said


def _verdicts(rows: Any) -> str:
    counted: dict[str, int] = {}
    for row in rows:
        counted[row["verdict"]] = counted.get(row["verdict"], 0) + 1
    total = sum(counted.values())
    words = [f"{counted[name]} {name}" for name in ("better", "worse", "equivalent", "undecided") if name in counted]
    return f"Of {total} comparisons {listed(words)} ({100 * counted.get('better', 0) / total:.0f} % better)."
