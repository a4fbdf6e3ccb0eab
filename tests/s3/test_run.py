"""The main job with state and data in S3: two at once, credentials that expire on the way, an outage of half a minute."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.storage import Store, replace_uri
from flows.config import load_config
from flows.plan import Plan, make_plan
from tasks.pool import SerialPool
from tests.faults.driver_case import CONFIG
from tests.flows.serial_run import run_serially
from tests.s3.gateway import ACCESS, SECRET, Gateway
from tests.s3.proxy import Fault, FaultProxy

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
SETTINGS = (
    "data.source={use: parquet, args: {features: features, label: label}}", "data.shard_rows=150",
    "score.scores=[el2n,forgetting]", "proxy.epochs=2", "proxy.seeds=2", "train.replicates=2", "train.steps=20",
    "train.full=false",
)  # fmt: skip
OUTAGE_S = 30.0
# Results, parts and seals of an undisturbed run, by its name: where the data lie is no part of any key.
_undisturbed: dict[str, tuple[dict[str, Any], dict[str, bytes]]] = {}


@pytest.fixture
def settings(direct: str) -> list[str]:
    """Put digits into Parquet below the store's bucket, and return the settings of a run on them."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = digits.data.astype(np.float32)[:600], digits.target[:600]
    for name, rows in (("a", slice(0, 300)), ("b", slice(300, 600))):
        flat = pa.FixedSizeListArray.from_arrays(pa.array(images[rows].ravel()), 64)
        sink = io.BytesIO()
        pq.write_table(pa.table({"features": flat, "label": labels[rows]}), sink, row_group_size=150)
        replace_uri(f"{direct}-data/train/{name}.parquet", sink.getvalue())
    return [*SETTINGS, f"data.train={direct}-data/train"]


@pytest.fixture
def plan(settings: list[str]) -> Plan:
    """Return the plan of the run."""
    return make_plan(load_config(CONFIG, settings))


@pytest.fixture
def start(direct: str, settings: list[str]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts the command on the store; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def begin(endpoint: str) -> subprocess.Popen[str]:
        dropped = ("PREFECT_API_URL", "RAY_ADDRESS")
        environment = {name: value for name, value in os.environ.items() if name not in dropped}
        sets = [word for setting in settings for word in ("--set", setting)]
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "run", CONFIG, "--store", direct, "--json", *sets],
            cwd=ROOT, env=environment | {"AWS_ENDPOINT_URL": endpoint}, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def sealed(store: Store) -> dict[str, bytes]:
    """Return every part and seal."""
    names = [name for name in store.list("stages") if "/parts/" in name or "/seal" in name]
    return {name: store.read(name) for name in names}


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the results that a run prints, once it has ended well."""
    out, error = process.communicate(timeout=400)
    assert process.returncode == 0, error
    assert "Traceback" not in error and SECRET not in error + out
    return dict(json.loads(out))


def wait_for(process: subprocess.Popen[str], store: Store, folder: str, text: str) -> None:
    """Wait until a name with `text` in it is below a folder of the store, while the run goes on."""
    deadline = time.monotonic() + 300
    while not any(text in name for name in store.list(folder)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the run did not come so far"
        time.sleep(0.05)


def agree(store: Store, plan: Plan, results: dict[str, Any], tmp_path: Path) -> None:
    """Check that results and bytes are those of an undisturbed run in one process and a folder, and that no secret stayed."""
    if plan.run_name not in _undisturbed:
        local = Store(str(tmp_path / "local"))
        made = run_serially(plan, local, SerialPool())
        _undisturbed[plan.run_name] = made, sealed(local)
    assert (results, sealed(store)) == _undisturbed[plan.run_name]
    assert store.list("tmp") == []
    everything = [store.read(name) for folder in ("runs", "stages") for name in store.list(folder)]
    assert not any(word.encode() in data for word in (SECRET, ACCESS) for data in everything)


def test_two_runs_of_one_configuration_at_once(
    start: Callable[..., subprocess.Popen[str]], gateway: Gateway, direct: str, plan: Plan, tmp_path: Path
) -> None:
    both = [start(gateway.url), start(gateway.url)]
    results = [finish(process) for process in both]
    assert results[0] == results[1]
    agree(Store(direct), plan, results[0], tmp_path)


def test_expired_credentials_end_it_and_an_outage_does_not(
    start: Callable[..., subprocess.Popen[str]], gateway: Gateway, network: FaultProxy, direct: str, plan: Plan, tmp_path: Path
) -> None:
    store = Store(direct)
    run = start(network.url)
    # From here on it can be resumed by its name.
    wait_for(run, store, "runs", "/run.json")
    with network.doing(Fault("expired", times=100_000)):
        _, error = run.communicate(timeout=400)
    assert run.returncode == 1, error
    assert "the credentials have expired; renew them" in error and f"secateur resume {plan.run_name}" in error
    assert "Traceback" not in error and SECRET not in error and ACCESS not in error

    run = start(gateway.url)
    wait_for(run, store, f"stages/proxy-{plan.proxies[0][:12]}", "seal.json")
    gateway.stop()
    try:
        time.sleep(OUTAGE_S)
        assert run.poll() is None, run.communicate()
    finally:
        gateway.restore()
    agree(store, plan, finish(run), tmp_path)
