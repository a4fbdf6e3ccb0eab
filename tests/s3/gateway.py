"""A Ceph Object Gateway on loopback: one monitor, one manager, one OSD in memory, and radosgw, which can be stopped alone."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

PROGRAMS = ("ceph-mon", "ceph-mgr", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "ceph-authtool", "monmaptool", "setpriv")
ACCESS, SECRET = "SECATEURTESTKEY", "secateur/test+secret"
START_S = 120.0

CONF = """\
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{mon_port}
mon initial members = a
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
ms bind ipv6 = false
public addr = 127.0.0.1
cluster addr = 127.0.0.1
pid file = {folder}/$name.pid
log file = {folder}/$name.log
run dir = {folder}
admin socket = {folder}/$name.asok
keyring = {folder}/keyring
crash dir = {folder}
[mon.a]
mon data = {folder}/mon
[mgr.x]
mgr data = {folder}/mgr
[osd.0]
osd objectstore = memstore
osd data = {folder}/osd
[client.rgw.a]
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw enable usage log = false
rgw enable gc threads = false
"""


def missing() -> list[str]:
    """Return the programs that are not installed here."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def free_port() -> int:
    """Return a TCP port that nothing listens at now, of those that no connection gets as its own: they stay free longer."""
    for port in random.Random().sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise RuntimeError("a hundred ports between 20000 and 32000 are taken")


def start_gateway(tries: int = 3) -> Gateway:
    """Return a running gateway in a new folder; tried again where, say, a port was taken between two steps."""
    for left in reversed(range(tries)):
        # Sockets lie below the folder, and their names are short.
        gateway = Gateway(Path(tempfile.mkdtemp(prefix="ceph-", dir="/tmp")))
        try:
            gateway.boot()
            return gateway
        except (OSError, RuntimeError, subprocess.SubprocessError):
            gateway.close()
            if not left:
                raise
        except BaseException:
            gateway.close()
            raise
    raise AssertionError("unreachable")


class Gateway:
    """Run the cluster below `folder`, whose name must be short: it holds sockets. Every process dies with this thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._radosgw: subprocess.Popen[bytes] | None = None

    def _run(self, *words: str, patience_s: float = 0.0) -> str:
        """Run a program of Ceph's to its end, again for `patience_s`: a monitor that has just started turns some away."""
        deadline = time.monotonic() + patience_s
        while True:
            done = subprocess.run(
                [words[0], "-c", str(self.folder / "ceph.conf"), *words[1:]],
                capture_output=True, text=True, timeout=START_S / 2, check=False,
            )  # fmt: skip
            if done.returncode == 0:
                return done.stdout
            if time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(words)}: {done.stdout} {done.stderr}")
            time.sleep(0.5)

    def _daemon(self, *words: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{words[0]}.out").open("ab") as log:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", words[0], "-c", str(self.folder / "ceph.conf"), *words[1:], "-f"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def boot(self) -> None:
        """Make the cluster, start all of it, and make the user of the tests."""
        for name in ("mon", "mgr", "osd", "rgw"):
            (self.folder / name).mkdir(parents=True)
        fsid, mon_port = str(uuid.uuid4()), free_port()
        text = CONF.format(folder=self.folder, fsid=fsid, mon_port=mon_port, port=self.port)
        (self.folder / "ceph.conf").write_text(text)
        keyring, monmap = str(self.folder / "keyring"), str(self.folder / "monmap")
        subprocess.run(
            ["ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *"],
            check=True, capture_output=True, timeout=START_S,
        )  # fmt: skip
        subprocess.run(
            ["monmaptool", "--create", "--addv", "a", f"[v1:127.0.0.1:{mon_port}]", "--fsid", fsid, monmap],
            check=True, capture_output=True, timeout=START_S,
        )  # fmt: skip
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        self._daemons.append(self._daemon("ceph-mon", "-i", "a"))
        osd = str(uuid.uuid4())
        number = self._run("ceph", "--connect-timeout", "60", "osd", "create", osd, patience_s=START_S / 4).strip()
        if number != "0":
            raise RuntimeError(f"the first OSD has the number {number!r}")
        self._daemons.append(self._daemon("ceph-mgr", "-i", "x"))
        self._run("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", osd)
        self._start_osd()
        self._run(
            "radosgw-admin", "user", "create", "--uid", "tests", "--display-name", "tests",
            "--access-key", ACCESS, "--secret-key", SECRET, patience_s=START_S / 4,
        )  # fmt: skip
        self.start()

    def _start_osd(self) -> None:
        """Start the OSD and wait until the monitor counts it as up.

        Three starts in ten end at once with "wrong fsid": the OSD asks before the monitor's map has reached it. Without
        an OSD every later command would hang, so it is started again.
        """
        deadline = time.monotonic() + START_S / 2
        osd = self._daemon("ceph-osd", "-i", "0")
        self._daemons.append(osd)
        while json.loads(self._run("ceph", "osd", "stat", "--format", "json", patience_s=START_S / 4))["num_up_osds"] != 1:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the OSD does not come up: {(self.folder / 'ceph-osd.out').read_text()}")
            if osd.poll() is not None:
                osd = self._daemon("ceph-osd", "-i", "0")
                self._daemons.append(osd)

    def start(self) -> None:
        """Start radosgw and wait until it answers; its port is the same each time. It dies with the thread that calls this."""
        self._radosgw = self._daemon("radosgw", "-n", "client.rgw.a")
        opener = build_opener(ProxyHandler({}))
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(HTTPError, URLError, OSError):
                opener.open(self.url, timeout=5).close()
                return
            if self._radosgw.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"radosgw does not answer: {(self.folder / 'radosgw.out').read_text()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Kill radosgw alone: an outage of the store, whose objects stay in the cluster."""
        assert self._radosgw is not None
        self._radosgw.kill()
        self._radosgw.wait(timeout=30)

    def restore(self) -> None:
        """Start radosgw if it does not run."""
        if self._radosgw is None or self._radosgw.poll() is not None:
            self.start()

    def close(self) -> None:
        """Kill every process that was started here, by its handle, and remove the folder."""
        for daemon in [*filter(None, [self._radosgw]), *reversed(self._daemons)]:
            daemon.kill()
        for daemon in [*filter(None, [self._radosgw]), *self._daemons]:
            daemon.wait(timeout=30)
        shutil.rmtree(self.folder, ignore_errors=True)
