"""`prototype_band` against the slow oracle, and what it promises: budgets, one thread's bits, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import InputError
from flows.cli import main
from flows.config import ArmSpec
from tasks.samplers import prototype_band
from tasks.samplers.prototype_band import clusters, medoids, prototypes
from tasks.seeding import derive_seed
from tasks.selection import ArrayRows, SelectionSpec, calibrated_selection, rows
from tasks.selection.prototypes import Features
from tasks.tables import encode_table
from tests.oracles import prototypes as oracle
from tests.oracles import selection as order
from tests.oracles import slices
from tests.tasks.selection_case import cut, random_rows

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


def band(keep: float, beta: float, width: float, **settings: Any) -> SelectionSpec:
    """Return a spec of prototype_band over el2n."""
    return SelectionSpec(protocol="prototype_band", score="el2n", keep=keep, beta=beta, width=width, **settings)


def grid(n: int, seed: int, values: int = 9, width: int = 3) -> F64:
    """Return features (n, width) on a grid of quarters: many rows are equal, and many equally near to a mean."""
    return np.random.default_rng(seed).integers(0, values, (n, width)) / 4


def features_of(table: ArrayRows, values: F64) -> Callable[[I64], Features]:
    """Return what gives the features of examples by id, as float32."""
    where = {int(example): place for place, example in enumerate(table.example_id)}
    return lambda ids: Features(values[[where[int(example)] for example in ids]].astype(np.float32), {"fitted_on": 5})


def test_k_means_is_lloyds_from_the_same_first_centres() -> None:
    from sklearn.cluster import kmeans_plusplus

    for trial in range(12):
        generator = np.random.default_rng(trial)
        n, k = int(generator.integers(12, 70)), int(generator.integers(2, 9))
        x = generator.normal(size=(n, 4)) + 3 * generator.integers(0, 3, (n, 1))
        _, first = kmeans_plusplus(x - x.mean(axis=0), k, random_state=trial)
        assert clusters(x, k, trial, batched=False).tolist() == oracle.lloyd(x.tolist(), x[first].tolist())


def test_medoids_are_exact_and_equally_near_ones_go_by_hash() -> None:
    pairs = 0
    for trial in range(150):
        generator = np.random.default_rng(trial)
        n = int(generator.integers(2, 40))
        x, ids = grid(n, trial, int(generator.integers(2, 12))), np.unique(generator.integers(-(2**62), 2**62, n))
        labels = generator.integers(0, max(1, n // 2), n)
        truth = oracle.prototypes(x.tolist(), ids.tolist(), labels.tolist(), len(set(labels.tolist())), trial)
        assert sorted(ids[medoids(x, ids, labels, trial)].tolist()) == truth
        pairs += int((np.bincount(labels) == 2).sum())
    # Of a pair both members are equally near.
    assert pairs > 100


def test_every_row_is_the_oracles_whatever_the_pieces() -> None:
    for trial in range(24):
        generator = np.random.default_rng(trial)
        n = int(generator.integers(40, 200))
        table = random_rows(n, trial, 12 if trial % 2 else None, classes=1 + trial % 4)
        assert table.score is not None and table.code is not None
        values = grid(n, trial, 9 if trial % 3 else 40)
        keep, beta = float(generator.uniform(0.05, 0.3)), float(generator.choice([0, 0.1, 0.3]))
        width = min(1 - beta, keep * float(generator.uniform(1.05, 3)))
        classes = ("proportional", "balanced", None)[trial % 3]
        chosen = band(keep, beta, width, classes=classes)
        got = calibrated_selection(
            cut(table, 1 + trial % 5, trial), chosen, trial, features=features_of(table, values), threads=1 + trial % 2
        )
        ids, codes = table.example_id.tolist(), dict(zip(table.example_id.tolist(), table.code.tolist()))
        start = round(beta * n)
        members = order.rank(ids, table.score.tolist(), "high", trial)[start : start + round(width * n)]
        groups = [sorted(example for example in members if codes[example] == g) for g in range(table.num_codes)]
        budgets = slices.class_budgets(classes or "balanced", round(keep * n), [len(group) for group in groups], trial)
        expected: dict[int, float] = {}
        for number, (group, budget) in enumerate(zip(groups, budgets)):
            at = np.array(group, dtype=np.int64)
            x = features_of(table, values)(at).values.astype(np.float64)
            seed = derive_seed("prototypes", trial, number) % 2**32
            labels = clusters(x, budget, seed, False).tolist() if 0 < budget < len(group) else list(range(len(group)))
            kept = oracle.prototypes(x.tolist(), group, labels, budget, trial) if budget else []
            expected |= {example: budget / len(group) for example in kept}
        rows_of = got.table()
        assert dict(zip(rows_of["example_id"].to_pylist(), rows_of["inclusion_prob"].to_pylist())) == expected
        assert got.num_rows == round(keep * n) and set(rows_of["weight"].to_pylist()) == {1.0}
        assert rows_of["arm"].unique().to_pylist() == ["exploration"]


def test_it_draws_from_the_members_of_band_with_its_budgets() -> None:
    table = random_rows(600, 3, classes=3)
    more: dict[str, Any] = {"score": "el2n", "keep": 0.05, "beta": 0.1, "width": 0.2}
    plain = calibrated_selection(table, SelectionSpec(protocol="band", **more), 4)
    wanted = SelectionSpec(protocol="prototype_band", **more)
    got = calibrated_selection(table, wanted, 4, features=features_of(table, grid(600, 1)))
    same = ("n", "num_kept", "num_exploration", "dropped", "drawn_from", "score_range", "class_counts", "estimator", "population",
            "classes", "ess", "covered")  # fmt: skip
    assert {name: got.facts[name] for name in same} == {name: plain.facts[name] for name in same}
    assert sorted(got.table()["inclusion_prob"].to_pylist()) == sorted(plain.table()["inclusion_prob"].to_pylist())
    said = {name.decode(): json.loads(value) for name, value in got.table().schema.metadata.items()}
    # There is no design, and no estimate is made.
    assert (said["estimator"], said["inclusion"], said["features"], said["components"]) == ("unweighted", "nominal", "pca", 40)
    assert "inclusion" not in plain.metadata() and "features" not in plain.metadata()
    assert (got.facts["filled"], got.facts["batched_groups"], got.facts["fitted_on"]) == (0, 0, 5)


def test_equal_rows_and_empty_clusters_still_give_the_budget() -> None:
    ids = np.arange(40, dtype=np.int64) * 7 - 100
    for values, filled in ((np.ones((40, 2)), 19), (np.repeat(np.eye(4), 10, axis=0), 16)):
        found = prototypes(values, ids, 20, 1, 0)
        assert len(set(found.place.tolist())) == 20 and found.filled == filled
    for budget in (0, 1, 39, 40):
        assert len(prototypes(grid(40, 1, 2, 1), ids, budget, 1, 0).place) == budget
    table = random_rows(300, 5, classes=2)
    equal = calibrated_selection(table, band(0.1, 0.1, 0.4), 2, features=features_of(table, np.zeros((300, 2))))
    assert equal.num_rows == 30 and equal.facts["filled"] == 28
    assert np.add(equal.facts["class_counts"]["exploration"], equal.facts["class_counts"]["signal"]).tolist() == [15, 15]


def test_the_same_bytes_for_any_pieces_threads_and_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    table = random_rows(3000, 0, 50, classes=3)
    values = np.random.default_rng(1).normal(size=(3000, 12))
    chosen = band(0.1, 0.05, 0.6)

    def written(source: Any, **more: Any) -> list[bytes]:
        made = calibrated_selection(source, chosen, 9, features=features_of(table, values), **more)
        return [encode_table(part, "key") for part in made.tables(100)]

    expected = written(table)
    for shards, seed, threads in ((7, 1, 1), (64, 2, 3)):
        assert written(cut(table, shards, seed), threads=threads) == expected
    # More threads of BLAS and OpenMP, and fewer rows a chunk of scikit-learn's.
    with threadpool_limits(limits=4):
        assert written(table) == expected
    monkeypatch.setattr(rows, "BATCH_ROWS", 64)
    assert written(table) == expected


def test_k_means_goes_by_batches_above_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prototype_band, "BATCHED_ABOVE", 900)
    table = random_rows(600, 6, classes=2)
    assert table.code is not None
    table.code[:] = np.arange(600) % 20 == 0
    values = np.random.default_rng(2).normal(size=(600, 4))
    made = [calibrated_selection(table, band(0.1, 0, 0.9), 3, features=features_of(table, values)) for _ in range(2)]
    assert made[0].table().equals(made[1].table())
    # Only the large class.
    assert made[0].num_rows == 60 and made[0].facts["batched_groups"] == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(60), "one row a member"),
        (np.zeros((59, 2)), "one row a member"),
        (np.zeros((60, 0)), "one row a member"),
        (np.where(np.arange(120).reshape(60, 2) == 7, np.nan, 1.0), "1 of 60 members .* not finite"),
    ],
)
def test_features_that_are_none_are_refused(values: F64, message: str) -> None:
    with pytest.raises(InputError, match=message):
        calibrated_selection(random_rows(100, 1), band(0.1, 0.1, 0.6), 0, features=lambda ids: Features(values))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "prototype_band", "keep": 0.1, "beta": 0.1}, "prototype_band needs width"),
        ({"protocol": "prototype_band", "keep": 0.1, "width": 0.2}, "prototype_band needs beta"),
        ({"protocol": "prototype_band", "keep": 0.3, "beta": 0.3, "width": 0.2}, "raise width"),
        ({"protocol": "band", "keep": 0.1, "beta": 0.1, "width": 0.2, "features": "pca"}, "takes no features .*prototype_band"),
        ({"protocol": "topk", "keep": 0.1, "components": 40}, "takes no components .*use prototype_band"),
        (
            {"protocol": "prototype_band", "keep": 0.1, "beta": 0.1, "width": 0.2, "missing": "explore"},
            "set missing to exclude or refuse",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SelectionSpec(score="el2n", **settings)


def test_settings_reach_the_keys_of_this_protocol_alone() -> None:
    one = band(0.1, 0.1, 0.2)
    assert one.effective() == band(0.1, 0.1, 0.2, features="pca", components=40, classes="balanced").effective()
    others = [one, band(0.1, 0.1, 0.2, features="proxy"), band(0.1, 0.1, 0.2, components=10), band(0.1, 0.1, 0.3)]
    assert len({json.dumps(other.effective(), sort_keys=True) for other in others}) == len(others)
    exact = SelectionSpec(protocol="exact", score="el2n", alpha=0.5, keep=0.1)
    assert not {"features", "components"} & {*exact.effective(), *exact.identity(), *ArmSpec(protocol="topk").identity()}
    arm = ArmSpec(protocol="prototype_band", score="el2n", beta=0.1, width=0.2, features="proxy")
    assert arm.label == "prototype_band el2n beta=0.1 width=0.2 features=proxy"
    assert arm.at(0.1) == band(0.1, 0.1, 0.2, features="proxy", missing="exclude")


def test_a_bare_table_has_no_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="give `features`"):
        calibrated_selection(random_rows(100, 1), band(0.1, 0.1, 0.2), 0)
    pq.write_table(pa.table({"id": np.arange(50), "el2n": np.random.default_rng(0).random(50)}), tmp_path / "scores.parquet")
    words = ["select", str(tmp_path / "scores.parquet"), "--score", "el2n", "--direction", "high", "--keep", "0.1", "--protocol",
             "prototype_band", "--param", "beta=0.1", "--param", "width=0.4", "--out", str(tmp_path / "out.parquet")]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["secateur", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "a table of scores has none" in capsys.readouterr().err
    assert not (tmp_path / "out.parquet").exists()
