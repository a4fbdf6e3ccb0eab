"""The select stage: the subset table of every arm and replicate, with inclusion probabilities and weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cluster.fingerprint import stage_key
from tasks.selection.spec import SelectionSpec
from tasks.spec import Resources
from tasks.versions import minor_version

if TYPE_CHECKING:
    from cluster.record import Seal
    from cluster.storage import Store
    from tasks.pool import Pool
    from tasks.score import ScoreInputs, ScoreSpec
    from tasks.sources.spec import DataSpec

VERSION = 4


def selection_key(spec: SelectionSpec, seed: int, source_key: str) -> str:
    """Return the key of one selection.

    `source_key` is the merge key, or the index key for protocols that read no score. The replicate's number
    is not in it: its seed is.
    """
    identity = {**spec.effective(), "seed": seed}
    digests = {}
    if "features" in spec.params():
        digests["sklearn"] = minor_version("scikit-learn")
    return stage_key("select", VERSION, identity, [source_key], digests)


@dataclass(frozen=True)
class SelectionUnit:
    """Describe one selection to make; `seed` is the selection seed of its replicate, shared by all arms."""

    spec: SelectionSpec
    seed: int
    replicate: int = 0


@dataclass(frozen=True)
class SelectInputs:
    """Hold what the select stage reads; `merge` may be None where no selection reads a score."""

    data: DataSpec
    index: Seal
    merge: Seal | None = None
    resources: Resources = field(default_factory=Resources)
    scoring: tuple[ScoreSpec, ScoreInputs] | None = None
    """How the scores were made and from which proxies, which `features: proxy` reads."""


def selection_stage(
    units: Sequence[tuple[str, SelectionUnit]], inputs: SelectInputs, store: Store, pool: Pool
) -> list[Seal]:
    """Publish every selection that has no seal and return all seals, in the order of `units`.

    Parts `selection-00000.parquet`, ... hold 2^22 rows each, ascending example_id, whatever the shards. `seal.meta`:
    n (the population: train examples, less those that `missing: exclude` left out), missing, n_missing, missing_causes,
    keep, alpha, protocol, gamma and what else the protocol takes (classes, beta, width, strata, weights, floor), seed,
    score, direction, score_table_key, estimator (ht, raked, or unweighted), population (what the weights speak for: all, the
    signal, the retained, the band), by, num_kept, num_signal, num_exploration, covered, uncovered_groups, weight_sum, ess,
    design_effect, threshold, class_counts {full, signal, exploration}, weight_quantiles; dropped, drawn_from and
    score_range of ccs and the bands; bins, margins, bound and calibration of raked; of prototype_band features, components,
    feature_width, feature_components, fitted_on, filled (prototypes that no cluster gave), batched_groups, and inclusion,
    which is nominal; where alpha was auto, alpha is what it came to, allocation {alpha, ratio, flat, flat_within,
    flat_stretches, rank_columns, norm_columns, cross_fitted} says how, and variance_curve holds (alpha, Var(alpha)/Var_random).
    """
    from tasks.selection.stage import run_selection_stage

    return run_selection_stage(units, inputs, store, pool)
