"""A finished run made of plausible numbers: real seals and real tables of test predictions, no training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from cluster.fingerprint import sha256
from cluster.record import Seal, Unit
from cluster.storage import Store
from tasks.report.inputs import ArmResult, PageInputs, StageTiming
from tasks.schemas import CORRECTNESS
from tasks.tables import encode_table, part_check

# Gain over random, in points, and spread of the difference between replicates: after the reference figures on MNIST.
PROTOCOLS = {
    "topk": ((-70.5, -47.3, 3.0), 1.2),
    "approximate": ((-19.7, -4.2, 2.7), 0.9),
    "exact": ((-2.1, -0.7, 0.9), 0.5),
    "tempered": ((-3.0, -0.1, 0.05), 0.35),
}
RANDOM = (87.3, 91.2, 94.5)
KEEPS = (0.01, 0.03, 0.10)


def index_seal(*, classes: int = 10, limit: int | None = None, test: int = 2000) -> Seal:
    """Return an index seal without parts."""
    meta = {
        "num_classes": classes, "class_names": [f"digit {k}" for k in range(classes)], "shape": [28, 28],
        "dtype": "uint8", "num_train": 54000, "num_validation": 6000, "num_test": test, "num_unused": 0,
        "num_rows": 60000 + test, "limit": limit, "shards": [],
    }  # fmt: skip
    return Seal("shard", sha256(b"index"), (), meta)


def train_seal(
    store: Store, name: str, replicate: int, accuracy: float, *, kept: int, test: int = 2000, steps: int = 690,
    classes: int = 10, seed: int | None = None, order: bool = True,
) -> Seal:
    """Publish a training's test predictions of about `accuracy` percent and return its seal.

    All trainings of a store fail on much the same hard examples, as trainings do. Without `order` the rows are
    shuffled.
    """
    hardness = np.random.default_rng(5).random(test)
    noise = np.random.default_rng([abs(hash_of(name)), replicate]).normal(0, 0.05, test)
    right = np.zeros(test, bool)
    right[np.argsort(hardness + noise)[: round(accuracy * test / 100)]] = True
    label = np.arange(test, dtype=np.int64) % classes
    predicted = np.where(right, label, (label + 1) % classes)
    ids = np.arange(test, dtype=np.int64) * 7 + 3
    unit = Unit(store, "train", sha256(f"{name}/{replicate}/{kept}".encode()))
    table = pa.table({"example_id": ids, "label": label, "predicted": predicted}, schema=CORRECTNESS)
    if not order:
        table = table.take(np.random.default_rng(0).permutation(test))
    data = encode_table(table, unit.key)
    part = unit.publish_part("test.parquet", data, part_check(unit.key, "test"))
    by_class = [100.0 * float(right[label == k].mean()) for k in range(classes)]
    meta = {
        "steps": steps, "batch_size": 128, "examples_touched": min(steps * 128, kept), "num_kept": kept,
        "accuracy": 100.0 * float(right.mean()), "validation_accuracy": 100.0 * float(right.mean()) - 0.2,
        "class_accuracy": by_class, "final_loss": 0.1, "seed": 1000 + replicate if seed is None else seed,
    }  # fmt: skip
    return unit.publish_seal([part], meta)


def hash_of(name: str) -> int:
    """Return a number that a name stands for, the same in every process."""
    return int(sha256(name.encode())[:8], 16)


def select_seal(
    name: str, replicate: int, protocol: str, keep: float, alpha: float | None, *, classes: int = 10
) -> Seal:
    """Return a selection seal with facts as the select stage states them, without parts."""
    n, m = 54000, round(54000 * keep)
    share = {"random": 0.0, "topk": 1.0}.get(protocol, alpha or 0.0)
    signal = round(share * m)
    rest = m - signal
    weight = {"topk": 1.0, "approximate": 1.0, "random": 1.0}.get(protocol, (n - signal) / max(rest, 1))
    weight = weight**0.5 if protocol == "tempered" else weight
    weights = np.concatenate([np.ones(signal), np.full(rest, weight)])
    weights *= m / weights.sum()
    hard = np.linspace(1, 3, classes)
    spread = (hard / hard.sum() * signal).round().astype(int)
    spread[-1] += signal - spread.sum()
    even = np.full(classes, rest // classes)
    even[0] += rest - even.sum()
    meta: dict[str, Any] = {
        "n": n, "keep": keep, "alpha": alpha, "protocol": protocol, "gamma": 0.5 if protocol == "tempered" else None,
        "seed": 500 + replicate, "score": None if protocol == "random" else "el2n", "direction": "high",
        "score_table_key": None, "estimator": "ht", "num_kept": m, "num_signal": signal, "num_exploration": rest,
        "weight_sum": float(weights.sum()), "ess": float(weights.sum() ** 2 / (weights**2).sum()),
        "design_effect": 1.0 + share, "threshold": None if signal == 0 else float(1.35 - 4 * keep * share),
        "class_counts": {"full": [n // classes] * classes, "signal": spread.tolist(), "exploration": even.tolist()},
        "weight_quantiles": {
            name: float(np.quantile(weights, share, method="lower"))
            for name, share in (("min", 0.0), ("q25", 0.25), ("median", 0.5), ("q75", 0.75), ("max", 1.0))
        },
    }  # fmt: skip
    return Seal("select", sha256(f"{name}/{replicate}/{keep}".encode()), (), meta)


def arm(
    store: Store, name: str, protocol: str, keep: float, accuracies: list[float], *, alpha: float | None = None,
    score: str | None = None, test: int = 2000,
) -> ArmResult:
    """Return an arm whose replicates have about these accuracies; protocol `full` has no selections.

    Trainings of the full data have the steps of their keep.
    """
    full = protocol == "full"
    kept = 54000 if full else round(54000 * keep)
    steps = 1500 if keep > 0.2 else 690 if keep > 0.05 else 300
    trains = [
        train_seal(store, f"{name}@{keep}", i, value, kept=kept, test=test, steps=steps)
        for i, value in enumerate(accuracies)
    ]
    picks = [select_seal(name, i, protocol, keep, alpha) for i in range(len(accuracies))]
    gamma = 0.5 if protocol == "tempered" else None
    return ArmResult(name, score, protocol, keep, alpha, gamma, None if full else picks, trains)


def sweep(store: Store, *, replicates: int = 10, test: int = 2000, long_names: bool = False) -> list[ArmResult]:
    """Return three keeps of five arms, and the full data."""
    rng = np.random.default_rng(11)
    arms = []
    for place, keep in enumerate(KEEPS):
        base = RANDOM[place] + rng.normal(0, 0.4, replicates)
        arms.append(arm(store, "random", "random", keep, base.tolist(), test=test))
        for protocol, (gains, spread) in PROTOCOLS.items():
            alpha = None if protocol == "topk" else 0.5
            name = f"el2n-{protocol}"
            if long_names and protocol in ("exact", "tempered"):
                name = f"el2n early checkpoint, {protocol} protocol, alpha one half, standardized inputs"
            values = np.minimum(base + gains[place] + rng.normal(0, spread, replicates), 99.9)
            arms.append(arm(store, name, protocol, keep, values.tolist(), alpha=alpha, score="el2n", test=test))
    top = 98.1 + rng.normal(0, 0.1, replicates)
    return [*arms, *(arm(store, "full", "full", keep, top.tolist(), test=test) for keep in KEEPS)]


def page_inputs(arms: list[ArmResult]) -> PageInputs:
    """Return what a page shows beside the results."""
    values = np.random.default_rng(3).beta(0.6, 6.0, 54000) * 1.414
    counts, _ = np.histogram(values, bins=64, range=(0.0, 1.41))
    merge = Seal(
        "merge", sha256(b"merge"), (),
        {"columns": ["el2n"], "directions": {"el2n": "high"}, "num_rows": 54000,
         "histograms": {"el2n": {"low": 0.0, "high": 1.41, "counts": counts.tolist()}}},
    )  # fmt: skip
    stages = [
        StageTiming("shard", 2.1, False, 60), StageTiming("proxy", 84.2, True, 3), StageTiming("score", 12.7, True, 60),
        StageTiming("merge", 1.4, True, 60), StageTiming("select", 3.9, True, 75), StageTiming("subset", 5.0, True, 75),
        StageTiming("train", 431.0, True, 80),
    ]  # fmt: skip
    config = {"name": "mnist", "data": {"source": "idx", "train": "data/mnist"}, "proxy": {"seeds": 3, "steps": 900}}
    return PageInputs(arms, merge, stages, config, {"secateur": "0.1.0", "torch": "2.13.0", "python": "3.11"})
