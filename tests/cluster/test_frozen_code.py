"""The code of a run is that of its digest, whatever is edited meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.code_digest import code_digest
from cluster.errors import InputError
from cluster.frozen_code import freeze_code

ENTRY = ["pack.models:make"]


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def code(tmp_path: Path) -> Path:
    return write(tmp_path / "code", {
        "pack/__init__.py": "", "pack/models.py": "from pack.deep import one\nfrom space.more import two\n"
        "from pathlib import Path\ndef make():\n    words = (Path(__file__).parent / 'words.txt').read_text()\n"
        "    return [one.VALUE, two.VALUE, words, Path(__file__)]\n",
        "pack/deep/one.py": "VALUE = 1\n", "pack/words.txt": "word", "space/more/two.py": "VALUE = 2\n",
        "pack/other.py": "never imported", "data/0.bin": "x", "data/1.bin": "x",
    })  # fmt: skip


def made(folders: list[Path]) -> list[str]:
    """Return what the entry point gives in a fresh process that imports from `folders`."""
    run = subprocess.run(
        [sys.executable, "-c", "from pack.models import make; print(*make(), sep='\\n')"], text=True, check=True,
        capture_output=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))},
    )  # fmt: skip
    return run.stdout.split("\n")[:4]


def test_edits_do_not_reach_a_frozen_run(code: Path, tmp_path: Path) -> None:
    digest = code_digest(ENTRY, [code])
    frozen = freeze_code(ENTRY, [code], tmp_path / "frozen", digest)
    write(code, {"pack/models.py": "def make():\n    return [0] * 4\n", "space/more/two.py": "VALUE = 0\n"})
    (code / "pack/deep/one.py").unlink()
    assert made(frozen) == ["1", "2", "word", str(frozen[0] / "pack/models.py")]
    assert code_digest(ENTRY, frozen) == digest


def test_what_is_no_code_is_linked_to_and_not_copied(code: Path, tmp_path: Path) -> None:
    frozen = freeze_code(ENTRY, [code], tmp_path / "frozen", code_digest(ENTRY, [code]))
    links = {path.relative_to(frozen[0]).as_posix() for path in frozen[0].rglob("*") if path.is_symlink()}
    assert links == {"data", "pack/other.py", "pack/words.txt"}
    copies = {path.relative_to(frozen[0]).as_posix() for path in frozen[0].rglob("*.py") if not path.is_symlink()}
    assert copies == {"pack/__init__.py", "pack/models.py", "pack/deep/one.py", "space/more/two.py"}


def test_folders_keep_their_order_also_where_one_lies_in_another(code: Path, tmp_path: Path) -> None:
    write(code, {"late/pack/__init__.py": "", "late/pack/models.py": "def make():\n    return ['late'] * 4\n"})
    for folders, first in (([code / "late", code], "late"), ([code, code / "late"], "1")):
        target = tmp_path / f"frozen-{first}"
        frozen = freeze_code(ENTRY, folders, target, code_digest(ENTRY, folders))
        assert made(frozen)[0] == first


def test_code_that_is_not_the_planned_any_more_is_refused(code: Path, tmp_path: Path) -> None:
    digest = code_digest(ENTRY, [code])
    write(code, {"space/more/two.py": "VALUE = 3\n"})
    with pytest.raises(InputError, match="changed while the run began"):
        freeze_code(ENTRY, [code], tmp_path / "frozen", digest)
