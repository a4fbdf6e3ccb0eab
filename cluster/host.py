"""The process a worker lives in: one actor class for every stage, and how its outcomes travel."""

from __future__ import annotations

import gc
import pickle
import sys
import threading
import traceback
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray

from cluster.code import add_code_dirs
from cluster.errors import outage_of

Outcome = tuple[bool, Any]
"""(True, the result) or (False, the exception, with the worker's traceback as its note)."""


def portable(error: Exception, where: str) -> Exception:
    """Return `error` as it can be sent: itself, its traceback as a note, or a RuntimeError that tells of it.

    Sent alone, without what it was made from: where that is an outage of the store, the outage.
    """
    text = "".join(traceback.format_exception(error))
    error = outage_of(error) or error
    error.add_note(f"{where}:\n{text}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        # Exceptions whose constructor takes other arguments than their message cannot be rebuilt elsewhere.
        error = RuntimeError(f"{type(error).__name__}: {error}")
        error.add_note(f"{where}:\n{text}")
    return error


def _free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class Host:
    """Hold one worker at a time. Two threads: while one computes an item, the other loads the next."""

    def __init__(self) -> None:
        self._worker: Any = None
        self._turn = 0
        self._loading, self._computing = threading.Lock(), threading.Lock()
        # Items are computed in the order in which their loads began: a lock alone would let one overtake another for ever.
        self._begun = 0
        self._next = threading.Condition()
        self._finished = 0

    def start(self, turn: int, code: Sequence[str], payload: bytes) -> Outcome:
        """Make the worker that `payload` of `dump` makes; `turn` tells it from those before it."""
        with self._computing:
            self._turn, self._worker = turn, None
            try:
                # Shipped code has relative paths, below the working folder Ray unpacked it in.
                add_code_dirs(Path(folder).absolute() for folder in code)
                self._worker = ray.cloudpickle.loads(zlib.decompress(payload))()
            except Exception as error:
                return False, portable(error, "in the worker's constructor")
            return True, None

    def process(self, item: Any) -> Outcome:
        """Load and compute one item; the result, or the exception it raised."""
        loaded, failure = None, None
        with self._loading:
            place = self._begun
            self._begun += 1
            try:
                loaded = self._worker.load(item)
            except Exception as error:
                failure = portable(error, "in the worker")
        with self._next:
            self._next.wait_for(lambda: self._finished == place)
        try:
            if failure is not None:
                return False, failure
            with self._computing:
                return True, self._worker.compute(item, loaded)
        except Exception as error:
            return False, portable(error, "in the worker")
        finally:
            with self._next:
                self._finished += 1
                self._next.notify_all()

    def stop(self, turn: int) -> None:
        """Drop the worker of `turn` and its memory; nothing happens if another took its place."""
        with self._computing:
            if self._turn == turn:
                self._worker = None
                _free_memory()


# Defined once: every fresh ray.remote(cls) would leave an entry in the head's table.
RemoteHost: Any = ray.remote(Host)


def new_host(cpus: float, gpus: float) -> Any:
    """Start a host somewhere in the cluster and return its handle at once."""
    threads = str(max(1, int(cpus)))
    environment = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    if not gpus:
        # Ray leaves a node's GPUs visible to workers that asked for none.
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return RemoteHost.options(
        num_cpus=cpus,
        num_gpus=gpus,
        max_concurrency=2,
        max_restarts=0,
        max_task_retries=0,
        scheduling_strategy="SPREAD",
        runtime_env={"env_vars": environment},
    ).remote()


def dump(make_worker: Callable[[], Any]) -> bytes:
    """Return the pickled callable, for `Host.start`: compressed, since seals list thousands of shards."""
    pickler: Any = ray.cloudpickle
    data: bytes = pickler.dumps(make_worker)
    return zlib.compress(data, 1)
