"""Examples that cannot be scored: found by bisection, left out with their cause, and their neighbours' bits unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cluster.errors import CorruptError, InputError, StageError
from cluster.record import Part, Seal
from cluster.storage import Store
from tasks.bisection import Bisection, OverBudgetError
from tasks.dataset import Dataset
from tasks.merge import MergeInputs, merge_stage
from tasks.pool import SerialPool
from tasks.proxy import ProxyInputs, ProxySpec, proxy_stage
from tasks.schemas import TRAIN
from tasks.score import ScoreInputs, ScoreSpec, score_stage
from tasks.score_worker import score_unit
from tasks.selecting import SelectInputs, SelectionUnit, selection_key, selection_stage
from tasks.selection import SelectionSpec
from tasks.selection.stage import load_selection
from tasks.shard import shard_stage
from tasks.sources.spec import DataSpec
from tasks.tables import load_part
from tests.tasks.stage_case import CountingPool, Killed, dying_at

ROWS, WIDTH = 400, 5
# Features that only scoring meets: on the first the model raises, on the second it gives NaN.
RAISES, NAN = 77.0, 88.0
SPEC = ScoreSpec.model_validate({"scores": ["el2n", "grand", "loss", "random"], "forward_rows": 32, "max_bad_fraction": 0.1})


def fragile(input_shape: tuple[int, ...], num_classes: int) -> torch.nn.Module:
    """Return a model that cannot take some inputs in eval mode; training never breaks it."""

    class Fragile(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.training and (x[:, 0] == RAISES).any():
                raise RuntimeError(f"no such thing as {RAISES} at 0x{id(x):x}")
            out = super().forward(x)
            return torch.where(x[:, :1] == NAN, torch.full_like(out, float("nan")), out) if not self.training else out

    return Fragile(input_shape[0], num_classes)


PROXY = ProxySpec.model_validate(
    {"model": {"use": f"{__name__}:fragile"}, "seeds": 2, "steps": 20, "batch_size": 32, "lr": 0.01}
)  # fmt: skip


class Case:
    """Hold data before and after some train examples were spoiled, with proxies of the data before."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(str(folder / "store"))
        generator = np.random.default_rng(3)
        labels = generator.integers(0, 3, ROWS)
        self.x = (generator.normal(size=(ROWS, WIDTH)) + labels[:, None]).astype(np.float32)
        self.labels = labels
        self.folder = folder
        self.tame = self.data("tame", self.x)
        self.index = shard_stage(self.tame, self.store, SerialPool())
        self.proxies = proxy_stage(PROXY, ProxyInputs(self.tame, self.index, (1.0,), "", 0), self.store, SerialPool())
        train = Dataset(self.tame, self.index, self.store).ids(TRAIN)
        # Neighbours, the ends of shards, and one alone; ids are rows.
        self.train = train.tolist()
        self.raising = [self.train[i] for i in (0, 40, 41)]
        self.nan = [self.train[i] for i in (42, 150, len(self.train) - 1)]
        wild = self.x.copy()
        wild[self.raising, 0], wild[self.nan, 0] = RAISES, NAN
        self.wild = self.data("wild", wild)

    def data(self, name: str, x: np.ndarray[Any, Any]) -> DataSpec:
        path = self.folder / name / "a.parquet"
        path.parent.mkdir()
        features = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), WIDTH)
        pq.write_table(pa.table({"id": np.arange(ROWS), "features": features, "label": self.labels}), path, row_group_size=10)
        source = {"use": "parquet", "args": {"id_column": "id"}}
        return DataSpec(source=source, train=str(path.parent), shard_rows=70, test_fraction=0.1)

    def inputs(self, data: DataSpec, shard_rows: int = 70) -> ScoreInputs:
        data = data.model_copy(update={"shard_rows": shard_rows})
        index = shard_stage(data, self.store, SerialPool())
        return ScoreInputs(data, index, PROXY, self.proxies, "", 0)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECATEUR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("bad"))


@pytest.fixture(scope="module")
def scored(case: Case) -> Seal:
    return score_stage(SPEC, case.inputs(case.wild), case.store, SerialPool())


def rows_of(store: Store, parts: Any) -> dict[int, dict[str, Any]]:
    return {row["example_id"]: row for part in parts for row in load_part(store, part).to_pylist()}


def left_out(store: Store, seal: Seal) -> dict[int, dict[str, Any]]:
    return rows_of(store, [Part(**record) for record in seal.meta["quarantine"]["parts"]])


def test_neighbours_have_the_bits_they_have_without_bad_examples(case: Case, scored: Seal) -> None:
    whole = rows_of(case.store, score_stage(SPEC, case.inputs(case.tame), case.store, SerialPool()).parts)
    rows = rows_of(case.store, scored.parts)
    assert sorted(whole) == case.train and scored.meta["num_rows"] == len(rows)
    assert rows == {i: row for i, row in whole.items() if i not in case.raising + case.nan}


def test_bad_examples_are_in_the_quarantine_with_their_cause(case: Case, scored: Seal) -> None:
    found = left_out(case.store, scored)
    assert sorted(found) == sorted(case.raising + case.nan)
    assert {found[i]["error_class"] for i in case.raising} == {"scoring_failed"}
    assert {found[i]["error_class"] for i in case.nan} == {"non_finite_score"}
    assert {found[i]["message"] for i in case.raising} == {"RuntimeError: no such thing as 77.0 at 0x"}
    assert all("el2n" in found[i]["message"] and "proxies [0, 1]" in found[i]["message"] for i in case.nan)
    assert scored.meta["quarantine"]["causes"] == {"non_finite_score": 3, "scoring_failed": 3}


@pytest.mark.parametrize("shard_rows", [10, 400])
def test_scores_and_quarantine_do_not_depend_on_the_sharding(case: Case, scored: Seal, shard_rows: int) -> None:
    seal = score_stage(SPEC, case.inputs(case.wild, shard_rows), case.store, SerialPool())
    assert rows_of(case.store, seal.parts) == rows_of(case.store, scored.parts)
    assert left_out(case.store, seal) == left_out(case.store, scored)


def test_over_the_budget_the_stage_fails_with_a_table_and_keeps_its_parts(case: Case, scored: Seal) -> None:
    # The first shard holds four of them.
    tight = SPEC.model_copy(update={"max_bad_fraction": 4.5 / len(case.train), "scores": SPEC.scores[:1]})
    inputs = case.inputs(case.wild)
    unit, _ = score_unit(tight, inputs, case.store)
    with pytest.raises(StageError, match=r"score\.max_bad_fraction 0\.01\d+ allows 4") as caught:
        score_stage(tight, inputs, case.store, SerialPool())
    assert "scoring_failed" in str(caught.value) and f"example_id {case.raising[0]}" in str(caught.value)
    assert unit.seal() is None and case.store.list(f"{unit.folder}/parts") and caught.value.exit_code == 1
    # Parts that are there are kept under another budget, which is no part of any key.
    pool = CountingPool()
    seal = score_stage(tight.model_copy(update={"max_bad_fraction": 0.1}), inputs, case.store, pool)
    assert len(pool.items) < len(Dataset(case.wild, inputs.index, case.store).shards())
    # What is sealed is measured by who asks.
    with pytest.raises(StageError, match="allows 4"):
        score_stage(tight, inputs, case.store, SerialPool())
    assert left_out(case.store, seal).keys() == left_out(case.store, scored).keys()


def test_a_killed_stage_leaves_no_part_without_its_quarantine(case: Case, scored: Seal) -> None:
    spec = SPEC.model_copy(update={"scores": SPEC.scores[2:3]})
    inputs = case.inputs(case.wild)
    unit, _ = score_unit(spec, inputs, case.store)
    for number in range(1, 5):
        with pytest.raises(Killed):
            score_stage(spec, inputs, dying_at(case.store, number, unit.folder), SerialPool())
    seal = score_stage(spec, inputs, case.store, SerialPool())
    assert left_out(case.store, seal).keys() == left_out(case.store, scored).keys()
    assert seal.meta["num_rows"] == scored.meta["num_rows"]


def test_merge_accounts_for_what_has_no_score(case: Case, scored: Seal) -> None:
    inputs = case.inputs(case.wild)
    merged = merge_stage(MergeInputs(case.wild, inputs.index, scored), case.store, SerialPool())
    assert sorted(rows_of(case.store, merged.parts)) == sorted(set(case.train) - set(case.raising + case.nan))
    assert merged.meta["quarantine"] == scored.meta["quarantine"] and merged.meta["num_rows"] == scored.meta["num_rows"]
    assert sum(merged.meta["sortable"]["el2n"].values()) == merged.meta["num_rows"]
    # A quarantine that names another example does not add up.
    meta = {**scored.meta, "quarantine": {**scored.meta["quarantine"], "parts": []}}
    other = Seal(scored.stage, "f" * 64, scored.parts, meta)
    with pytest.raises(CorruptError, match="missing"):
        merge_stage(MergeInputs(case.wild, inputs.index, other), case.store, SerialPool())


@pytest.mark.parametrize("policy", ["refuse", "exclude", "explore"])
def test_a_selection_says_what_it_does_with_them(case: Case, scored: Seal, policy: str) -> None:
    index = case.inputs(case.wild).index
    merged = merge_stage(MergeInputs(case.wild, index, scored), case.store, SerialPool())
    spec = SelectionSpec(score="el2n", protocol="exact", keep=0.5, alpha=0.5, missing=policy)
    unit = (selection_key(spec, 1, merged.key), SelectionUnit(spec, 1))
    inputs = SelectInputs(case.wild, index, merged)
    if policy == "refuse":
        with pytest.raises(StageError, match=r"6 of \d+ train examples have no score[\s\S]*scoring_failed +3"):
            selection_stage([unit], inputs, case.store, SerialPool())
        return
    seal = selection_stage([unit], inputs, case.store, SerialPool())[0]
    n = len(case.train) - (6 if policy == "exclude" else 0)
    bad = set(case.raising + case.nan)
    meta = seal.meta
    assert (meta["n"], meta["n_missing"], meta["missing"]) == (n, 6, policy)
    assert meta["missing_causes"] == {"non_finite_score": 3, "scoring_failed": 3}
    assert meta["num_kept"] == round(0.5 * n) and sum(meta["class_counts"]["full"]) == n
    table = load_selection(case.store, seal)
    arms = dict(zip(table.column("example_id").to_pylist(), table.column("arm").to_pylist()))
    drawn = bad & set(arms)
    assert not drawn if policy == "exclude" else all(arms[i] == "exploration" for i in drawn)
    weights = table.column("weight").to_numpy().astype(np.float64)
    # E[sum of weights] = m for the population; exact in the signal and in the exploration's share of it.
    assert weights.sum() == pytest.approx(meta["num_kept"], rel=1e-5)
    metadata = load_part(case.store, seal.parts[0]).schema.metadata
    assert metadata[b"n_missing"] == b"6" and metadata[b"missing"] == f'"{policy}"'.encode()


Run = Callable[[np.ndarray[Any, Any]], dict[str, np.ndarray[Any, Any]]]


def batch(bad: dict[int, str], passes: list[int], size: int = 64) -> Run:
    """Return a pass over `size` slots that raises, or is NaN, where `bad` says so."""

    def run(slots: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        passes.append(len(slots))
        if any(bad.get(int(slot)) == "raise" for slot in slots):
            raise ValueError("no")
        values = np.arange(size, dtype=np.float32)[None].repeat(2, 0)
        values[1, [slot for slot in slots.tolist() if bad.get(slot) == "nan"]] = np.nan
        # Slots that were not asked for mean nothing.
        values[:, np.setdiff1d(np.arange(size), slots)] = np.nan
        return {"s": values}

    return run


def test_bisection_finds_every_mixture_of_bad_slots() -> None:
    generator = np.random.default_rng(0)
    for trial in range(150):
        count = int(generator.integers(1, 65))
        chosen = generator.permutation(count)[: generator.integers(0, min(count, 6) + 1)].tolist()
        bad = {slot: ("raise", "nan")[int(generator.integers(2))] for slot in chosen}
        bisection = Bisection(batch(bad, []), allowed=64)
        scores, good = bisection.score(count, np.arange(count) + 1000 * trial)
        assert sorted(bisection.found) == sorted(slot + 1000 * trial for slot in bad)
        assert (good is None) == (not bad)
        good = np.ones(count, dtype=bool) if good is None else good
        assert np.flatnonzero(~good).tolist() == sorted(bad)
        assert all((scores["s"][:, slot] == slot).all() for slot in np.flatnonzero(good))


@pytest.mark.parametrize("how", ["raise", "nan"])
@pytest.mark.parametrize("allowed", [0, 3, 20])
def test_a_model_that_fails_on_everything_ends_early(how: str, allowed: int) -> None:
    passes: list[int] = []
    with pytest.raises(OverBudgetError) as caught:
        Bisection(batch(dict.fromkeys(range(64), how), passes), allowed).score(64, np.arange(64))
    assert len(caught.value.found) == allowed + 1 and len(passes) <= 8 + 2 * (allowed + 1)


def test_what_is_no_examples_fault_is_blamed_on_none() -> None:
    def company(slots: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        if len(slots) > 8:
            raise ValueError("too many at once")
        return {"s": np.zeros((1, 64), np.float32)}

    with pytest.raises(ValueError, match="too many at once"):
        Bisection(company, 64).score(64, np.arange(64))

    for error in (torch.OutOfMemoryError("full"), MemoryError("full"), InputError("no such layer")):
        passes: list[int] = []

        def broken(slots: Any, error: Exception = error, passes: list[int] = passes) -> Any:
            passes.append(len(slots))
            raise error

        with pytest.raises(type(error)):
            Bisection(broken, 64).score(64, np.arange(64))
        assert passes == [64]
