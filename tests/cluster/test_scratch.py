"""Scratch folders: gone with their owner, at the latest when somebody else comes by."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cluster.scratch import claim, owned_folder, sweep

OWNER = """
import sys, tempfile
from pathlib import Path
from cluster.scratch import owned_folder
tempfile.tempdir = sys.argv[1]
with owned_folder("run") as folder:
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_text("x")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_removed_at_the_end_of_its_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with owned_folder("run") as folder:
        assert folder.parent == tmp_path and folder.stat().st_mode & 0o077 == 0
        assert sweep() == [] and folder.exists()
    assert not folder.exists()


def test_what_a_killed_process_left_is_swept_and_what_lives_is_not(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]  # fmt: skip
    folders = []
    for process in processes:
        assert process.stdout is not None
        folders.append(Path(process.stdout.readline().strip()))
    assert sweep(tmp_path) == []
    processes[0].kill()
    processes[0].communicate()
    assert sweep(tmp_path) == [folders[0]]
    assert not folders[0].exists() and (folders[1] / "deep" / "file").exists()
    processes[1].communicate(timeout=30)
    assert not folders[1].exists()


def test_what_was_never_claimed_or_is_only_named_so_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "secateur-mine").mkdir()
    (tmp_path / "secateur-file").write_text("x")
    other = tmp_path / "other"
    other.mkdir()
    claim(other).close()
    (tmp_path / "secateur-link").symlink_to(other)
    assert sweep(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "secateur-file", "secateur-link", "secateur-mine"]
