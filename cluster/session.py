"""The Ray session of a run: started here or joined, and only what was started here is stopped."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, cast

from cluster.code import PROJECT_ROOT, check_code_dirs, stage_code
from cluster.control_characters import show_controls
from cluster.errors import InputError, StageError
from cluster.scratch import PREFIX, claim, sweep

if TYPE_CHECKING:
    from cluster.launcher import RayLauncher
    from cluster.pool import RayPool

PROBE_SECONDS = 5.0
# Results are published from inside the workers; what passes through Ray's object store is small.
OBJECT_STORE_BYTES = 512 * 2**20
# Ray's own waits for its head and for its node are 30 s, which a machine under load has used up.
START_SECONDS = 60
# Ray makes sockets below its folder, and a socket's path ends at 107 bytes; its own part takes 72.
LONGEST_FOLDER = 30

_log = logging.getLogger("secateur.ray")
_farewell = "what is committed stays; run the same command again to go on"


def set_farewell(text: str) -> None:
    """Have `text` said on standard error, in place of a general hint, should this process end without its clean-up."""
    global _farewell
    _farewell = show_controls(text)


def prepare_environment() -> None:
    """Set, before Ray is imported, what Ray reads from the environment only."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A worker without GPUs is given an empty CUDA_VISIBLE_DEVICES by the pool; Ray warns that it will not do it.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def prepare_local() -> None:
    """Bind every socket of a local Ray to the loopback address, behind a token that only this process tree knows."""
    prepare_environment()
    # Ray names this switch after the systems where it is the default; it makes "this node" mean 127.0.0.1.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        if not (os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")):
            # Without it Ray writes one below the home folder.
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # Records of every call for a dashboard that is off: 1.5 to 2.4 KB a call in the driver, 0.1 without.
    os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    for wait in ("RAY_gcs_server_port_wait_time_s", "RAY_raylet_start_wait_time_s"):
        os.environ.setdefault(wait, str(START_SECONDS))
    from ray import _raylet
    from ray._private import ray_constants

    # Both were read when Ray was first imported, which may have been before this.
    ray_constants.ENABLE_RAY_CLUSTER = False
    cast(Any, _raylet).Config.initialize("")


def _short_folder() -> Path:
    """Return a new private folder whose name is short enough for Ray's sockets."""
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix=PREFIX, dir=base if len(base) + 18 <= LONGEST_FOLDER else "/tmp"))


def _note(data: dict[str, Any], ignore_prefix: bool = False) -> None:
    """Log the first line of what Ray would print, on standard output, about the cluster."""
    for text in data["lines"]:
        _log.info("%s", text.strip().partition("\n")[0][:300])


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Give back the SIGTERM and SIGINT handlers that ray.init replaces, and pass on a SIGTERM that came meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    ended: SystemExit | None = None
    try:
        yield
    except SystemExit as error:
        ended = error
    finally:
        for number, handler in old.items():
            if handler is not None:
                signal.signal(number, handler)
    if ended is None:
        return
    before = old[signal.SIGTERM]
    # Ray's own handler exits with the bare number of the signal.
    if ended.code == signal.SIGTERM and callable(before):
        before(signal.SIGTERM, None)
    raise ended


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT. Raises InputError, also for ray:// addresses."""
    if "://" in address:
        raise InputError(
            f"Ray address {address!r} is not supported: run this command on a node of the cluster (kubectl exec, "
            "ray submit, ssh) with --ray auto, or give HOST:PORT of the head as seen from that node"
        )
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(f"Ray address {address!r} is not local, auto or HOST:PORT (6379 is the usual port)")
    return host.strip("[]"), int(port)


def probe(address: str, seconds: float = PROBE_SECONDS) -> None:
    """Raise InputError unless something that can be a Ray head answers at HOST:PORT within the given time."""
    host, port = parse_address(address)
    frame, cause = b"", None
    try:
        with socket.create_connection((host, port), timeout=seconds) as connection:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return
            # A head speaks gRPC, that is HTTP/2, where both sides begin with a frame of type 4. Ray itself would wait for
            # minutes for it on any other port.
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
            frame = connection.recv(9)
    except TimeoutError as error:
        cause = error
    except OSError as error:
        raise InputError(
            f"no Ray cluster answers at {address} ({error}); start one (`ray start --head`), correct the address, "
            "or use --ray local"
        ) from error
    if frame[3:4] != b"\x04":
        raise InputError(
            f"what listens at {address} is no Ray head; give the port that `ray start --head` named (6379 by default, not "
            "the dashboard's 8265), or use --ray local"
        ) from cause


def _find_address() -> str:
    """Return the address that `auto` means: RAY_ADDRESS, else the cluster that runs on this machine."""
    named = os.environ.get("RAY_ADDRESS", "")
    if named and named != "auto":
        return named
    from ray._private import services

    try:
        found = services.canonicalize_bootstrap_address("auto")
    except (ConnectionError, ValueError) as error:
        raise InputError(
            "--ray auto: no Ray cluster runs on this machine and RAY_ADDRESS is not set; start one "
            "(`ray start --head`), or use --ray local"
        ) from error
    return str(found)


def _reachable(address: str) -> str:
    """Return the HOST:PORT at which a cluster answers. Raises InputError, within seconds, where none does."""
    probe(address)
    host, port = parse_address(address)
    from ray._private import ray_constants, services

    # Ray takes a loopback address to mean this machine's other one, where a head that is bound to loopback is not.
    other = services.resolve_ip_for_localhost(host)
    if other != host:
        try:
            probe(f"{other}:{port}", 1.0)
        except InputError:
            ray_constants.ENABLE_RAY_CLUSTER = False
    # Each try is bound by 5 s and waits 1 s; Ray's own number of them, 20, is for a head that is starting.
    ray_constants.NUM_REDIS_GET_RETRIES = 2
    return address


class RaySession:
    """Hold a Ray session as a context manager; make pools and launchers in it.

    `address`: "local" starts Ray on this machine, on loopback with its own token, and stops it again; "auto" or
    HOST:PORT joins a cluster and only ever leaves it. Workers of a joined cluster get `cluster`, `tasks` and the `code`
    folders as a filtered copy. Where this process is connected to Ray already, that connection is used and kept.

    Enter it in the main thread: the kernel kills the Ray processes of a local session when that thread ends, so they
    cannot outlive a killed driver.
    """

    def __init__(
        self,
        address: str = "local",
        code: Sequence[Path | str] = (),
        scratch: Path | None = None,
        *,
        num_cpus: int | None = None,
        num_gpus: int | None = None,
    ) -> None:
        self.address = address
        self.code = check_code_dirs(code)
        self.scratch = scratch
        self.num_cpus, self.num_gpus = num_cpus, num_gpus
        # Where workers find the user's code: as it is here, or relative to their working folder when it was shipped.
        self.worker_code: list[str] = [str(folder) for folder in self.code]
        self.owns_connection = False
        self._folder: Path | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._owns_scratch = False
        self._claims: list[IO[bytes]] = []
        self._printer: Any = None
        self._pools: list[RayPool] = []
        self._launchers: list[RayLauncher] = []

    def __enter__(self) -> RaySession:
        prepare_environment()
        import ray

        try:
            sweep()
            if self.scratch is None:
                self.scratch = Path(tempfile.mkdtemp(prefix=f"{PREFIX}scratch-"))
                self._owns_scratch = True
            self.scratch.mkdir(parents=True, exist_ok=True)
            self._claims.append(claim(self.scratch))
            if ray.is_initialized():
                return self
            # Standard output is the command's; Ray prints there that a node died, whatever it is told of logging.
            self._printer = ray._private.worker.print_to_stdstream
            ray._private.worker.print_to_stdstream = _note
            with _signals_kept():
                if self.address == "local":
                    self._start()
                else:
                    self._join()
        except BaseException:
            self.close()
            raise
        return self

    def _options(self) -> dict[str, Any]:
        return {
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "namespace": f"secateur-{uuid.uuid4().hex}",
        }

    def _start(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("a local RaySession is entered in the main thread: its processes end with that thread")
        prepare_local()
        import ray

        self._folder = _short_folder()
        self._guard = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("guard.py")), str(self._folder), str(os.getpid())],
            stdin=subprocess.PIPE,
            # On standard error it says the last word of a driver that cannot any more.
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        environment: dict[str, str] = {}
        if "site-packages" not in PROJECT_ROOT.parts:
            environment["PYTHONPATH"] = os.pathsep.join(
                [str(PROJECT_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            )
        self.owns_connection = True
        # A daemon that is lost now may end this process at once.
        self._tell_guard({"farewell": f"Ray was starting; {_farewell}", "daemons": {}})
        try:
            ray.init(
                address="local",
                num_cpus=self.num_cpus,
                num_gpus=self.num_gpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                runtime_env={"env_vars": environment},
                _temp_dir=str(self._folder),
                _node_ip_address="127.0.0.1",
                **self._options(),
            )
        except Exception as error:
            # Of any class, a bare Exception where the node is late. What it left is ended by the guard.
            said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:300]
            raise StageError(
                f"Ray did not start on this machine ({type(error).__name__}: {said}); see that it has free memory, room in "
                f"{self._folder.parent} and less other work, or join a cluster with --ray ADDRESS"
            ) from error
        node: Any = ray._private.worker._global_node
        daemons = {name: infos[0].process.pid for name, infos in node.all_processes.items() if name in ("gcs_server", "raylet")}
        self._tell_guard({"farewell": _farewell, "daemons": daemons})

    def _tell_guard(self, words: dict[str, Any] | None) -> None:
        """Send the guard what to say and whom to watch, or that this session closes in order."""
        assert self._guard is not None and self._guard.stdin is not None
        with contextlib.suppress(OSError):
            self._guard.stdin.write((json.dumps(words) if words else "").encode() + b"\n")
            self._guard.stdin.flush()

    def _join(self) -> None:
        import ray

        address = _reachable(_find_address() if self.address == "auto" else self.address)
        assert self.scratch is not None
        package = self.scratch / f"ship-{uuid.uuid4().hex}"
        self.worker_code = stage_code(self.code, package)
        self.owns_connection = True
        try:
            ray.init(address=address, runtime_env={"working_dir": str(package)}, **self._options())
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise InputError(
                f"cannot join the Ray cluster at {address} ({type(error).__name__}: {error}); run this command on a "
                "node of that cluster, with the same Ray and Python versions and, where it asks for one, its token "
                "(RAY_AUTH_MODE=token and RAY_AUTH_TOKEN)"
            ) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def pool(self, progress: Callable[[str, int, int], None] | None = None) -> RayPool:
        """Return a pool in this session; its workers end with the session at the latest."""
        from cluster.pool import RayPool

        pool = RayPool(progress, code=self.worker_code)
        self._pools.append(pool)
        return pool

    def launcher(self, loop: Callable[[Any, int, int, Callable[..., None]], Any]) -> RayLauncher:
        """Return a launcher of trainings with several workers; each runs `loop(job, rank, world_size, report)`."""
        from cluster.launcher import RayLauncher

        assert self.scratch is not None
        launcher = RayLauncher(loop, self.scratch / "train", code=self.worker_code, before=self.release)
        self._launchers.append(launcher)
        return launcher

    def release(self) -> None:
        """End the idle workers of all pools, so that what they hold is free."""
        for pool in self._pools:
            pool.release()

    def cancel(self) -> None:
        """End every worker of every pool and launcher now, by handle. Safe from any thread."""
        holders: list[RayPool | RayLauncher] = [*self._pools, *self._launchers]
        for holder in holders:
            holder.cancel()

    def close(self) -> None:
        """Leave the cluster; stop it if this session started it. Safe to call twice."""
        ray = sys.modules.get("ray")
        if self._guard is not None:
            self._tell_guard(None)
        if self.owns_connection and ray is not None:
            with _signals_kept():
                ray.shutdown()
            self.owns_connection = False
        if self._printer is not None and ray is not None:
            ray._private.worker.print_to_stdstream = self._printer
            self._printer = None
        if self._guard is not None:
            assert self._guard.stdin is not None
            self._guard.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._guard.wait(timeout=3)
            self._guard = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        for lock in self._claims:
            lock.close()
        self._claims = []
        if self._owns_scratch and self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)
            self.scratch, self._owns_scratch = None, False
