"""The words of a report: numbers as people read them, verdicts as sentences, the glossary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.comparison.dunnett import AGREEMENT
from tasks.comparison.paired import least_text
from tasks.report.inputs import SOFT_LABELS
from tasks.report.scoring import scoring_clause, scoring_note
from tasks.selection.spec import missing_note

VERDICTS = ("better", "equivalent", "worse", "undecided")

GLOSSARY = {
    "better": "The whole interval of the arm's paired difference to random lies above 0, after adjustment for all pruned "
    "arms compared at that keep.",
    "worse": "The whole adjusted interval lies below 0.",
    "equivalent": "Two one-sided tests at 5 %: the 90 % interval lies within the stated margin around 0, wider by Holm's "
    "adjustment where several arms are compared, and the test set is large enough for that margin.",
    "undecided": "None of the other three could be shown. Not the same as equal: the replicates it would take are "
    "estimated where more of them would help, for 80 % power if the observed difference and spread are the true ones.",
    "non-inferior": "A loss of the stated margin is ruled out: one-sided 97.5 %, adjusted by Holm. Said beside the verdict.",
    "replicate": "A fresh selection and a fresh training under one pair of seeds, shared by all arms.",
    "paired difference": "Accuracy of the arm minus accuracy of random in the same replicate, in percentage points.",
    "interval": "A 95 % t interval over replicates, of the difference or of the accuracy. That of a difference is "
    "adjusted as its verdict is, so it may be wider.",
    "two-way interval": "The same, with the test examples taken as a sample too.",
    "Dunnett, Holm": "The adjustments for several arms. Dunnett's where there are at least three and their spreads pass as equal "
    "(Bartlett's p above 0.25): each is judged by the spread they share, and by its own. Else Holm's: each by its own alone.",
    "worst class": "The class with the lowest accuracy. Its difference to random is that of each replicate's own worst "
    "classes, with a plain 95 % interval: described, not judged.",
    "keep": "The fraction of the train split that is kept after validation is taken out.",
    "signal, exploration": "The top of the ranking by score; a uniform draw from the rest.",
    "effective sample size": "(sum w)^2 / sum w^2 of the weights w (Kish): how many equally weighted examples they are "
    "worth.",
    "design effect": "Of the weights (Kish): kept examples over effective sample size, 1 where all weights are equal. Of class "
    "totals: the mean squared error of their estimates against that of a uniform draw of the same size, below 1 is better than "
    "uniform. The two can disagree.",
}


def percent(share: float) -> str:
    """Return a fraction as a percentage without needless digits: 0.01 -> '1 %'."""
    return f"{100 * share:.6g} %"


def count(number: float) -> str:
    """Return a whole number with thousands separated."""
    return f"{round(number):,}"


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def kept_text(arm: Mapping[str, Any]) -> str:
    """Return how many examples an arm keeps: '541', or '541 an epoch' where every epoch draws its own."""
    return count(arm["n_kept"]) + (" an epoch" if arm.get("fresh_every_epoch") else "")


def signed(points: float) -> str:
    """Return points with a sign, two digits; what rounds to zero has none."""
    text = f"{points:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def bounds(interval: Sequence[float] | None) -> str:
    """Return an interval as '[lo, hi]'; a bound that does not reach zero is never printed as 0.00."""
    if interval is None:
        return "no interval"
    return f"[{', '.join(_bound(value) for value in interval)}]"


def _bound(value: float) -> str:
    # "better [0.00, 0.41]" would contradict itself: show the digits that tell the sign.
    return f"{value:+.1g}" if value != 0 and signed(value) == "0.00" else signed(value)


def with_margin(mean: float, interval: Sequence[float] | None) -> str:
    """Return '94.53 ± 0.21', half the width of the interval after the sign; the mean alone without an interval."""
    return f"{mean:.2f}" if interval is None else f"{mean:.2f} ± {(interval[1] - interval[0]) / 2:.2f}"


def plural(number: int, word: str) -> str:
    """Return '1 replicate', '2 replicates'."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def listed(names: Sequence[str]) -> str:
    """Return 'a', 'a and b', 'a, b and c'."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def needed_text(row: Mapping[str, Any]) -> str:
    """Return how many replicates an undecided comparison would take, or an empty string."""
    number = row["needed_replicates"]
    if number is None:
        return ""
    if row["needed_capped"]:
        return f"more than {number:,} replicates would be needed"
    if row["replicates"] < 2:
        return f"at least {number} replicates are needed"
    return f"about {number:,} replicates would decide it"


def arm_sentence(row: Mapping[str, Any]) -> str:
    """Return one comparison as a sentence, without its keep."""
    verdict, arm, versus = row["verdict"], row["arm"], row["versus"]
    difference = f"{signed(row['mean_difference'])} points {bounds(row['ci95'])}"
    if verdict in ("better", "worse"):
        text = f"{arm} is {verdict} than {versus}: {difference}"
        return text + f" ({row['reason']})." if ";" in row["reason"] or "small" in row["reason"] else text + "."
    if verdict == "equivalent":
        return f"{arm} is equivalent to {versus}: {difference}; {row['reason']}."
    tail = [loss_text(row), needed_text(row)]
    return f"{arm} is undecided: {'; '.join(part for part in (difference, row['reason'], *tail) if part)}."


def loss_text(row: Mapping[str, Any]) -> str:
    """Return that a loss of the non-inferiority margin is ruled out, or an empty string."""
    return "non-inferior: a loss of the margin is ruled out" if row["non_inferior"] else ""


def adjustment_sentence(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return how the comparisons of one family were adjusted for each other, and why so; empty for none."""
    if not rows:
        return ""
    first = max(rows, key=lambda row: int(row["family"]))
    arms, p = first["family"], first["spreads_p"]
    if first["adjustment"] == "paired t":
        return "One comparison with random: paired t, no adjustment."
    start = f"{arms} comparisons with random, adjusted by {first['adjustment']} (5 % over all of them)"
    if p is None:
        return f"{start}: few arms or replicates, or differences that do not vary, do not tell whether spreads agree."
    # Neither is shown: a p below the bound is seldom one that tells a difference.
    passed = first["adjustment"] == "Dunnett"
    found = f"Bartlett's p {p:.3g} is {'above' if passed else 'not above'} {AGREEMENT:g}"
    return f"{start}: their spreads {'pass' if passed else 'do not pass'} as equal, as {found}."


def keep_sentence(results: Mapping[str, Any], keep: float) -> str:
    """Return what was found at one keep, every arm with its verdict, in one sentence.

    Gives intervals where one pruned arm was compared; more of them would bury the verdicts, and the table has them.
    """
    rows = [row for row in results["comparisons"] if row["keep"] == keep]
    start = f"At keep {percent(keep)}"
    if not rows:
        return f"{start} nothing was compared: it takes a random arm and another one, both trained at this keep."
    said = []
    full = {arm["name"] for arm in results["arms"] if arm["full"]}
    pruned = [row for row in rows if row["arm"] not in full]

    def figures(row: Mapping[str, Any]) -> str:
        interval = bounds(row["ci95"])
        return f"{signed(row['mean_difference'])} points{' ' + interval if len(pruned) == 1 else ''}"

    for verdict, phrase in (
        ("better", "better than random"),
        ("equivalent", "equivalent to random"),
        ("worse", "worse than random"),
    ):
        group = [row for row in pruned if row["verdict"] == verdict]
        if group:
            names = listed([f"{row['arm']} ({figures(row)})" for row in group])
            said.append(f"{names} {'is' if len(group) == 1 else 'are'} {phrase}")
    open_rows = [row for row in pruned if row["verdict"] == "undecided"]
    if open_rows:
        few = [row for row in open_rows if row["replicates"] < results["min_replicates"]]
        names = listed([f"{row['arm']} ({figures(row)})" for row in open_rows])
        why = ""
        if len(few) == len(open_rows):
            why = f": {plural(few[0]['replicates'], 'replicate')}, and {_raise_to(results)}"
        elif len(open_rows) == 1 and needed_text(open_rows[0]):
            why = f" ({needed_text(open_rows[0])})"
        said.append(f"{names} {'is' if len(open_rows) == 1 else 'are'} undecided against random{why}")
    for row in rows:
        if row["arm"] in full:
            steps = {arm["name"]: arm["steps"] for arm in results["arms"] if arm["keep"] == keep}
            own = "" if steps[row["arm"]] == steps[row["versus"]] else f" for its own {count(steps[row['arm']])} steps"
            said.append(f"training on the full data{own} is {_against(row['verdict'])} ({figures(row)})")
    return f"{start}: {'; '.join(said)}."


def _raise_to(results: Mapping[str, Any]) -> str:
    """Return how many replicates a verdict takes in this run, and which setting gives them."""
    least = results["min_replicates"]
    return f"{least_text(least)}: set train.replicates to {least}"


def _against(verdict: str) -> str:
    return {
        "better": "better than random", "worse": "worse than random", "equivalent": "equivalent to random",
    }.get(verdict, "undecided against random")  # fmt: skip


def headline(results: Mapping[str, Any]) -> str:
    """Return the finding about pruned arms in one sentence, with what scoring cost; it claims no more than the verdicts do."""
    cost = scoring_clause(results)
    found = _finding(results)
    return f"{found.removesuffix('.')}; {cost}." if cost else found


def _finding(results: Mapping[str, Any]) -> str:
    full = {arm["name"] for arm in results["arms"] if arm["full"]}
    rows = [row for row in results["comparisons"] if row["arm"] not in full]
    if not rows:
        return "No pruned arm was compared with random."
    if all(row["replicates"] < results["min_replicates"] for row in rows):
        most = max(row["replicates"] for row in rows)
        return f"No verdict yet: {plural(most, 'replicate')}, and {_raise_to(results)}; what is trained stays."
    if len(rows) == 1:
        row = rows[0]
        return (
            f"At keep {percent(row['keep'])}, {row['arm']} is {_against(row['verdict'])}: "
            f"{signed(row['mean_difference'])} points{_evidence(row)}."
        )
    tally = {verdict: [row for row in rows if row["verdict"] == verdict] for verdict in VERDICTS}
    better = tally["better"]
    if not better:
        start = f"No pruned arm was shown to beat random in {len(rows)} comparisons"
        rest = [f"{len(group)} {name}" for name, group in tally.items() if group]
        return f"{start}: {listed(rest)}."
    rest = [f"{len(group)} {name}" for name, group in tally.items() if group and name != "better"]
    others = f" ({listed(rest)})" if rest else ""
    fresh = {(arm["name"], arm["keep"]) for arm in results["arms"] if arm["protocol"] in ("rs2", "rotate")}
    most, replicates = [], set()
    for keep in sorted({row["keep"] for row in better}):
        best = max((row for row in better if row["keep"] == keep), key=lambda row: float(row["mean_difference"]))
        replicates.add(best["replicates"])
        drawn = ", drawn anew every epoch," if (best["arm"], keep) in fresh else ""
        most.append(f"at keep {percent(keep)} {best['arm']}{drawn} by {best['mean_difference']:.2f} {bounds(best['ci95'])}")
    arms = len({row["arm"] for row in rows})
    start = f"{plural(arms, 'arm')} {'were' if arms > 1 else 'was'} compared with random"
    evidence = f"points with 95 % intervals, {'–'.join(str(one) for one in sorted(replicates))} replicates, this test set"
    return f"{start}: better in {len(better)} of {len(rows)} comparisons{others}, most {'; '.join(most)} ({evidence})."


def _evidence(row: Mapping[str, Any]) -> str:
    interval = "no interval" if row["ci95"] is None else f"95 % interval {row['ci95'][0]:.2f} to {row['ci95'][1]:.2f}"
    return f" ({interval}, {plural(row['replicates'], 'replicate')}, this test set)"


def causes_text(causes: Mapping[str, int]) -> str:
    """Return counts by cause, most first, as in '3 bad_label, 1 undecodable'."""
    return ", ".join(f"{count(rows)} {cause}" for cause, rows in sorted(causes.items(), key=lambda pair: (-pair[1], pair[0])))


def left_out_notes(results: Mapping[str, Any]) -> list[str]:
    """Return one sentence for the rows of the data, and one for the scores, that went to the quarantine, if any did."""
    out = []
    quarantine = results["dataset"]["quarantine"]
    if quarantine["rows"]:
        out.append(
            f"Quarantined: {plural(quarantine['rows'], 'row')} of the data left out as bad "
            f"({causes_text(quarantine['causes'])}); the index's quarantine tables name each."
        )
    said: dict[str, None] = {}
    for arm in results["arms"]:
        facts = arm.get("selection") or {}
        if facts.get("n_missing"):
            why = f" ({causes_text(facts['missing_causes'])})" if facts.get("missing_causes") else ""
            said[f"{missing_note(facts['missing'], facts['n_missing'], facts['n'])}{why}"] = None
    return out + [f"Without a score: {one}. Random draws from all train examples." for one in said]


def notes(results: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know before believing the figures, most important first."""
    out = []
    dataset, arms = results["dataset"], results["arms"]
    if dataset["limit"] is not None:
        out.append(
            f"Slice of the data: data.limit = {count(dataset['limit'])}, so these are results on a slice "
            f"({count(dataset['n_train'])} train examples), not on the data set."
        )
    out += left_out_notes(results)
    out.append("Test accuracy is that of each training's last step; no step was chosen by looking at the test set.")
    if any(arm["score"] is not None for arm in arms):
        out.append(
            "Intervals are conditional on the proxy set: all selections rank by the same scores. A headline claim "
            "takes at least 3 proxy sets."
        )
    if scoring_note(results):
        out.append(scoring_note(results))
    refused = [row for row in results["comparisons"] if row["margin_refused"] and row["verdict"] == "undecided"]
    if refused:
        worst = max(row["se_test"] for row in refused)
        out.append(
            f"The margin of {results['margin_points']:g} points is too narrow for "
            f"{plural(len(refused), 'undecided comparison')}: it must be at least two standard errors of the test set, "
            f"here up to {2 * worst:.2f} points."
        )
    pruned = [arm for arm in arms if not arm["full"] and arm["protocol"] != "random"]
    if results.get("policy"):
        if any(entry["confirmation"] for entry in results["policy"]["keeps"]):
            out.append(
                "The arms here were chosen by a race on the validation split, frozen, and tested with selection and training "
                "seeds that the race never had: one comparison for each keep, not adjusted over keeps."
            )
    elif len(pruned) > 1:
        names = len({arm["name"] for arm in pruned})
        what = f"{plural(len(pruned), 'comparison')} of {plural(names, 'pruned arm')} were made"
        out.append(
            f"{what}. The best of them by these figures looks better than it is: "
            "choose on validation, freeze the choice, and confirm it with fresh selection and training seeds."
        )
    for keep in sorted({arm["keep"] for arm in arms if not arm["full"]}):
        steps = sorted({(arm["steps"], arm["batch_size"]) for arm in arms if arm["keep"] == keep and not arm["full"]})
        if len(steps) > 1:
            said = listed([f"{count(step)} x {batch}" for step, batch in steps])
            out.append(f"At keep {percent(keep)} the arms had different training budgets (steps x batch: {said}).")
    if not any(arm["full"] for arm in arms):
        out.append("No arm was trained on the full data, so what pruning costs is not known.")
    fresh = list(dict.fromkeys(arm["name"] for arm in arms if arm["fresh_every_epoch"]))
    if fresh:
        does = "draws a subset anew every epoch: it keeps that many an epoch, and touches more"
        do = "draw a subset anew every epoch: they keep that many an epoch, and touch more"
        out.append(
            f"{listed(fresh)} {does if len(fresh) == 1 else do} distinct examples than a fixed subset, which is all that the "
            "others ever see. All of the data must stay at hand."
        )
    if any(arm["protocol"] == SOFT_LABELS for arm in arms):
        out.append(
            "The arm of soft labels trains on random's subsets, and learns from the model that the same replicate trained on the "
            "full data: what it costs is that training too, and its examples touched are those of the student alone."
        )
    for arm in arms:
        found = (arm.get("selection") or {}).get("calibration")
        if found:
            from tasks.selection.raking import raking_note

            note = raking_note(found, arm["selection"]["bins"])
            out.append(f"{arm['name']} at keep {percent(arm['keep'])}: {note}.")
    if not any(arm["protocol"] == "rs2" for arm in arms):
        out.append("There is no arm that draws a fresh random subset every epoch (protocol rs2) at equal steps.")
    return out
