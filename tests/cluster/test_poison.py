"""A shard that kills its worker every time, in a whole run: tried a bounded number of times, named, and left behind."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.faults import driver_case as case

pytestmark = pytest.mark.xdist_group("poison")

RETRIES = 2
SHARDS = 6
POISON = 7.0

MODEL = f"""
import os, uuid
from pathlib import Path
import torch


class Poisoned(torch.nn.Module):
    def __init__(self, folder):
        super().__init__()
        self.folder = Path(folder)
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))

    def forward(self, x):
        # As a kernel that crashes on one input would do. Proxies are spared: what is looked at is a stage of many shards.
        proxy = any(self.folder.glob("store/stages/proxy-*/seal.json"))
        if proxy and bool((x[:, 0] == {POISON}).any()) and not (self.folder / "antidote").exists():
            (self.folder / f"try-{{uuid.uuid4().hex}}").touch()
            os._exit(9)
        return self.body(x)
"""


def start(folder: Path) -> subprocess.Popen[str]:
    """Start the run; what is poisonous is one row of the third shard."""
    code = folder / "code"
    code.mkdir(exist_ok=True)
    (code / "poisoned_model.py").write_text(MODEL)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(SHARDS * 50, 4)).astype(np.float32)
    y = (x[:, 1] > 0).astype(np.int64)
    x[123, 0] = POISON
    np.savez(folder / "train.npz", x=x, y=y)
    np.savez(folder / "test.npz", x=x[:40] + 0.01, y=y[:40])
    config = {
        "name": "poisoned",
        "code": [str(code)],
        "data": {
            "source": "numpy", "train": str(folder / "train.npz"), "test": str(folder / "test.npz"), "shard_rows": 50,
        },
        "proxy": {"model": {"use": "poisoned_model:Poisoned", "args": {"folder": str(folder)}}, "seeds": 1, "steps": 20},
        "score": {"scores": ["el2n"], "resources": {"retries": RETRIES}},
        "select": {"keep": 0.2, "arms": [{"protocol": "topk", "score": "el2n"}]},
        "train": {"model": {"use": "mlp", "args": {"hidden": [4]}}, "steps": 10, "replicates": 2, "full": False},
    }  # fmt: skip
    path = folder / "poisoned.yaml"
    path.write_text(yaml.safe_dump(config))
    return case.start(folder / "store", config=str(path), settings=())


@pytest.mark.timeout(700)
def test_a_poison_shard_costs_its_retries_and_is_named(tmp_path: Path) -> None:
    store = tmp_path / "store"
    process = start(tmp_path)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 1, error
    assert "Traceback" not in error
    last = error.strip().splitlines()[-1]
    assert f"score: 1 of {SHARDS} items failed" in last, error
    assert "train.npz rows 100-149" in last
    assert f"its worker died {RETRIES + 1} times" in last
    assert "go on with: secateur resume poisoned-" in last
    # The stage is not done again as a whole: that would cost three times as many workers.
    assert len(list(tmp_path.glob("try-*"))) == RETRIES + 1
    kept = case.published(store)
    assert len([name for name in kept if name.startswith("stages/score-")]) == SHARDS - 1
    assert not list(store.glob("stages/score-*/seal*.json"))
    (end,) = store.glob("runs/*/attempts/*.end.json")
    assert json.loads(end.read_bytes())["state"] == "failed"
    # Once the cause is mended, only that shard is left to do.
    (tmp_path / "antidote").touch()
    process = start(tmp_path)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    done = case.published(store)
    assert {name: done[name] for name in kept} == kept
    assert len([name for name in done if name.startswith("stages/score-")]) == SHARDS
