"""Every malformed file ends in one InputError with an untouched store, or in the quarantine with the right count."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster import errors
from cluster.errors import InputError
from cluster.record import Part, Seal
from cluster.storage import Store
from tasks.dataset import Dataset
from tasks.merge import MergeInputs, merge_stage
from tasks.pool import SerialPool
from tasks.schemas import TRAIN
from tasks.shard import shard_stage
from tasks.sources.spec import DataSpec
from tasks.standalone import select_file
from tasks.tables import load_part
from tests.contracts.malformed_case import QUARANTINED, REFUSED
from tests.own_process import in_own_process

pytestmark = pytest.mark.timeout(300)

# Nothing of the size that a lying header states may be set aside.
MOST_MEMORY = 2**27


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield


def one_message(code: int, text: str) -> None:
    """Assert that an error is one that a person can act on."""
    assert code == 2 and 20 < len(text) < 4000 and "Traceback" not in text
    assert text.splitlines()[0].strip()


def refuse_all(folder: str) -> dict[str, list[Any]]:
    """Return, by name, the error's class, exit code and text, the peak of traced memory, and whether there is a store.

    Leaves tracing on: for a process of its own.
    """
    found: dict[str, list[Any]] = {}
    tracemalloc.start()
    for number, (name, build) in enumerate(REFUSED.items()):
        place = Path(folder) / str(number)
        place.mkdir()
        spec = build(place / "data")
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        try:
            shard_stage(spec, Store(str(place / "store")), SerialPool())
            raised: list[Any] = [None, 0, ""]
        except Exception as error:
            raised = [type(error).__name__, getattr(error, "exit_code", 1), str(error)]
        found[name] = [*raised, tracemalloc.get_traced_memory()[1] - before, (place / "store").exists()]
    return found


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Return what came of every input that is to be refused."""
    found: dict[str, list[Any]] = in_own_process(refuse_all, str(tmp_path_factory.mktemp("refused")))
    return found


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_written(refused: dict[str, list[Any]], name: str) -> None:
    kind, code, text, peak, store_is_there = refused[name]
    assert issubclass(getattr(errors, str(kind), OSError), InputError), (kind, text)
    assert peak < MOST_MEMORY
    one_message(code, text)
    assert not store_is_there


@pytest.mark.parametrize("name", QUARANTINED)
def test_quarantined_with_the_right_count(tmp_path: Path, name: str) -> None:
    build, causes = QUARANTINED[name]
    store = Store(str(tmp_path / "store"))
    spec = build(tmp_path / "data")
    seal = shard_stage(spec, store, SerialPool())
    fact = seal.meta["quarantine"]
    assert fact["causes"] == causes and fact["rows"] == seal.meta["num_quarantined"] == sum(causes.values())
    tables = [load_part(store, Part(**part)) for part in fact["parts"]]
    assert sum(table.num_rows for table in tables) == fact["rows"]
    assert all(str(tmp_path) not in text for table in tables for text in table.column("message").to_pylist())
    loaded = Dataset(spec, seal, store).load(TRAIN)
    assert np.isfinite(loaded.x.astype(np.float64)).all() and len(loaded) == seal.meta["num_train"]


def test_there_are_at_least_sixty() -> None:
    assert len(REFUSED) + len(QUARANTINED) + len(OWN_SCORES) >= 100


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, DataSpec, Seal]:
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECATEUR_CACHE", str(folder / "cache"))
        spec = DataSpec(source="sklearn", train="iris")
        store = Store(str(folder / "store"))
        return store, spec, shard_stage(spec, store, SerialPool())


OWN_SCORES: dict[str, Any] = {
    "no id column": lambda ids: {"key": ids, "s": np.ones(len(ids))},
    "no score": lambda ids: {"example_id": ids, "name": ["x"] * len(ids)},
    "ids that are floats": lambda ids: {"example_id": ids.astype(np.float64), "s": np.ones(len(ids))},
    "ids that are text": lambda ids: {"example_id": [str(i) for i in ids], "s": np.ones(len(ids))},
    "ids that are null": lambda ids: {"example_id": pa.array([None, *ids[1:].tolist()]), "s": np.ones(len(ids))},
    "ids that repeat": lambda ids: {"example_id": np.r_[ids[1:], ids[1:2]], "s": np.ones(len(ids))},
    "ids beyond int64": lambda ids: {"example_id": ids.astype(np.uint64) | np.uint64(2**63), "s": np.ones(len(ids))},
    "ids that are negative": lambda ids: {"example_id": -1 - np.arange(len(ids)), "s": np.ones(len(ids))},
    "one id too few": lambda ids: {"example_id": ids[1:], "s": np.ones(len(ids) - 1)},
    "one id too many": lambda ids: {"example_id": np.r_[ids, 5], "s": np.ones(len(ids) + 1)},
    "a score that is NaN": lambda ids: {"example_id": ids, "s": np.r_[np.nan, np.ones(len(ids) - 1)]},
    "a score that is infinite": lambda ids: {"example_id": ids, "s": np.r_[np.inf, np.ones(len(ids) - 1)]},
    "a score that is null": lambda ids: {"example_id": ids, "s": pa.array([None] + [1.0] * (len(ids) - 1))},
    "a score beyond float32": lambda ids: {"example_id": ids, "s": np.r_[1e300, np.ones(len(ids) - 1)]},
    "labels of other data": lambda ids: {"example_id": ids, "s": np.ones(len(ids)), "label": np.full(len(ids), 7)},
    "no rows": lambda ids: {"example_id": ids[:0], "s": np.ones(0)},
}


@pytest.mark.parametrize("name", OWN_SCORES)
def test_own_scores_are_refused(tmp_path: Path, indexed: tuple[Store, DataSpec, Seal], name: str) -> None:
    store, spec, seal = indexed
    ids = Dataset(spec, seal, store).ids(TRAIN)
    pq.write_table(pa.table(OWN_SCORES[name](ids)), tmp_path / "scores.parquet")
    before = store.list("stages")
    with pytest.raises(InputError) as caught:
        merge_stage(MergeInputs(spec, seal, None, str(tmp_path / "scores.parquet")), store, SerialPool())
    one_message(caught.value.exit_code, str(caught.value))
    assert store.list("stages") == before


@pytest.mark.parametrize("cut", range(0, 10))
def test_own_scores_that_are_cut_short(tmp_path: Path, indexed: tuple[Store, DataSpec, Seal], cut: int) -> None:
    store, spec, seal = indexed
    path, out = tmp_path / "scores.parquet", tmp_path / "out.parquet"
    ids = Dataset(spec, seal, store).ids(TRAIN)
    pq.write_table(pa.table({"example_id": ids, "s": np.ones(len(ids))}), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * cut // 10])
    before = store.list("stages")
    with pytest.raises(InputError) as caught:
        merge_stage(MergeInputs(spec, seal, None, str(path)), store, SerialPool())
    one_message(caught.value.exit_code, str(caught.value))
    with pytest.raises(InputError) as caught:
        select_file(str(path), score="s", direction="high", keep=0.5, alpha=0.5, out=str(out))
    one_message(caught.value.exit_code, str(caught.value))
    assert store.list("stages") == before and not out.exists()
