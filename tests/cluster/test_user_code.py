"""The `code` folders: what they may not hold, how they are put on the path, and what of them is sent."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cluster import code as user_code
from cluster.code import add_code_dirs, check_code_dirs, check_own_packages, stage_code
from cluster.errors import InputError


@pytest.mark.parametrize("name", ["tasks.py", "flows/__init__.py", "cluster/part.py"])
def test_modules_named_like_secateurs_own_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"the name of one of Secateur's own packages; rename it"):
        check_code_dirs([tmp_path])


@pytest.mark.parametrize("name", ["queue.py", "random/__init__.py"])
def test_modules_that_hide_pythons_own_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"which hides Python's own; rename it"):
        check_code_dirs([tmp_path])


def test_folders_that_hide_nothing_pass(tmp_path: Path) -> None:
    for name in ("mine.py", "site/notes.txt", "data/tasks/x.csv", "pack/tasks.py", "pack/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert check_code_dirs([tmp_path, str(tmp_path)]) == [tmp_path]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none is not a folder"):
        check_code_dirs([tmp_path / "none"])


def test_the_first_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["/old", str(tmp_path / "b")])
    add_code_dirs([tmp_path / "a", tmp_path / "b"])
    assert sys.path == [str(tmp_path / "a"), str(tmp_path / "b"), "/old"]


def test_own_packages_are_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_own_packages()
    for name in ("flows", "tasks"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match=rf"package 'flows' is imported from {tmp_path / 'flows'}"):
        check_own_packages()


def test_what_is_sent_and_what_is_left_out(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    for name in (
        "model.py", "pack/__init__.py", "pack/weights.json", ".git/objects/x", "__pycache__/model.pyc", "venv/pyvenv.cfg",
        "venv/lib/site.py", ".env", "node_modules/x.js", "old.pyc",
    ):
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).write_text("x")
    other.mkdir()
    (other / "model.py").write_text("y")
    (mine / "loop").symlink_to(mine)
    (mine / "linked").symlink_to(mine / "pack")
    (mine / "broken").symlink_to(tmp_path / "nothing")
    target = tmp_path / "ship"
    assert stage_code([mine, other], target) == ["user/0", "user/1"]
    sent = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert {name for name in sent if name.startswith("user/")} >= {
        "user/0/model.py", "user/0/pack/__init__.py", "user/0/pack/weights.json", "user/1/model.py",
    }
    assert not [name for name in sent if "/." in name or "venv" in name or "pyc" in name or "node_modules" in name]
    assert not [name for name in sent if "loop" in name or "broken" in name]
    assert (target / "user/1/model.py").read_text() == "y"
    assert {"cluster/pool.py", "tasks/spec.py"} <= sent
    assert not [name for name in sent if name.startswith("flows")]


def test_too_much_to_send_is_refused_with_the_largest_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_code, "MAX_SHIPPED_BYTES", 2 * 2**20)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "data.bin").write_bytes(bytes(3 * 2**20))
    with pytest.raises(InputError, match=r"largest: user/0/data.bin \(3 MiB\)"):
        stage_code([tmp_path / "mine"], tmp_path / "ship")
