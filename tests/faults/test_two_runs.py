"""Runs of one configuration on one store at once: the work is shared, all end alike, nothing is trained twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.fingerprint import sha256
from tests.faults import driver_case as case
from tests.faults.forked import ROOT, run_points, run_races


@pytest.mark.timeout(600)
def test_three_runs_racing_train_every_unit_once_and_end_alike() -> None:
    found = run_races(3)
    assert not found["wrong"], "\n".join(found["wrong"])
    assert len(found["trained"]) == 3
    assert {sum(shares) for shares in found["trained"]} == {found["units"]}
    # Shared, and not all by whoever came first.
    assert any(max(shares) < found["units"] for shares in found["trained"]), found["trained"]


@pytest.mark.timeout(600)
def test_a_run_killed_beside_another_is_overtaken_at_once() -> None:
    # A lease elsewhere is void after 120 s: these points would take longer than the test may if death were not seen here.
    found = run_points(("proxy:objects:killed",))["proxy:objects:killed"]
    assert not found["wrong"], "\n".join(found["wrong"])
    assert found["points"] >= 10


@pytest.mark.timeout(600)
def test_two_commands_on_one_store_both_end_well(tmp_path: Path) -> None:
    store = tmp_path / "store"
    settings = ("proxy.seeds=2", "proxy.epochs=2", "train.replicates=2", "train.steps=30", "data.shard_rows=900")
    processes = [case.start(store, *settings, *case.ONE_WORKER) for _ in range(2)]
    try:
        outs = [process.communicate(timeout=360) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (out, error) in zip(processes, outs):
        assert process.returncode == 0, error
        assert "random" in out and "report: " in out
    # The same table of results, from the same sealed trainings.
    assert len({out for out, _ in outs}) == 1
    assert not list(store.glob("stages/proxy-*/work/**/*.*")) and not list(store.glob("stages/train-*/work/**/*.*"))
    assert len(list(store.glob("runs/*/attempts/*.end.json"))) == 2


@pytest.mark.timeout(300)
def test_ten_selections_at_once_from_one_score_table(tmp_path: Path) -> None:
    count = 20_000
    scores = tmp_path / "scores.parquet"
    values = np.random.default_rng(0).normal(size=count).astype(np.float32)
    pq.write_table(pa.table({"example_id": np.arange(count), "el2n": values}), scores)
    outs = [tmp_path / ("shared.parquet" if number < 5 else f"own-{number}.parquet") for number in range(10)]
    words = ["--score", "el2n", "--direction", "high", "--keep", "0.1", "--alpha", "0.5", "--seed", "7"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "select", str(scores), *words, "--out", str(out)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for out in outs
    ]  # fmt: skip
    for process in processes:
        _, error = process.communicate(timeout=250)
        assert process.returncode == 0, error
    assert len({sha256(out.read_bytes()) for out in outs}) == 1
    assert pq.read_table(outs[0]).num_rows == count // 10
    # Nothing but what was asked for: no scratch file stayed.
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"scores.parquet", *(out.name for out in outs)})
