"""What the doctor finds, that it really asks, and that a check that fails is exit code 1."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import FileObjects
from flows import cli


def doctor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, dict[str, tuple[bool, str]]]:
    """Run the command; return its exit code and what each check found."""
    monkeypatch.setattr(sys, "argv", ["secateur", "doctor", "--json", *words])
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    return code, {row["check"]: (row["ok"], row["found"]) for row in json.loads(capsys.readouterr().out)}


@pytest.fixture(autouse=True)
def no_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have this machine name no Prefect API."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_PROFILES_PATH", str(tmp_path / "none"))


def test_all_is_well_with_a_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, found = doctor(monkeypatch, capsys, "--store", str(tmp_path / "store"))
    assert code == 0 and all(ok for ok, _ in found.values())
    assert "torch" in found["versions"][1] and "can be written" in found["store"][1]
    assert found["create-only writes"][1] == "a second create of one name is refused"
    assert "would start here" in found["ray"][1] and "its own server" in found["prefect"][1]
    assert not (tmp_path / "store").exists()


def test_each_check_that_fails_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PREFECT_API_URL", "http://name:canary-word@127.0.0.1:9/api")
    code, found = doctor(monkeypatch, capsys, "--store", str(tmp_path / "file"), "--ray", "127.0.0.1:9")
    assert code == 1
    assert [check for check, (ok, _) in found.items() if not ok] == ["store", "create-only writes", "ray", "prefect"]
    assert "lies at or below a file" in found["store"][1]
    assert "no Ray cluster answers at 127.0.0.1:9" in found["ray"][1]
    assert "does not answer" in found["prefect"][1]
    assert "canary-word" not in str(found)


def test_a_store_that_lets_a_name_be_created_twice_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def create(self: Any, name: str, data: bytes) -> bool:
        self.replace(name, data)
        return True

    monkeypatch.setattr(FileObjects, "create", create)
    code, found = doctor(monkeypatch, capsys, "--store", str(tmp_path / "store"))
    assert code == 1
    assert "never run two at once" in found["create-only writes"][1]


def test_it_asks_the_prefect_api(
    prefect_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_url)
    _, found = doctor(monkeypatch, capsys, "--store", str(tmp_path / "store"))
    assert found["prefect"] == (True, f"{prefect_url} answers")
