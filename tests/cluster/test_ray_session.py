"""Starting, joining and leaving Ray, in processes of their own: what is started ends, whatever befalls the driver."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.errors import InputError
from cluster.session import RaySession, parse_address, probe

HERE = str(Path(__file__).parent)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that runs Python text in a process group of its own; its children are ended after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(text: str, **environment: str) -> subprocess.Popen[str]:
        head = f"""
        import sys, json, os, signal, psutil
        HERE = {HERE!r}
        sys.path.insert(0, HERE)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from pathlib import Path
        from cluster.session import RaySession
        from tasks.spec import Resources
        def children():
            return [child.pid for child in psutil.Process().children(recursive=True)]
        """
        child = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(text)],
            env={**child, "HOME": str(tmp_path / "home"), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _words(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.NoSuchProcess:
        return ""


def _all_gone(pids: list[int], seconds: float) -> bool:
    until = time.monotonic() + seconds
    for pid in pids:
        try:
            psutil.Process(pid).wait(max(0.1, until - time.monotonic()))
        except psutil.NoSuchProcess:
            continue
        except psutil.TimeoutExpired:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def test_a_local_session_is_quiet_on_loopback_and_leaves_nothing(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start(
        """
        from pool_workers import Square
        handler = signal.getsignal(signal.SIGTERM)
        with RaySession("local", code=[HERE], num_cpus=2) as session:
            folder = str(session._folder)
            got = sorted(session.pool().map(Square, range(5), label="square", resources=Resources()))
            kept = signal.getsignal(signal.SIGTERM) is handler
            pids = children()
            addresses = set()
            for pid in pids:
                try:
                    open_now = psutil.Process(pid).net_connections()
                except psutil.NoSuchProcess:
                    continue
                addresses |= {connection.laddr.ip for connection in open_now if connection.status == "LISTEN"}
        print(json.dumps([got, kept, pids, sorted(addresses), folder]))
        """
    )
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    got, kept, pids, addresses, folder = json.loads(out)
    assert got == [[index, index * index] for index in range(5)]
    assert kept
    assert addresses
    assert all(address.rpartition(":")[2] in ("127.0.0.1", "1") for address in addresses)
    assert _all_gone(pids, 15)
    assert not Path(folder).exists()
    assert not (tmp_path / "home" / ".ray").exists()
    assert err == ""


def test_ray_dies_with_a_killed_driver(start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start(
        """
        from pool_workers import Marks
        from functools import partial
        with RaySession("local", code=[HERE], num_cpus=2) as session:
            pool = session.pool()
            results = pool.map(partial(Marks, os.getcwd(), 0.05), range(10**6), label="long", resources=Resources())
            next(results)
            print(json.dumps(children()), flush=True)
            for _ in results:
                pass
        """
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    pids = json.loads(line)
    names = " ".join(_words(pid) for pid in pids)
    assert "gcs_server" in names
    assert "raylet" in names
    assert "Host" in names
    process.kill()
    assert _all_gone(pids, 15)


def test_an_interrupt_of_the_whole_group_leaves_time_to_clean_up(start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start(
        """
        from pool_workers import Marks
        from functools import partial
        started = []
        with RaySession("local", code=[HERE], num_cpus=2) as session:
            pool = session.pool()
            try:
                results = pool.map(partial(Marks, os.getcwd(), 0.2), range(10**6), label="long", resources=Resources())
                next(results)
                print(json.dumps(children()), flush=True)
                for _ in results:
                    pass
            except KeyboardInterrupt:
                names = []
                for pid in children():
                    try:
                        names.append(" ".join(psutil.Process(pid).cmdline()))
                    except psutil.NoSuchProcess:
                        # A worker, which the interrupt has ended.
                        continue
                up = [any(word in name for name in names) for word in ("gcs_server", "raylet")]
                print(json.dumps(up), flush=True)
        print("closed")
        """
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert out.split("\n")[:2] == ["[true, true]", "closed"], err
    assert process.returncode == 0
    assert _all_gone(json.loads(line), 15)


def test_a_sigterm_while_ray_starts_reaches_the_handler_that_was_there(start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start(
        """
        import threading, time
        def mine(number, frame):
            raise KeyboardInterrupt(number)
        signal.signal(signal.SIGTERM, mine)
        before = []
        def watch():
            while signal.getsignal(signal.SIGTERM) is mine:
                time.sleep(0.001)
            before.extend(children())
            os.kill(os.getpid(), signal.SIGTERM)
        threading.Thread(target=watch, daemon=True).start()
        try:
            with RaySession("local", num_cpus=2):
                time.sleep(30)
        except KeyboardInterrupt as error:
            print(json.dumps([error.args, signal.getsignal(signal.SIGTERM) is mine, before]))
        """
    )
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    number, kept, pids = json.loads(out)
    assert number == [signal.SIGTERM] and kept and pids
    assert _all_gone(pids, 15)


def test_joining_ships_the_code_and_leaves_the_cluster_up(
    start: Callable[..., subprocess.Popen[str]], ray_session: Any, tmp_path: Path
) -> None:
    import ray

    code = tmp_path / "mine"
    code.mkdir()
    (code / "my_worker.py").write_text(
        "import my_part, tasks.spec\n"
        "class Told:\n"
        "    def load(self, item): pass\n"
        "    def compute(self, item, loaded): return [my_part.VALUE, my_part.__file__, tasks.spec.__file__]\n"
    )
    (code / "my_part.py").write_text("VALUE = 17\n")
    (code / ".git").mkdir()
    (code / ".git" / "large").write_bytes(b"x" * 1000)
    before = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    process = start(
        """
        with RaySession(os.environ["ADDRESS"], code=[os.environ["CODE"]]) as session:
            sys.path.insert(0, os.environ["CODE"])
            from my_worker import Told
            (_, told), = session.pool().map(Told, [1], label="told", resources=Resources())
        print(json.dumps(told))
        """,
        ADDRESS=ray_session.address,
        CODE=str(code),
        **{name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")},
    )
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    value, part, spec = json.loads(out)
    assert value == 17
    for path in (part, spec):
        assert "working_dir_files" in path
    assert {node["NodeID"] for node in ray.nodes() if node["Alive"]} == before


def test_an_address_where_no_ray_answers_is_an_input_error(start: Callable[..., subprocess.Popen[str]]) -> None:
    mute = socket.create_server(("127.0.0.1", 0))
    process = start(
        """
        from cluster.errors import InputError
        said = []
        for address in ("127.0.0.1:1", "auto", os.environ["MUTE"]):
            try:
                with RaySession(address):
                    pass
            except InputError as error:
                said.append(str(error))
        print(json.dumps(said))
        """,
        RAY_ADDRESS="127.0.0.1:2",
        MUTE=f"127.0.0.1:{mute.getsockname()[1]}",
    )
    out, err = process.communicate(timeout=100)
    mute.close()
    assert process.returncode == 0, err
    first, second, third = json.loads(out)
    assert "no Ray cluster answers at 127.0.0.1:1 " in first
    assert "no Ray cluster answers at 127.0.0.1:2 " in second
    assert "is no Ray head" in third


def test_ray_that_does_not_start_is_one_message_and_leaves_nothing(start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start(
        """
        from cluster.errors import StageError
        session = RaySession("local", num_cpus=1)
        try:
            session.__enter__()
        except StageError as error:
            said = str(error)
        left = [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
        print(json.dumps([said, [str(child) for child in left], session._folder, session.scratch]))
        """,
        # Ray's head does not come up in no time at all.
        RAY_gcs_server_port_wait_time_s="0",
    )
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0 and err == ""
    said, left, folder, scratch = json.loads(out)
    assert said.startswith("Ray did not start on this machine (RuntimeError: Timed out waiting for file ")
    assert "\n" not in said and (left, folder, scratch) == ([], None, None)


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "head:", ":6379", "head:port", "head:0", "head:70000"])
def test_addresses_that_cannot_be_meant(address: str) -> None:
    with pytest.raises(InputError, match=r"not supported|not local, auto or HOST:PORT"):
        parse_address(address)


def test_probe_names_the_address() -> None:
    assert parse_address("[::1]:6379") == ("::1", 6379)
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9 .*ray start --head"):
        probe("127.0.0.1:9", 1.0)


def test_a_connected_process_keeps_its_connection(ray_session: Any) -> None:
    import ray

    with RaySession("local") as session:
        assert not session.owns_connection
    assert ray.is_initialized()
