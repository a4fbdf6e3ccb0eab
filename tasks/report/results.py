"""results.json: every arm, every comparison, and what they may be taken to mean."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from cluster.errors import CorruptError, InputError
from cluster.record import Seal
from cluster.storage import Store
from tasks.budget import batches_of
from tasks.comparison import Comparison, Sample, compare_with_random, least_replicates, mean_interval
from tasks.comparison.classes import worst_class
from tasks.comparison.power import POWER
from tasks.comparison.verdict import NON_INFERIORITY_POINTS
from tasks.quarantine import left_out
from tasks.report.correctness import Correctness
from tasks.report.effects import weight_effect
from tasks.report.inputs import ArmResult
from tasks.report.scoring import Scoring
from tasks.report.wording import adjustment_sentence, arm_sentence, headline, keep_sentence, notes

SELECTION_FACTS = (
    "n", "missing", "n_missing", "missing_causes",
    "num_kept", "num_signal", "num_exploration", "covered", "weight_sum", "ess", "design_effect", "threshold",
    "direction", "estimator", "population", "classes",
)  # fmt: skip
# Of the protocols that have them.
PROTOCOL_FACTS = (
    "beta", "width", "strata", "weights", "floor", "bins", "margins", "bound", "calibration", "dropped", "drawn_from",
    "features", "components", "fitted_on", "filled", "batched_groups", "inclusion",
)  # fmt: skip
# Digits after the point of every number: more would print rounding noise.
DIGITS = 9


def build_results(
    run_name: str,
    index: Seal,
    arms: Sequence[ArmResult],
    margin_points: float,
    store: Store,
    *,
    min_replicates: int | None = None,
    scoring: Scoring | None = None,
    non_inferiority_points: float = NON_INFERIORITY_POINTS,
) -> dict[str, Any]:
    """Return results.json of a run as plain values: deterministic, free of NaN, accuracies in percent of the last step.

    `min_replicates` below which no verdict is given: by default 5 where the arms make one comparison with random over all
    keeps, the full data's left out, and 10 where they make more. `scoring` is left out where no arm ranks by a
    score, and of a race, which counts its own. The pruned arms of one keep are adjusted for as one family. Training on the
    full data answers another question, what pruning costs, and is no candidate: it is judged by itself.
    Raises InputError on arms that cannot be compared: two random arms at a keep, two arms of one name at a keep,
    replicates that share a seed, arms whose replicates have different seeds; CorruptError where a sealed accuracy is
    not that of its predictions.
    """
    check_arms(arms)
    if min_replicates is None:
        min_replicates = least_replicates(sum(not arm.is_full and not arm.is_random for arm in arms))
    reader = Correctness(store)
    samples = [reader.sample(arm) for arm in arms]
    comparisons = []
    for keep in keeps_of(arms):
        group = [(arm, sample) for arm, sample in zip(arms, samples) if arm.keep == keep]
        baseline = [(arm, sample) for arm, sample in group if arm.is_random]
        if not baseline:
            continue
        verdicts: dict[str, Comparison] = {}
        families = [[arm.name for arm, _ in group if not arm.is_full and not arm.is_random]]
        families += [[arm.name] for arm, _ in group if arm.is_full]
        for family in families:
            found = compare_with_random(
                {arm.name: sample for arm, sample in group if arm.name in family},
                baseline[0][1],
                margin_points=margin_points,
                non_inferiority_points=non_inferiority_points,
                versus=baseline[0][0].name,
                min_replicates=min_replicates,
            )
            verdicts |= {item.arm: item for item in found}
        comparisons += [_comparison_row(keep, verdicts[arm.name]) for arm, _ in group if arm.name in verdicts]
    meta = index.meta
    results: dict[str, Any] = {
        "run": run_name,
        "dataset": {
            "n_train": int(meta["num_train"]),
            "n_validation": int(meta["num_validation"]),
            "n_test": int(meta["num_test"]),
            "num_classes": int(meta["num_classes"]),
            "class_names": [str(name) for name in meta.get("class_names") or range(int(meta["num_classes"]))],
            "limit": meta.get("limit"),
            "quarantine": {name: left_out(index)[name] for name in ("rows", "causes")},
        },
        "margin_points": margin_points,
        "min_replicates": min_replicates,
        "non_inferiority_points": non_inferiority_points,
        "power": POWER,
        "arms": [_arm_row(arm, sample, meta) for arm, sample in zip(arms, samples)],
        "comparisons": comparisons,
    }
    if scoring is not None:
        results["scoring"] = scoring.record()
    results = plain(results)
    for row in results["comparisons"]:
        row["sentence"] = arm_sentence(row)
    results["headline"] = headline(results)
    full = {arm.name for arm in arms if arm.is_full}
    results["keeps"] = [
        {
            "keep": keep,
            "sentence": keep_sentence(results, keep),
            "adjustment": adjustment_sentence(
                [row for row in results["comparisons"] if row["keep"] == keep and row["arm"] not in full]
            ),
        }
        for keep in plain(keeps_of(arms))
    ]
    results["notes"] = notes(results)
    return results


def results_bytes(results: dict[str, Any]) -> bytes:
    """Return the bytes of results.json; the same results give the same bytes. Raises ValueError on NaN."""
    return (json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def keeps_of(arms: Sequence[ArmResult]) -> list[float]:
    """Return the keeps at which arms were trained, ascending."""
    return sorted({arm.keep for arm in arms})


def check_arms(arms: Sequence[ArmResult]) -> None:
    """Raise InputError unless the arms can be compared by paired, independent replicates."""
    if not arms:
        raise InputError("a report needs at least one trained arm; got none: add an arm to the configuration")
    seen: set[tuple[str, float]] = set()
    keeps = keeps_of(arms)
    for arm in arms:
        if (arm.name, arm.keep) in seen:
            raise InputError(f"two arms are called {arm.name!r} at keep {arm.keep:g}: give each a name of its own")
        seen.add((arm.name, arm.keep))
        if not arm.trains:
            raise InputError(f"arm {arm.name!r} at keep {arm.keep:g} has no trained replicate")
        if any(seal.meta["accuracy"] is None for seal in arm.trains):
            raise InputError(f"arm {arm.name!r} was tested on no example: arms are compared on a test set, give one")
        if arm.selections is not None:
            if len(arm.selections) != len(arm.trains):
                raise InputError(
                    f"arm {arm.name!r} has {len(arm.selections)} selections and {len(arm.trains)} trainings: every "
                    "replicate is a fresh selection and a fresh training"
                )
            _distinct([seal.meta.get("seed") for seal in arm.selections], arm, "selection")
        _distinct([seal.meta.get("seed") for seal in arm.trains], arm, "training")
    for keep in keeps:
        randoms = [arm.name for arm in arms if arm.is_random and arm.keep == keep]
        if len(randoms) > 1:
            said = ", ".join(randoms)
            raise InputError(f"keep {keep:g} has {len(randoms)} random arms ({said}): exactly one is the baseline")
    _same_seeds(arms)


def _distinct(seeds: list[Any], arm: ArmResult, what: str) -> None:
    if len(set(seeds)) < len(seeds):
        raise InputError(
            f"arm {arm.name!r} at keep {arm.keep:g}: {len(seeds)} replicates have {len(set(seeds))} {what} seeds; "
            "replicates that share a seed are not replicates, give each its own"
        )


def _same_seeds(arms: Sequence[ArmResult]) -> None:
    first: dict[tuple[float, int], tuple[str, Any]] = {}
    for arm in arms:
        for number, seal in enumerate(arm.trains):
            name, seed = first.setdefault((arm.keep, number), (arm.name, seal.meta.get("seed")))
            if seed != seal.meta.get("seed"):
                raise InputError(
                    f"replicate {number}: arm {arm.name!r} was trained with seed {seal.meta.get('seed')}, {name!r} "
                    f"with {seed}; arms share the seeds of a replicate, or they are not paired"
                )


def _common(arm: ArmResult, field: str) -> Any:
    """Return the value that all trainings of the arm share, or refuse to call them replicates."""
    values = [seal.meta[field] for seal in arm.trains]
    if any(value != values[0] for value in values):
        raise InputError(
            f"arm {arm.name!r} at keep {arm.keep:g}: its replicates differ in {field} ({values}); replicates differ "
            "in nothing but their seeds"
        )
    return values[0]


def _arm_row(arm: ArmResult, sample: Sample, index: Any) -> dict[str, Any]:
    interval = mean_interval(sample.accuracy)
    # None for a class that has no test examples.
    classes = [_mean_or_none(list(values)) for values in zip(*(seal.meta["class_accuracy"] for seal in arm.trains))]
    names = list(index.get("class_names") or range(len(classes)))
    worst, lowest = min(((k, value) for k, value in enumerate(classes) if value is not None), key=lambda pair: pair[1])
    lowest_each = None if sample.by_class is None else worst_class(sample.by_class)
    kept, steps, batch = _common(arm, "num_kept"), _common(arm, "steps"), _common(arm, "batch_size")
    row: dict[str, Any] = {
        "name": arm.name,
        "score": arm.score,
        "protocol": arm.protocol,
        "keep": arm.keep,
        "alpha": arm.alpha,
        "gamma": arm.gamma,
        "full": arm.is_full,
        "n_kept": kept,
        # n_kept is then of one epoch, and examples_touched is more.
        "fresh_every_epoch": arm.rotates,
        "steps": steps,
        "batch_size": batch,
        "epochs": steps / batches_of(kept, batch),
        "examples_touched": round(sum(seal.meta["examples_touched"] for seal in arm.trains) / len(arm.trains)),
        "scoring_steps": arm.scoring_steps,
        "accuracy": sample.accuracy,
        "mean": float(sample.accuracy.mean()),
        "ci95": interval,
        "validation_mean": _mean_or_none([seal.meta.get("validation_accuracy") for seal in arm.trains]),
        "class_accuracy": classes,
        # The class that is worst on average, and each replicate's own worst, which is never above it.
        "worst_class": {"label": worst, "name": str(names[worst]), "accuracy": lowest},
        "worst_class_accuracy": lowest_each,
        "worst_class_mean": None if lowest_each is None else float(lowest_each.mean()),
        "worst_class_ci95": None if lowest_each is None else mean_interval(lowest_each),
        "weighting": arm.trains[0].meta.get("weighting"),
        "seeds": [seal.meta.get("seed") for seal in arm.trains],
    }
    if arm.selections is not None:
        effects = [weight_effect(seal.meta) for seal in arm.selections]
        row["selection"] = {"weight_design_effect": sum(effects) / len(effects)} | {
            name: _first_or_mean([seal.meta.get(name) for seal in arm.selections])
            for name in (*SELECTION_FACTS, *(name for name in PROTOCOL_FACTS if name in arm.selections[0].meta))
        }
    return row


def _mean_or_none(values: list[Any]) -> float | None:
    numbers = [float(value) for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _first_or_mean(values: list[Any]) -> Any:
    """Return the one value where all agree, the mean of numbers otherwise, key by key in records, else None."""
    if all(value == values[0] for value in values):
        return values[0]
    if all(isinstance(value, Mapping) for value in values):
        return {name: _first_or_mean([value.get(name) for value in values]) for name in values[0]}
    if all(isinstance(value, int | float) for value in values):
        return sum(values) / len(values)
    return None


def _comparison_row(keep: float, comparison: Comparison) -> dict[str, Any]:
    return {"keep": keep} | {field.name: getattr(comparison, field.name) for field in fields(comparison)}


def plain(value: Any) -> Any:
    """Return JSON values with rounded, finite numbers. Raises CorruptError on NaN or infinity."""
    import numpy as np

    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float | np.floating):
        if not np.isfinite(value):
            raise CorruptError(f"a result is {value}: every number of a report is finite, so a sealed result is wrong")
        # + 0.0 turns -0.0 into 0.0.
        return round(float(value), DIGITS) + 0.0
    if isinstance(value, np.integer):
        return int(value)
    return value
