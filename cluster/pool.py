"""The Ray pool: long-lived workers all over the cluster, bounded in flight, replaced when they or their node die."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import exceptions as ray_errors

from cluster.capacity import check_fits, describe, slots_at_most
from cluster.errors import ItemsError, SecateurError, StageError
from cluster.host import dump, new_host
from cluster.outcomes import failed, outcomes, shown, unmade
from cluster.shape import Shape, check_shape

# One item is computed while the next is loaded; a host works on no more. Where items are so short that the way there and
# back would leave it idle, more wait at it, FLIGHT_SECONDS worth of them.
IN_FLIGHT = 2
MOST_IN_FLIGHT = 16
FLIGHT_SECONDS = 0.03
TICK_SECONDS = 0.5
GROW_SECONDS = 5.0
# How long a cluster that lost every node a worker fits on may take to get one back.
WAIT_SECONDS = 120.0

_log = logging.getLogger("secateur.ray")
_turns = itertools.count(1)


@dataclass(eq=False)
class _Actor:
    """One host of this map: what it was asked for, and whether it may get more."""

    handle: Any
    starting: Any
    ready: bool = False
    alive: bool = True
    flight: dict[Any, int] = field(default_factory=dict)
    # Works on an item whose worker may have died of it: alone, so that it cannot take another item with it again.
    alone: bool = False
    working: set[Any] = field(default_factory=set)


class RayPool:
    """Map over the cluster that this process is connected to; meets `tasks.pool.Pool`.

    Hosts stay warm from one map to the next while nothing else runs in the pool and the resources asked for are the
    same; `release` ends them. `code` holds the folders that workers add to their import path.
    """

    def __init__(
        self,
        progress: Callable[[str, int, int], None] | None = None,
        code: Sequence[str] = (),
        *,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self.progress = progress
        self.code = tuple(str(folder) for folder in code)
        self.wait_seconds = wait_seconds
        self._lock = threading.Lock()
        self._cancelled = False
        self._maps = 0
        self._live: set[Any] = set()
        self._idle: list[Any] = []
        self._idle_shape: Shape | None = None

    def map(
        self,
        make_worker: Callable[[], Any],
        items: Sequence[Any],
        *,
        label: str,
        resources: Any,
        done: int = 0,
    ) -> Iterator[tuple[int, Any]]:
        """Return an iterator over (index of the item, result) in order of completion; see `tasks.pool.Pool.map`.

        `resources` has cpus, gpus, workers and retries. Raises InputError, before anything starts, when no node can
        ever hold a worker. Closing the iterator, or any exception, ends the workers by handle.
        """
        shape = check_shape(resources.cpus, resources.gpus)
        if not items:
            return iter(())
        check_fits(shape, label)
        payload = dump(make_worker)
        workers, retries = resources.workers, resources.retries
        run = _Map(self, payload, items, label=label, shape=shape, workers=workers, retries=retries, done=done)
        return run.results()

    def cancel(self) -> None:
        """End every worker now, by handle; maps that are under way raise StageError. Safe from any thread."""
        with self._lock:
            self._cancelled = True
            handles, self._live, self._idle = list(self._live), set(), []
        _kill(handles)

    def release(self) -> None:
        """End the hosts that are kept warm, so that their CPUs and GPUs are free for others."""
        with self._lock:
            idle, self._idle = self._idle, []
            self._live.difference_update(idle)
        _kill(idle)

    def check_cancelled(self, label: str) -> None:
        """Raise StageError after `cancel`."""
        if self._cancelled:
            raise StageError(f"{label}: cancelled; what is committed stays, run the same command again to go on")

    def open_map(self, shape: Shape) -> list[Any]:
        """Begin a map: hand over the warm hosts of this shape, and end the others."""
        with self._lock:
            self._maps += 1
            idle, self._idle = self._idle, []
            if self._idle_shape == shape:
                return idle
            self._live.difference_update(idle)
        _kill(idle)
        return []

    def new_host(self, shape: Shape) -> Any:
        """Start a host that `cancel` knows of."""
        handle = new_host(shape.cpus, shape.gpus)
        with self._lock:
            self._live.add(handle)
        return handle

    def end_host(self, handle: Any) -> None:
        """End one host."""
        with self._lock:
            self._live.discard(handle)
        _kill([handle])

    def close_map(self, shape: Shape, warm: list[Any], rest: list[Any]) -> None:
        """End a map: keep the `warm` hosts where no other map could be waiting for their place; end the `rest`."""
        with self._lock:
            self._maps -= 1
            if self._maps == 0 and not self._cancelled:
                self._idle, self._idle_shape = warm, shape
            else:
                rest = rest + warm
            self._live.difference_update(rest)
        _kill(rest)


def _kill(handles: Sequence[Any]) -> None:
    for handle in handles if ray.is_initialized() else ():
        # A host that is gone, or a session that is closed, leaves nothing to end.
        with contextlib.suppress(ray_errors.RayError, RuntimeError, ValueError):
            ray.kill(handle, no_restart=True)


class _Map:
    """One call of RayPool.map."""

    def __init__(
        self,
        pool: RayPool,
        payload: bytes,
        items: Sequence[Any],
        *,
        label: str,
        shape: Shape,
        workers: int | None,
        retries: int,
        done: int,
    ) -> None:
        self.pool, self.payload, self.items = pool, payload, items
        self.label, self.shape, self.workers, self.retries, self.done = label, shape, workers, retries, done
        self.turn = next(_turns)
        self.payload_ref: Any = None
        self.waiting: deque[int] = deque(range(len(items)))
        self.deaths = [0] * len(items)
        # Items that were on a host when it died: next time alone.
        self.suspects: set[int] = set()
        self.failures: dict[int, Exception] = {}
        self.succeeded = 0
        self.actors: list[_Actor] = []
        self.warm: list[Any] = []
        self.failed_starts, self.widest = 0, 1
        self.first_ready = 0.0
        self.slots = 0
        self.looked = 0.0
        self.without_workers_since: float | None = None
        self.warned = False

    @property
    def left(self) -> int:
        return len(self.items) - self.succeeded - len(self.failures)

    def results(self) -> Iterator[tuple[int, Any]]:
        """Yield results until every item is done or given up."""
        finished = False
        self.warm = self.pool.open_map(self.shape)
        try:
            self.payload_ref = ray.put(self.payload)
            while self.left:
                self.pool.check_cancelled(self.label)
                self.grow()
                self.feed()
                for index, value in self.gather():
                    self.succeeded += 1
                    if self.pool.progress is not None:
                        self.pool.progress(self.label, self.done + self.succeeded, self.done + len(self.items))
                    yield index, value
            if self.failures:
                raise failed(self.label, self.items, self.failures, self.deaths) from self.failures[min(self.failures)]
            finished = True
        finally:
            self.close(finished)

    def close(self, finished: bool) -> None:
        ready = [actor.handle for actor in self.actors if finished and actor.alive and actor.ready and not actor.flight]
        for handle in ready:
            handle.stop.remote(self.turn)
        rest = [actor.handle for actor in self.actors if actor.handle not in ready] + self.warm
        self.pool.close_map(self.shape, ready, rest)

    def grow(self) -> None:
        """Start workers up to the number that fits and that the items left can use."""
        now = time.monotonic()
        if now - self.looked >= GROW_SECONDS:
            self.looked, self.slots = now, slots_at_most(self.shape)
            self.check_room(now)
        most = min(self.left, self.slots, self.workers or self.slots)
        while len(self.actors) < most:
            handle = self.warm.pop() if self.warm else self.pool.new_host(self.shape)
            starting = handle.start.remote(self.turn, self.pool.code, self.payload_ref)
            self.actors.append(_Actor(handle, starting))
        self.widest = max(self.widest, len(self.actors))
        for handle in self.warm:
            self.pool.end_host(handle)
        self.warm = []

    def check_room(self, now: float) -> None:
        """Raise StageError when no worker could start for a long time; say once that all of them wait."""
        if any(actor.ready for actor in self.actors):
            self.without_workers_since = None
            return
        since = self.without_workers_since = self.without_workers_since or now
        if self.slots == 0 and now - since >= self.pool.wait_seconds:
            raise StageError(
                f"{self.label}: for {now - since:.0f} s no node has had {self.shape} ({describe()}), {self.left} "
                f"of {len(self.items)} items are left; what is committed stays: bring the nodes back and "
                "run the same command again"
            )
        if now - since >= 30 and not self.warned:
            self.warned = True
            _log.warning("%s waits for %s; the cluster has %s", self.label, self.shape, describe())

    def feed(self) -> None:
        """Give every ready worker the items it may have, the emptiest first."""
        ready = [actor for actor in self.actors if actor.ready and actor.alive]
        for depth in range(1, self.depth(len(ready)) + 1):
            for actor in ready:
                if not self.waiting:
                    return
                if not actor.alone and len(actor.flight) < depth:
                    self.submit(actor)

    def depth(self, workers: int) -> int:
        """Return how many items may be at one worker, by how long items have taken so far."""
        if not workers or self.succeeded < 4 * workers:
            return IN_FLIGHT
        seconds = (time.monotonic() - self.first_ready) * workers / self.succeeded
        return max(IN_FLIGHT, min(MOST_IN_FLIGHT, int(FLIGHT_SECONDS / max(seconds, 1e-6))))

    def submit(self, actor: _Actor) -> None:
        index = self.waiting[0]
        if index in self.suspects:
            if actor.flight:
                return
            actor.alone = True
        self.waiting.popleft()
        actor.flight[actor.handle.process.remote(self.items[index])] = index

    def gather(self) -> Iterator[tuple[int, Any]]:
        """Wait a moment, take in what is done, and yield the results among it."""
        owners: dict[Any, _Actor] = {}
        for actor in self.actors:
            if not actor.ready:
                owners[actor.starting] = actor
            owners.update(dict.fromkeys(actor.flight, actor))
        if not owners:
            # Every worker died and the next look for room is a moment away.
            time.sleep(TICK_SECONDS / 5)
            return
        first, _ = ray.wait(list(owners), num_returns=1, timeout=TICK_SECONDS)
        if not first:
            return
        done = ray.wait(list(owners), num_returns=len(owners), timeout=0)[0]
        for ref, outcome in zip(done, outcomes(done), strict=True):
            actor = owners[ref]
            if isinstance(outcome, Exception):
                self.lost(actor, ref, outcome)
                continue
            good, value = outcome
            index = actor.flight.pop(ref, None)
            if not actor.flight:
                actor.alone = False
            if good and index is None:
                actor.ready, self.failed_starts = True, 0
                self.first_ready = self.first_ready or time.monotonic()
            elif good:
                assert index is not None
                yield index, value
            elif isinstance(value, SecateurError):
                raise value
            elif index is None:
                raise unmade(self.label, value) from value
            else:
                self.failures[index] = value

    def lost(self, actor: _Actor, ref: Any, error: Exception) -> None:
        """Note that `actor` is gone, and put the item of `ref` back, or give it up."""
        self.pool.check_cancelled(self.label)
        if actor.alive:
            actor.alive = False
            self.pool.end_host(actor.handle)
            self.looked = 0.0
            # A host works on its two oldest items; the others only waited there.
            actor.working = set(list(actor.flight)[:IN_FLIGHT])
            _log.info("%s: a worker died (%s); another takes its place", self.label, type(error).__name__)
        index = actor.flight.pop(ref, None)
        if index is None:
            # A node that is gone says nothing of the worker; `check_room` sees to it that this ends.
            self.failed_starts += "node has died" not in str(error)
            if self.failed_starts > (self.retries + 1) * self.widest:
                raise ItemsError(
                    f"{self.label}: workers died {self.failed_starts} times in a row before their first item "
                    f"({shown(error)}). Mend the cause and run again"
                ) from error
        else:
            self.suspects.add(index)
            self.deaths[index] += ref in actor.working
            if self.deaths[index] > self.retries:
                self.failures[index] = error
            else:
                self.waiting.append(index)
        if not actor.flight:
            self.actors.remove(actor)
