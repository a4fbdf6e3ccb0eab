"""What a store is asked: calls and bytes of files, requests of S3, counted by wrappers around the real ones.

`python -m benchmarks.scale_calls finished CONFIG STORE` counts what `plan` and a run of a finished configuration ask.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from cluster.storage import Objects, Store

KEYS = {
    "AWS_ACCESS_KEY_ID": "scale", "AWS_SECRET_ACCESS_KEY": "scale", "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}  # fmt: skip


class CountedFile:
    """Be an open file, and count the bytes that are read."""

    def __init__(self, file: BinaryIO, count: Counter[str]) -> None:
        self.file, self.count = file, count

    def read(self, size: int = -1) -> bytes:
        """Read on."""
        data = self.file.read(size)
        self.count["bytes out"] += len(data)
        return data

    def __enter__(self) -> CountedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


class Counted:
    """Be the objects of a store, and count what they are asked: calls by name, bytes in and out."""

    def __init__(self, objects: Objects, count: Counter[str]) -> None:
        self.objects, self.count = objects, count

    def create(self, name: str, data: bytes) -> bool:
        """Publish."""
        self.count.update({"create": 1, "bytes in": len(data)})
        return self.objects.create(name, data)

    def replace(self, name: str, data: bytes) -> None:
        """Write over."""
        self.count.update({"replace": 1, "bytes in": len(data)})
        self.objects.replace(name, data)

    def read(self, name: str) -> bytes:
        """Read a whole object."""
        self.count["read"] += 1
        data = self.objects.read(name)
        self.count["bytes out"] += len(data)
        return data

    def exists(self, name: str) -> bool:
        """Look for an object."""
        self.count["exists"] += 1
        return self.objects.exists(name)

    def list(self, prefix: str) -> list[str]:
        """List a folder."""
        self.count["list"] += 1
        return self.objects.list(prefix)

    def remove(self, name: str) -> None:
        """Remove an object."""
        self.count["remove"] += 1
        self.objects.remove(name)

    def open(self, name: str) -> BinaryIO:
        """Open an object; every byte that is read of it counts."""
        self.count["open"] += 1
        return cast(BinaryIO, CountedFile(self.objects.open(name), self.count))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objects, name)


@contextlib.contextmanager
def counted_stores(count: Counter[str]) -> Iterator[None]:
    """Count what every store is asked that this process makes meanwhile."""
    plain = Store.__init__

    def noted(self: Store, *arguments: Any, **more: Any) -> None:
        plain(self, *arguments, **more)
        self.objects = Counted(self.objects, count)

    Store.__init__ = noted  # type: ignore[method-assign]
    try:
        yield
    finally:
        Store.__init__ = plain  # type: ignore[method-assign]


@contextlib.contextmanager
def counted_requests(count: Counter[str]) -> Iterator[None]:
    """Count every request to S3 that this process makes meanwhile, by its method; tries that failed too."""
    from cluster.s3_files import PatientFileSystem

    plain = PatientFileSystem._try

    async def noted(self: Any, method: str, *more: Any, **arguments: Any) -> Any:
        count[method] += 1
        return await plain(self, method, *more, **arguments)

    PatientFileSystem._try = noted
    try:
        yield
    finally:
        PatientFileSystem._try = plain


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Yield the URI of an empty place in S3: at the endpoint of the environment, with SCALE_BUCKET, or in a server of moto's."""
    if os.environ.get("SCALE_BUCKET"):
        yield f"s3://{os.environ['SCALE_BUCKET']}/{uuid.uuid4().hex[:12]}"
        return
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ.update(KEYS, AWS_ENDPOINT_URL=f"http://{host}:{port}")
    try:
        import s3fs

        # Servers of one process share their buckets.
        bucket = f"scale-{uuid.uuid4().hex[:12]}"
        s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"], skip_instance_cache=True).mkdir(bucket)
        yield f"s3://{bucket}/store"
    finally:
        server.stop()


def _counted(count: Counter[str], work: Callable[[], object]) -> dict[str, Any]:
    """Return what one command asks of its store, and its seconds."""
    count.clear()
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        work()
    return {"seconds": time.perf_counter() - start, "calls": dict(count)}


def finished(config: str, store: str) -> dict[str, Any]:
    """Return what `plan`, and `run` of what is finished, ask of the store; Ray and Prefect must stay unimported."""
    from flows.config import load_config
    from flows.execute import execute
    from flows.show import show_plan

    count: Counter[str] = Counter()
    known = load_config(config, ())
    with contextlib.ExitStack() as stack:
        if store.startswith("s3://"):
            stack.enter_context(counted_requests(count))
        else:
            stack.enter_context(counted_stores(count))
        out = {
            "plan": _counted(count, lambda: show_plan(known, store, False)),
            "finished run": _counted(count, lambda: execute(known, store, "local", False)),
        }
    started = sorted({"ray", "prefect", "torch"} & set(sys.modules))
    if started:
        raise RuntimeError(f"a finished run imported {', '.join(started)}: it must start nothing")
    return out


def measure(shards: int, on_s3: bool) -> dict[str, Any]:
    """Return what `plan` and a finished run ask of the store of a run on so many tiny shards, made on the serial pool."""
    from benchmarks import tiny_shards
    from benchmarks.contest import run_process
    from flows.config import load_config
    from flows.plan import make_plan
    from tasks.pool import SerialPool
    from tests.flows.serial_run import run_serially

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = stack.enter_context(s3_server()) if on_s3 else str(folder / "store")
        os.environ["SECATEUR_CACHE"] = str(folder / "cache")
        tiny_shards.make_data(folder, shards)
        config = folder / "tiny.yaml"
        config.write_text(tiny_shards.CONFIG.format(data=folder, rows=tiny_shards.ROWS))
        run_serially(make_plan(load_config(str(config))), Store(store), SerialPool())
        try:
            found = run_process([sys.executable, "-m", "benchmarks.scale_calls", "finished", str(config), store]).said
        except subprocess.CalledProcessError as error:
            print(error.stderr.decode()[-4000:], file=sys.stderr)
            raise
        return dict(found)


if __name__ == "__main__":
    if sys.argv[1:2] != ["finished"] or len(sys.argv) != 4:
        sys.exit("usage: python -m benchmarks.scale_calls finished CONFIG STORE")
    print(json.dumps(finished(sys.argv[2], sys.argv[3])))
