"""Planted secrets: after a run that fails and one that ends well, they are nowhere but in the environment."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.redaction import find_secret, scrub, scrub_error
from cluster.storage import Store
from tests.faults.driver_case import CONFIG, ROOT

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(900)]

CANARY = "c4n4ry"
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAC4N4RYC4N4RYC4N4",
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}-aws-secret-0123456789abcdefghij",
    "AWS_SESSION_TOKEN": f"{CANARY}-session-token/+=0123456789",
    "MY_SERVICE_PASSWORD": f"{CANARY}-password",
    "HTTP_PROXY": f"http://proxyuser:{CANARY}-proxy@127.0.0.1:9",
    "HTTPS_PROXY": f"http://proxyuser:{CANARY}-proxy@127.0.0.1:9",
    "NO_PROXY": "127.0.0.1,localhost,::1",
}
# Words of all of them, and of the token that only the user's code knows.
CANARIES = (CANARY.encode(), CANARY.upper().encode())
USER_CODE = '''
import math
import os
from pathlib import Path

from torch import nn


class Net(nn.Linear):
    def forward(self, x):
        if self.training and Path(os.environ["C_FLAG"]).exists():
            raise RuntimeError(
                "cannot log to https://bob:c4n4ry-url@metrics/api?token=c4n4ry-query with "
                + os.environ["AWS_SECRET_ACCESS_KEY"] + " Authorization: Bearer c4n4ry.bearer.0123 ghp_c4n4ry0123456789abcdefghij"
            )
        return super().forward(x.flatten(1))


def net(input_shape, num_classes):
    return Net(math.prod(input_shape), num_classes)
'''
# Imported by every Python process of the run: a folder is copied before it is removed, so that nothing is overlooked.
KEEP = '''
import os, shutil, uuid
_remove = shutil.rmtree
def rmtree(path, *arguments, **named):
    if os.path.basename(str(path)).startswith("secateur-") and os.path.isdir(path):
        try:
            shutil.copytree(path, os.path.join(os.environ["C_KEEP"], uuid.uuid4().hex), symlinks=True,
                            ignore=lambda folder, names: [n for n in names if not (
                                os.path.isfile(os.path.join(folder, n)) or os.path.isdir(os.path.join(folder, n)))])
        except Exception:
            pass
    return _remove(path, *arguments, **named)
shutil.rmtree = rmtree
'''
SETTINGS = (
    "data.limit=200", "score.scores=[random]", "proxy.epochs=1", "train.replicates=1", "train.steps=2", "train.full=false",
    "select.arms=[{protocol: topk, score: random, direction: high}]", "train.model={use: 'leaky:net'}",
)  # fmt: skip


class Watch:
    """Look at a run while it goes on: command lines, addresses that are listened on, and what lies in Ray's folder.

    That folder is removed by a process that ignores every setting of Python's, so it is read before.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: set[str] = set()
        self.addresses: set[str] = set()
        self.logs: dict[str, bytes] = {}
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _look(self) -> None:
        while self.process.poll() is None:
            try:
                driver = psutil.Process(self.process.pid)
                for one in [driver, *driver.children(recursive=True)]:
                    self._note(one)
            except psutil.Error:
                pass
            threading.Event().wait(0.3)

    def _note(self, one: psutil.Process) -> None:
        try:
            words = one.cmdline()
            self.lines.add(" ".join(words))
            if any(word.endswith("cluster/guard.py") for word in words):
                self.logs |= {name: data for name, data in files(Path(words[words.index("-I") + 2])) if data}
            for socket in one.net_connections(kind="inet"):
                if socket.status == psutil.CONN_LISTEN:
                    self.addresses.add(str(socket.laddr.ip))
        except (psutil.Error, OSError):
            # It ended while it was looked at, or the file was removed.
            pass


def run(tmp_path: Path, flag: Path) -> tuple[int, str, Watch]:
    """Run the command with secrets in its environment; return its code, all it printed, and what was seen meanwhile."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "RAY_"))}
    environment |= SECRETS | {
        "C_FLAG": str(flag), "C_KEEP": str(tmp_path / "kept"), "HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT)]),
    }  # fmt: skip
    sets = [word for setting in (*SETTINGS, f"code=[{tmp_path / 'code'}]") for word in ("--set", setting)]
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run", CONFIG, "--store", str(tmp_path / "store"), *sets],
        cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    watch = Watch(process)
    try:
        said, _ = process.communicate(timeout=400)
    finally:
        process.kill()
    watch.thread.join(timeout=30)
    return process.returncode, said, watch


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name below `folder` and the bytes of every file; one that is removed meanwhile is left out."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(FileNotFoundError):
                yield str(path.relative_to(folder)), path.read_bytes()


def test_secrets_reach_nothing_that_a_run_leaves(tmp_path: Path) -> None:
    for name in ("kept", "home", "site", "code"):
        (tmp_path / name).mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(KEEP)
    (tmp_path / "code" / "leaky.py").write_text(USER_CODE)
    flag = tmp_path / "flag"
    flag.touch()
    code, said, first = run(tmp_path, flag)
    assert code == 1 and "RuntimeError" in said and "secateur resume" in said, said
    flag.unlink()
    code, again, second = run(tmp_path, flag)
    assert code == 0, again
    texts = {"what it printed": said.encode(), "what it printed then": again.encode()}
    texts |= {f"command line {number}": line.encode() for number, line in enumerate(sorted(first.lines | second.lines))}
    kept = dict(files(tmp_path / "kept"))
    names = " ".join(kept)
    # What a run removes at its end was looked at too: Prefect's database, Ray's logs.
    assert "prefect.db" in names, sorted(kept)[:40]
    logs = {f"ray {number}/{name}": data for number, seen in enumerate((first, second)) for name, data in seen.logs.items()}
    assert any("raylet.out" in name for name in logs), sorted(logs)[:40]
    texts |= logs
    texts |= {f"kept/{name}": data for name, data in kept.items()}
    for folder in ("store", "home"):
        texts |= {f"{folder}/{name}": data for name, data in files(tmp_path / folder)}
    assert any(name.endswith(".end.json") for name in texts)
    leaks = {
        name: data[max(0, at - 80) : at + 60]
        for name, data in texts.items()
        if name != "kept" and (at := max(data.lower().find(word.lower()) for word in CANARIES)) >= 0
    }
    # The user's own source, shipped to workers, holds what the user wrote into it.
    leaks = {name: found for name, found in leaks.items() if not name.endswith(("leaky.py", ".pyc"))}
    assert not leaks, leaks
    addresses = [ipaddress.ip_address(address) for address in first.addresses | second.addresses]
    # Ray's servers say 127.0.0.1 in the form of IPv6.
    assert addresses and all((getattr(one, "ipv4_mapped", None) or one).is_loopback for one in addresses), addresses


def test_a_store_travels_without_its_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    for uri in ("s3://bucket/prefix", "/tmp/store"):
        data = pickle.dumps(Store(uri))
        assert not any(word in data.lower() for word in (CANARY.encode(), b"proxyuser"))


@pytest.mark.parametrize(
    "text",
    [
        "AKIAC4N4RYC4N4RYC4N4", "https://user:c4n4ry@host/path", "postgres://u:c4n4ry@h:5432/db", "s3://h/k?X-Amz-Signature=c4n4ry",
        "https://h/k?a=1&X-Amz-Security-Token=c4n4ry&b=2", "Authorization: Bearer c4n4ry.abc.def", "Basic YzRuNHJ5YzRuNHJ5",
        "ghp_c4n4ry0123456789abcdefghij", "eyJhbGciOiJIUzI1NiJ9.eyJjNG40cnkiOjF9.c4n4ry", "aws_secret_access_key = c4n4ry0123",
        "password=c4n4ry0", '"token": "c4n4ry-0"', "hf_c4n4ry0123456789abcdefgh", "pnu_c4n4ry0123456789abcdefgh",
        "-----BEGIN RSA PRIVATE KEY-----\nc4n4ry\n-----END RSA PRIVATE KEY-----", "http://h/?sig=c4n4ry&x=1",
    ],
)  # fmt: skip
def test_secrets_are_known_by_their_form(text: str) -> None:
    said = scrub(f"it failed: {text}, so stop")
    assert "c4n4ry" not in said.lower() and "YzRu" not in said
    assert said.startswith("it failed: ") and said.endswith(" stop")


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/prefix/key.parquet", "/data/mnist", "el2n@0.1", "digits", "package.module:callable", "http://127.0.0.1:4200/api",
        "score el2n is not finite", "score-0123456789ab", "s3://bucket/a@b", "token", "secret", "a basic model", "2f" * 32,
    ],
)  # fmt: skip
def test_ordinary_text_is_left_as_it_is(text: str) -> None:
    assert scrub(text) == text and find_secret(text) is None


def test_exceptions_lose_their_secrets_with_their_causes_and_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "c4n4ry-value")

    class OddError(Exception):
        def __str__(self) -> str:
            return "odd c4n4ry-value"

    try:
        try:
            raise ValueError("first c4n4ry-value")
        except ValueError as error:
            raise KeyError("then https://u:c4n4ry@h") from error
    except KeyError as error:
        error.add_note("note c4n4ry-value")
        same = scrub_error(error)
    assert same.__notes__ == ["note <SOME_TOKEN>"] and "c4n4ry" not in f"{same} {same.__cause__}"
    assert isinstance(same, KeyError) and "c4n4ry" not in str(scrub_error(OddError()))
