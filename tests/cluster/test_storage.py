"""The file store: create-only under races and crashes, names that stay inside, nothing left behind."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InputError, StoreError, StoreRefusedError
from cluster.storage import (
    FileObjects,
    Store,
    check_name,
    filesystem,
    open_uri,
    read_uri,
    replace_uri,
    replacing_uri,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def _race(uri: str, number: int, start: object, wins: object) -> None:
    store = Store(uri)
    start.wait()  # type: ignore[attr-defined]
    for name in range(20):
        if store.create(f"stages/race/{name}", f"{number:04d}".encode() * 5000):
            wins.put((name, number))  # type: ignore[attr-defined]


def test_of_eight_racing_processes_one_wins_each_name(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    start, wins = context.Barrier(8), context.Queue()
    racers = [context.Process(target=_race, args=(store.uri, number, start, wins)) for number in range(8)]
    for racer in racers:
        racer.start()
    winners = dict(wins.get(timeout=60) for _ in range(20))
    for racer in racers:
        racer.join(60)
        assert racer.exitcode == 0
    assert wins.empty()
    for name, number in winners.items():
        assert store.read(f"stages/race/{name}") == f"{number:04d}".encode() * 5000
    assert not list(Path(store.uri, "tmp").iterdir())


def test_the_loser_changes_nothing(store: Store) -> None:
    assert store.create("a/b", b"first")
    assert not store.create("a/b", b"second")
    assert store.read("a/b") == b"first"


def test_a_loser_that_saw_no_file_at_first_loses_at_the_link(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create("a/b", b"first")
    monkeypatch.setattr(Path, "exists", lambda self: False)
    assert not store.create("a/b", b"second")
    assert store.read("a/b") == b"first"


def test_a_writer_killed_before_its_link_leaves_no_object(store: Store) -> None:
    script = (
        "import os, sys\n"
        "from cluster.storage import Store\n"
        "os.link = lambda *_: os._exit(9)\n"
        "Store(sys.argv[1]).create('a/b', b'half')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, store.uri], check=False)
    assert done.returncode == 9
    assert len(list(Path(store.uri, "tmp").iterdir())) == 1
    assert not store.exists("a/b")
    assert store.list("a") == []
    assert store.create("a/b", b"whole")
    assert store.read("a/b") == b"whole"


def test_leftovers_of_a_day_ago_are_swept_and_newer_ones_kept(store: Store) -> None:
    store.create("a/b", b"x")
    old, new = (Path(store.uri, "tmp", name) for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 90_000, time.time() - 90_000))
    store.check_writable()
    assert (old.exists(), new.exists()) == (False, True)


def test_a_full_disk_leaves_neither_object_nor_scratch(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for write in (store.create, store.replace):
            with pytest.raises(OSError, match=rf"No space left on device: free some space there .*'{store.uri}'"):
                write("a/b", b"x")
        with pytest.raises(InputError, match=r"cannot be written .*No space"):
            store.check_writable()
    assert not store.exists("a/b")
    assert not list(Path(store.uri, "tmp").iterdir())


def test_a_root_that_is_gone_is_not_made_again(store: Store) -> None:
    # A probe takes the root away again, and is no beginning.
    store.check_writable()
    assert not Path(store.uri).exists()
    early = pickle.loads(pickle.dumps(store))
    assert store.create("a/b", b"x")
    late = pickle.loads(pickle.dumps(store))
    shutil.rmtree(store.uri)
    for one in (store, late):
        for write in (one.create, one.replace):
            with pytest.raises(StoreRefusedError, match=f"the store {store.uri} is gone"):
                write("a/c", b"x")
    assert not Path(store.uri).exists()
    # Sent to a worker before anything was published: the first object may be its own.
    assert early.create("a/c", b"x")


def test_a_store_below_a_thousand_folders(tmp_path: Path) -> None:
    deep = tmp_path / "/".join("a" * 1500)
    store = Store(str(deep))
    store.check_writable()
    assert store.create("a/b", b"x")
    assert (store.read("a/b"), store.list("a")) == (b"x", ["a/b"])
    # What clears the folders of tests calls itself for each level.
    subprocess.run(["rm", "-rf", str(tmp_path / "a")], check=True, timeout=60)


def test_users_files_on_a_full_disk_are_named_and_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "out").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"free some space there .*'{tmp_path}'"):
        replace_uri(str(tmp_path / "out"), b"new")
    with pytest.raises(OSError, match=f"free some space there .*'{tmp_path}'"), replacing_uri(str(tmp_path / "out")) as scratch:
        scratch.write_bytes(b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out", b"old")]


def test_a_store_is_probed_once_in_a_process(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    found = store.check_writable()

    def probed(*_: object) -> None:
        raise AssertionError("it was probed again")

    monkeypatch.setattr("cluster.storage.probe", probed)
    assert Store(store.uri).guarantees() == found


def test_a_file_system_without_hard_links_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    with pytest.raises(StoreError, match="no hard links"):
        store.create("a/b", b"x")
    with pytest.raises(InputError, match="no hard links"):
        store.check_writable()


def test_replace_list_remove_open(store: Store) -> None:
    store.replace("runs/r/beat", b"1")
    store.replace("runs/r/beat", b"2")
    store.create("runs/r/attempts/x.json", b"{}")
    assert store.read("runs/r/beat") == b"2"
    assert store.list("runs/r") == ["runs/r/attempts/x.json", "runs/r/beat"]
    assert store.list("runs/other") == []
    with store.open("runs/r/beat") as file:
        assert file.seekable()
        assert file.read() == b"2"
    store.remove("runs/r/beat")
    store.remove("runs/r/beat")
    assert not store.exists("runs/r/beat")
    for act in (store.read, store.open):
        with pytest.raises(FileNotFoundError):
            act("runs/r/beat")


def test_check_writable_leaves_nothing(tmp_path: Path) -> None:
    Store(str(tmp_path / "new")).check_writable()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be written|lies at or below a file"):
        Store(str(tmp_path / "file" / "store")).check_writable()


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../x", "a/../x", "a/..", "./a", "a//b", "a/", ".hidden", "a/.hidden", "-x", "a\n", "a\x00", "a b",
     "ä", "a\\b", "s3://b/x", "~/x"],
)
def test_names_that_could_leave_the_store_are_refused(store: Store, name: str) -> None:
    for act in (store.read, store.exists, store.list, store.remove, store.open, store.url):
        with pytest.raises(StoreError, match="is refused"):
            act(name)
    for write in (store.create, store.replace):
        with pytest.raises(StoreError, match="is refused"):
            write(name, b"x")
    assert not Path(store.uri).exists()


@given(st.text(max_size=30))
def test_every_name_that_is_let_through_stays_inside(name: str) -> None:
    try:
        check_name(name)
    except StoreError:
        return
    assert os.path.normpath(f"/store/{name}") == f"/store/{name}"


def test_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store("x").uri == Store(f"file://{tmp_path}/x").uri == str(tmp_path / "x")
    for uri in ("gs://bucket/x", "http://host/x", "s3://", "s3:///x", "s3://a/x"):
        with pytest.raises(InputError, match=r"scheme is not known|names no bucket"):
            Store(uri)


def test_pickles_as_its_uri(store: Store) -> None:
    again = pickle.loads(pickle.dumps(store))
    assert again.uri == store.uri
    assert isinstance(again.objects, FileObjects)


ROOT = Path(__file__).parents[2]


def test_what_a_killed_writer_left_is_removed_by_the_next_and_a_living_ones_is_not(tmp_path: Path) -> None:
    target, other = tmp_path / "out.bin", tmp_path / "out.bin.more"
    code = "import os, signal, sys; from cluster.storage import replacing_uri\n" \
           "with replacing_uri(sys.argv[1]) as path: path.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"  # fmt: skip
    for one in (target, other):
        assert subprocess.run([sys.executable, "-c", code, str(one)], check=False, cwd=ROOT).returncode == -9
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left) == 2
    with replacing_uri(str(target)) as living:
        living.write_bytes(b"slow")
        with replacing_uri(str(target)) as path:
            path.write_bytes(b"quick")
            assert living.exists()
    assert target.read_bytes() == b"slow"
    # What is another file's is left alone.
    assert {path.name for path in tmp_path.iterdir()} - {"out.bin"} == {name for name in left if ".more." in name}


def test_user_files_are_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out.bin"
    replace_uri(str(target), b"one")
    replace_uri(f"file://{target}", b"two")
    assert read_uri(str(target)) == b"two"
    with replacing_uri(str(target)) as path:
        path.write_bytes(b"three")
    assert target.read_bytes() == b"three"

    def half() -> None:
        with replacing_uri(str(target)) as path:
            path.write_bytes(b"half")
            raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        half()
    assert target.read_bytes() == b"three"
    assert [path.name for path in target.parent.iterdir()] == ["out.bin"]
    with open_uri(str(target)) as file:
        assert file.read() == b"three"
    fs, path_in_fs = filesystem(f"file://{target}")
    assert fs.cat_file(path_in_fs) == b"three"
    with pytest.raises(FileNotFoundError):
        read_uri(str(tmp_path / "none"))
