"""A small run whose model, a user's own, prints by every way there is while it is built."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SECRET = "c4n4ry-value-0123456789"
ENVIRONMENT = {"MY_API_TOKEN": SECRET}
CODE = '''
import atexit, math, os, subprocess, sys, threading
from torch import nn

print("printed at import", os.environ.get("MY_API_TOKEN"))
atexit.register(print, "printed at exit")


def net(input_shape, num_classes):
    print("printed by the model", os.environ.get("MY_API_TOKEN"))
    sys.stdout.flush()
    os.write(1, b"written to descriptor 1\\n")
    subprocess.run(["echo", "said by a child"], check=True)
    threading.Timer(0.0, print, ["printed by a thread"]).start()
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), num_classes))
'''
CONFIG = """
name: printing
code: [{code}]
data: {{source: parquet, train: {data}, test_fraction: 0.2, shard_rows: 30, resources: {{workers: 1}}}}
proxy: {{model: {{use: mlp, args: {{hidden: [2]}}}}, seeds: 1, epochs: 1, batch_size: 32, resources: {{workers: 1}}}}
score: {{scores: [el2n], resources: {{workers: 1}}}}
select: {{keep: 0.4, arms: [{{protocol: exact, score: el2n, alpha: 0.5}}], resources: {{workers: 1}}}}
train:
  {{model: {{use: 'printing_model:net'}}, steps: 2, batch_size: 16, replicates: 1, full: false, resources: {{workers: 1}}}}
shift: false
"""


def write_case(folder: Path, rows: int = 60) -> Path:
    """Write data, code and configuration into a folder and return the configuration's path."""
    rng = np.random.default_rng(0)
    label = np.arange(rows) % 2
    x = (rng.normal(size=(rows, 3)) + label[:, None]).astype(np.float32)
    features = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 3)
    table = pa.table({"features": features, "label": pa.array(label)})
    pq.write_table(table, folder / "data.parquet", row_group_size=30)
    (folder / "code").mkdir()
    (folder / "code" / "printing_model.py").write_text(CODE)
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(code=folder / "code", data=folder / "data.parquet"))
    return config


def assert_told_on_standard_error(error: str) -> None:
    """Assert that all the model said is there, what Python printed without the secret."""
    for text in ("printed by the model <MY_API_TOKEN>", "written to descriptor 1", "said by a child", "printed by a thread"):
        assert text in error, (text, error)
    assert "printed at import <MY_API_TOKEN>" in error and SECRET not in error, error
    assert "printed at exit" in error, error


def environment() -> dict[str, str]:
    """Return this process's environment with the secret, and nothing of a Prefect server or a Ray cluster."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "RAY_"))}
    return kept | ENVIRONMENT
