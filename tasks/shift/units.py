"""The shift stage: features of a sample of the train split, then the figures of each selection against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.fingerprint import stage_key
from tasks.shift.spec import PROXY, ShiftSpec

if TYPE_CHECKING:
    from cluster.record import Seal
    from cluster.storage import Store
    from tasks.pool import Pool
    from tasks.score import ScoreInputs, ScoreSpec
    from tasks.sources.spec import DataSpec

VERSION = 2


def features_key(
    spec: ShiftSpec, index_key: str, proxies: Sequence[str] = (), score: ScoreSpec | None = None
) -> str:
    """Return the key of the features: a function of the data and, where they are a proxy's, of the first of `proxies` and of
    the passes of the score stage; of no selection."""
    identity: dict[str, Any] = spec.feature_identity()
    if spec.features != PROXY or score is None:
        return stage_key("features", VERSION, identity, [index_key])
    identity |= {"numerics": score.numerics.identity(), "forward_rows": score.forward_rows}
    return stage_key("features", VERSION, identity, [index_key, *proxies[:1]])


def shift_key(spec: ShiftSpec, score: str, selection_key: str, features: str, merge_key: str) -> str:
    """Return the key of one selection's figures; `score` is the column whose bins are compared."""
    return stage_key(
        "shift", VERSION, {**spec.measure_identity(), "score": score}, [selection_key, features, merge_key]
    )


@dataclass(frozen=True)
class ShiftUnit:
    """Describe one selection to measure: its seal, its subset's, and the column whose bins are compared."""

    selection: Seal
    subset: Seal
    score: str

    def __str__(self) -> str:
        return f"selection {self.selection.key[:12]}"


@dataclass(frozen=True)
class ShiftInputs:
    """Hold what the shift stage reads beside the selections; `features` is the key of the features."""

    data: DataSpec
    index: Seal
    merge: Seal
    features: str
    scoring: tuple[ScoreSpec, ScoreInputs] | None = None
    """How the score stage passes inputs through the first proxy; None where features are the inputs themselves."""


def shift_stage(
    spec: ShiftSpec, units: Sequence[tuple[str, ShiftUnit]], inputs: ShiftInputs, store: Store, pool: Pool
) -> list[Seal]:
    """Publish the features and the figures of every selection without a seal; return the figures' seals in order of `units`.

    The unit `features` has the parts sample.parquet (example_id ascending, label, cell, coordinates), basis.npy (mean, then
    components, (1 + k, d) float32) and centres.npy (cells, k). A unit `shift` has no part: `seal.meta` holds score,
    num_kept, num_compared, class_tv, score_tv, auc, energy, partition_tv and closed_form, each {raw, weighted}, bins,
    cells, empty_cells, empty_share, empty_mass, and points [arm, x, y] to draw. Numbers have six decimals.
    """
    from tasks.shift.worker import run_shift_stage

    return run_shift_stage(spec, units, inputs, store, pool)
