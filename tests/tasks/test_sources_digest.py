"""Digests of data: what changes them, what does not, how they are cached, and what planning imports."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from data_case import own_cache, pictures, write_idx, write_parquet

from cluster.errors import InputError
from tasks.sources import DataSpec, data_digest
from tasks.sources import digest as digests

__all__ = ["own_cache"]


def age(path: Path, seconds: float = 60) -> None:
    """Set the time of the last change back, as it is for data that were there before."""
    then = time.time_ns() - int(seconds * 1e9)
    os.utime(path, ns=(then, then))


def digest(path: Path, test: Path | None = None) -> str:
    return data_digest(DataSpec(source="parquet", train=str(path), test=None if test is None else str(test)))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List the files whose bytes are hashed."""
    seen: list[str] = []
    real = digests._file_sha256

    def watched(path: Path) -> str:
        seen.append(path.name)
        return real(path)

    monkeypatch.setattr(digests, "_file_sha256", watched)
    return seen


def test_digest_follows_names_contents_and_roles(tmp_path: Path) -> None:
    for name, seed in (("a/x.parquet", 1), ("b/x.parquet", 1), ("c/y.parquet", 1), ("d/x.parquet", 2)):
        write_parquet(tmp_path / name, seed=seed)
    a, b, c, d = (tmp_path / name for name in "abcd")
    assert digest(a) == digest(b)
    assert len({digest(a), digest(c), digest(d), digest(a, d), digest(d, a)}) == 5


def test_warm_digests_read_no_file(tmp_path: Path, hashed: list[str]) -> None:
    for name in ("a.parquet", "b.parquet"):
        write_parquet(tmp_path / name)
        age(tmp_path / name)
    first = digest(tmp_path)
    assert sorted(hashed) == ["a.parquet", "b.parquet"]
    assert digest(tmp_path) == first and len(hashed) == 2
    write_parquet(tmp_path / "c.parquet", seed=1)
    age(tmp_path / "c.parquet")
    assert digest(tmp_path) != first and hashed[2:] == ["c.parquet"]


def test_a_file_changed_in_place_is_hashed_again(tmp_path: Path, hashed: list[str]) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, seed=1)
    age(path, 60)
    first, size = digest(path), path.stat().st_size
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    age(path, 30)
    assert path.stat().st_size == size and digest(path) != first and len(hashed) == 2


def test_young_files_are_not_cached(tmp_path: Path, hashed: list[str]) -> None:
    write_parquet(tmp_path / "a.parquet")
    digest(tmp_path)
    digest(tmp_path)
    assert len(hashed) == 2, "a second change within one tick of the clock would go unseen"


@pytest.mark.parametrize("spoil", ["file in its place", "not JSON", "a list"])
def test_a_cache_that_does_not_work_costs_nothing(tmp_path: Path, own_cache: Path, spoil: str) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path)
    age(path)
    first = digest(path)
    (entry,) = (own_cache / "digests").iterdir()
    if spoil == "file in its place":
        entry.unlink()
        (own_cache / "digests").rmdir()
        (own_cache / "digests").write_text("in the way")
    else:
        entry.write_text("[1]" if spoil == "a list" else "{")
    assert digest(path) == first


def test_the_cache_lies_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SECATEUR_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert digests.cache_folder() == tmp_path / ".cache/secateur/digests"


def test_missing_data_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.npz").mkdir()
    with pytest.raises(InputError, match="no file or folder"):
        digest(tmp_path / "none")
    with pytest.raises(InputError, match="is a folder"):
        data_digest(DataSpec(source="numpy", train=str(tmp_path / "x.npz")))


@pytest.mark.parametrize("source", ["sklearn", "idx", "parquet", "images", "numpy"])
def test_planning_imports_nothing_heavy(tmp_path: Path, source: str) -> None:
    import numpy as np
    from PIL import Image

    args: dict[str, Any] = {}
    place = {"sklearn": "digits", "idx": tmp_path / "i", "parquet": tmp_path / "p", "images": tmp_path / "c",
             "numpy": tmp_path / "a.npz"}[source]
    write_idx(tmp_path / "i", "train", pictures(9), np.zeros(9, dtype=np.uint8), pack=True)
    write_parquet(tmp_path / "p/a.parquet")
    (tmp_path / "c/cat").mkdir(parents=True)
    Image.fromarray(pictures(1)[0]).save(tmp_path / "c/cat/a.png")
    np.savez(tmp_path / "a.npz", x=pictures(9), y=np.zeros(9))
    code = (
        "import sys\n"
        "from tasks.sources import DataSpec, data_digest\n"
        "from tasks.shard import shard_key\n"
        "import tasks.dataset\n"
        f"spec = DataSpec(source={{'use': {source!r}, 'args': {args!r}}}, train={str(place)!r})\n"
        "print(shard_key(spec, data_digest(spec)))\n"
        "heavy = {'torch', 'pyarrow', 'sklearn', 'scipy', 'PIL', 's3fs', 'ray', 'prefect'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
