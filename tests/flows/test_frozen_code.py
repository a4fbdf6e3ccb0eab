"""A run computes with the user's code as it was when the run began."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

MODEL = """
import os
from pathlib import Path
from torch import nn
VERSION = 1

def make(num_classes):
    with open(os.environ["SEEN"], "a") as seen:
        seen.write(f"{VERSION}\\n")
    live = Path(os.environ["LIVE"])
    live.write_text(live.read_text().replace("VERSION = 1", "VERSION = 2"))
    return nn.Sequential(nn.Flatten(), nn.Linear(4, num_classes))
"""

CONFIG = """
name: frozen
code: [{code}]
data: {{source: sklearn, train: iris}}
proxy: {{model: "mine:make", seeds: 1, steps: 3, batch_size: 16}}
score: {{scores: [el2n]}}
select: {{keep: 0.3, arms: [{{protocol: topk, score: el2n}}]}}
train: {{model: "mine:make", steps: 3, batch_size: 16, replicates: 1, full: false}}
shift: null
"""


@pytest.mark.timeout(240)
def test_code_edited_while_a_run_goes_on_is_not_computed_under_the_old_digest(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    live, seen = code / "mine.py", tmp_path / "seen"
    live.write_text(MODEL)
    (tmp_path / "run.yaml").write_text(CONFIG.format(code=code))
    environment = {**os.environ, "SEEN": str(seen), "LIVE": str(live), "SECATEUR_STORE": str(tmp_path / "store")}
    command = [sys.executable, "-m", "flows.cli", "run", str(tmp_path / "run.yaml")]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    versions = seen.read_text().split()
    # In the driver, which edits the file before any worker imports it, and in workers.
    assert len(versions) > 3 and set(versions) == {"1"}
    assert "VERSION = 2" in live.read_text()
